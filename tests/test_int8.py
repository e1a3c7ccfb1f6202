"""int8: every product of a packed model is quantized, those behind a gather, too, and it is still the same model."""

import copy
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from helpers.checkpoints import pruned, saved
from helpers.exports import needed
from helpers.models import outputs
from torch import nn

from optimum.dendritic import DendriticError, compress_, describe, export_onnx
from optimum.dendritic.nn import PackedConv1D, PackedLinear
from optimum.dendritic.runtimes.int8 import quantized
from optimum.dendritic.runtimes.openvino import export_openvino
from optimum.dendritic.runtimes.plain_linears import with_plain_linears


def packed(name: str, **fields):
    model, _, inputs = pruned(name, **fields)
    return compress_(model, inputs), inputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("bert", {"arbors": 2}),
        ("bert", {"arbors": 2, "sprout_rank": 2}),
        ("gpt2", {}),
        ("llama", {"floor": 0.0}),
        ("lstm", {}),
        ("plain_cnn", {}),
    ],
)
def test_plain_linears_answer_as_packed_ones(name: str, fields: dict):
    model, inputs = packed(name, **fields)
    keys, expected = list(model.state_dict()), outputs(model, inputs)
    plain = with_plain_linears(model)
    torch.testing.assert_close(outputs(plain, inputs), expected, rtol=1e-5, atol=1e-6)
    left = [module for module in plain.modules() if isinstance(module, PackedLinear | PackedConv1D)]
    assert not any(layer.weight.numel() for layer in left)
    assert list(model.state_dict()) == keys and torch.equal(outputs(model, inputs), expected)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_pytorch_quantizes_every_layer(name: str):
    model, inputs = packed(name, arbors=2)
    assert any("gather" in words for words in describe(model).values())
    small, expected = quantized(model), outputs(model, inputs)
    assert not any(type(module) is nn.Linear for module in small.modules())
    assert (outputs(small, inputs) - expected).abs().max() < 0.1 * expected.abs().max()
    assert not any(isinstance(module, PackedLinear | PackedConv1D) for module in small.modules())


def test_torchao_finds_every_layer():
    needed("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, inputs = packed("bert", arbors=2)
    plain, expected = with_plain_linears(model), outputs(model, inputs)
    quantize_(plain, Int8WeightOnlyConfig())
    kinds = Counter(type(m.weight).__name__ for m in plain.modules() if type(m) is nn.Linear)
    assert "Parameter" not in kinds
    assert (outputs(plain, inputs) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.slow
def test_onnx_runtime_quantizes_every_matrix(tmp_path: Path):
    model, inputs = packed("bert", arbors=2)
    file = export_onnx(model, inputs, tmp_path / "small", int8=True)
    graph = onnx.load(file).graph
    assert not any(node.metadata_props or node.doc_string for node in graph.node)
    floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1}
    assert not [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Gather") and floats & {*node.input}]
    operators = Counter(node.op_type for node in graph.node)
    assert operators["MatMulInteger"] == sum(type(m) is nn.Linear for m in with_plain_linears(model).modules())


@pytest.mark.slow
def test_onnx_runtime_quantizes_convolutions_by_samples(tmp_path: Path):
    model, inputs = packed("resnet_basic")
    file = export_onnx(model, inputs, tmp_path / "small", int8=True, calibration=[inputs, copy.deepcopy(inputs)])
    operators = Counter(node.op_type for node in onnx.load(file).graph.node)
    assert operators["QuantizeLinear"] > 0 and operators["DequantizeLinear"] > operators["Conv"]


@pytest.mark.slow
@pytest.mark.parametrize("samples", [False, True])
def test_openvino_is_quantized_by_nncf(samples: bool, tmp_path: Path):
    needed("openvino")
    needed("nncf")
    model, inputs = packed("bert")
    file = export_openvino(model, inputs, tmp_path / "small", int8=True, calibration=[inputs] if samples else None)
    assert 'element_type="u8"' in file.read_text() or 'element_type="i8"' in file.read_text()


def test_other_dtypes_are_refused():
    model, _ = packed("bert")
    with pytest.raises(DendriticError, match=r"dtype = \['bfloat16'\]: must be float32. Call model.float\(\) first"):
        quantized(model.bfloat16())


@pytest.mark.slow
def test_the_command_makes_int8_where_it_can(cli, tmp_path: Path):
    saved(tmp_path / "small", "bert", "packed")
    command = ["dendritic", "export", "small", "--sequence-length", "8", "--int8", "--output", "out"]
    code, output, errors = cli(*command)
    assert code == 0, errors
    assert "ONNX Runtime answers as the model does, as nearly as int8 can" in output
    code, output, errors = cli(*command, "--format", "executorch")
    assert code == 1 and "--int8 = True: is not made for executorch. Choose onnx or openvino" in errors
    code, output, errors = cli(*command, "--format", "gguf")
    assert code == 1 and "--gguf-type q8_0" in errors
