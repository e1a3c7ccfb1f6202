"""ONNX: the graph answers as the model does at sizes that it was not traced with, or there is no graph."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.checkpoints import pruned, saved
from helpers.compare import every
from helpers.models import build
from helpers.vocabulary import save_tokenizer
from torch import nn
from transformers import AutoConfig, AutoTokenizer, ViTImageProcessorPil

from optimum.dendritic import DendriticError, compress_, describe, export_onnx

pytestmark = pytest.mark.xdist_group("export")  # one worker, or each would make the fixture anew


def run(path: Path, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {node.name: inputs[node.name].numpy() for node in session.get_inputs()})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A BERT of two arbors: every kind of layer but a scatter is in it."""
    model, _, inputs = pruned("bert", arbors=2)
    compress_(model, inputs)
    forms = " ".join(describe(model).values())
    assert "gather" in forms and "plain" in forms and "arbors" in forms
    folder = tmp_path_factory.mktemp("onnx")
    save_tokenizer(folder / "words")
    tensors, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.train().modules()]
    one = {name: tensor[:1] for name, tensor in inputs.items()}
    labelled = {**one, "labels": torch.tensor([1])}
    path = export_onnx(model, labelled, folder / "out", processor=AutoTokenizer.from_pretrained(folder / "words"))
    assert [module.training for module in model.modules()] == flags
    assert every(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    return model.eval(), path


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "length"), [(1, 2), (1, 16), (5, 9)])
def test_any_batch_and_any_length(exported, batch: int, length: int):
    model, path = exported
    ids = torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(length))
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(length) < length - batch // 2).expand(batch, -1).long()}
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    np.testing.assert_allclose(run(path, inputs)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_is_in_the_folder(exported):
    model, path = exported
    assert [file.name for file in path.parent.parent.iterdir() if file.name not in ("words", "out")] == []
    names = {file.name for file in path.parent.iterdir()}
    assert names >= {"model.onnx", "model.onnx.data", "config.json", "export.json", "tokenizer.json"}
    config = AutoConfig.from_pretrained(path.parent)
    assert config.quantization_config["quant_method"] == "optimum-dendritic"
    weights = onnx.load(path).graph.initializer
    floats = sum(int(np.prod(weight.dims)) for weight in weights if weight.data_type == onnx.TensorProto.FLOAT)
    assert floats <= 1.02 * sum(p.numel() for p in model.parameters()), "it is as small as the model"
    assert not {"ScatterND", "ScatterElements"} & {node.op_type for node in onnx.load(path).graph.node}


class Fickle(nn.Module):
    """Answers otherwise while it is exported."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.linear, self.by = nn.Linear(4, 3), by

    def forward(self, x):
        return self.linear(x) + (self.by if torch.compiler.is_exporting() else 0.0)


@pytest.mark.slow
def test_a_graph_that_answers_otherwise_is_not_left(tmp_path):
    message = r"'Fickle': its ONNX graph differs by .*e-0\d of the largest output, more than 1e-04, on {'x': \(2, 4\)}"
    with pytest.raises(DendriticError, match=message):
        export_onnx(Fickle(0.01), {"x": torch.ones(2, 4)}, tmp_path / "new" / "out")
    assert [file.name for file in tmp_path.rglob("*")] == ["new"]


def test_an_injected_model_is_refused(tmp_path):
    model, _, inputs = pruned("residual_mlp")
    with pytest.raises(DendriticError, match="is injected and not packed.*Call compress_"):
        export_onnx(model, inputs, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused(tmp_path):
    model, inputs = build("residual_mlp")
    with pytest.raises(DendriticError, match=r"dtype = \['bfloat16'\].*Call model.float\(\) first"):
        export_onnx(model.bfloat16(), inputs, tmp_path / "out")
    uneven = {"x": torch.ones(2, 6), "mask": torch.ones(3, 6)}
    with pytest.raises(DendriticError, match="example_inputs = .*'mask': 3.*must share their batch size"):
        export_onnx(model.float(), uneven, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    model, inputs = build("residual_mlp")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime.*pip install optimum-dendritic\[onnx\]"):
        export_onnx(model, inputs, tmp_path / "out")


@pytest.mark.slow
def test_the_command_exports_with_the_image_processor(cli, tmp_path):
    model, inputs = saved(tmp_path / "small", "resnet_basic", "packed")
    config = json.loads((tmp_path / "small/config.json").read_text())
    (tmp_path / "small/config.json").write_text(json.dumps(config | {"image_size": 32}))
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "small")
    code, output, errors = cli("dendritic", "export", "small", "--output", "onnx", "--json", "export.json")
    assert code == 0, errors
    assert "with its ViTImageProcessor" in output and (tmp_path / "onnx/preprocessor_config.json").exists()
    figures = json.loads((tmp_path / "export.json").read_text())
    assert figures["bytes"] == {name: (tmp_path / "onnx" / name).stat().st_size for name in figures["bytes"]}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits.numpy()
    np.testing.assert_allclose(run(tmp_path / figures["output"], inputs)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["injected"], "model = 'BertForSequenceClassification': is injected"),
        (["packed", "--dtype", "bfloat16"], "dtype = ['bfloat16']"),
        (["packed", "--sequence-length", "17"], "--sequence-length = 17: the model takes at most 16 tokens"),
        (["absent"], "MODEL = 'absent': there is no such folder"),
    ],
)
def test_mistakes_are_told_in_a_sentence(cli, tmp_path, monkeypatch, arguments: list[str], message: str):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for form in ("injected", "packed"):
        saved(tmp_path / form, "bert", form)
    code, output, errors = cli("dendritic", "export", "--output", "out", "--sequence-length", "8", *arguments)
    assert code == 1 and output == "" and message in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
