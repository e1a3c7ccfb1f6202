"""Other runtimes: what is exported answers there as the packed model does, or nothing is written."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import pruned, saved
from helpers.compare import every
from helpers.exports import EXPORTS, FAMILIES, needed
from helpers.models import build, outputs
from torch import nn

from optimum.dendritic import DendriticError, compress_
from optimum.dendritic.cli.export import RUNTIMES
from optimum.dendritic.cli.requests import FORMATS, GGUF_TYPES
from optimum.dendritic.runtimes.comparison import bounded_axes, cases, open_axes
from optimum.dendritic.runtimes.gguf import TYPES

OTHERS = [name for name in EXPORTS if name != "onnx"]  # which has a file of tests of its own


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("runtime", EXPORTS)
def test_packed_models_run_there(runtime: str, family: str, tmp_path):
    """The export compares on several shapes before it keeps a file; that it compares is tested below."""
    export = EXPORTS[runtime]
    needed(export.package)
    model, _, inputs = pruned(family, arbors=2 if family == "bert" else 1)
    compress_(model, inputs)
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    if family in export.refused:
        with quietly(), pytest.raises(Exception, match=export.refused[family]):
            export.function(model, inputs, tmp_path / "out")
        assert not list(tmp_path.iterdir())
        return
    with quietly():
        path = export.function(model, inputs, tmp_path / "out")
    assert path.exists() and path.parent == tmp_path / "out"
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients


class Fickle(nn.Module):
    """Answers otherwise while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x) + (0.01 if torch.compiler.is_exporting() else 0.0)


@pytest.mark.parametrize("runtime", OTHERS)
def test_a_file_that_answers_otherwise_is_not_left(runtime: str, tmp_path):
    needed(EXPORTS[runtime].package)
    with quietly(), pytest.raises(DendriticError, match="'Fickle': its .* differs by .* of the largest output"):
        EXPORTS[runtime].function(Fickle(), {"x": torch.ones(2, 4)}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", OTHERS)
def test_a_missing_package_is_named(runtime: str, tmp_path, monkeypatch):
    model, inputs = build("residual_mlp")
    monkeypatch.setitem(sys.modules, EXPORTS[runtime].package, None)
    with pytest.raises(ImportError, match=rf"pip install optimum-dendritic\[{runtime}\]"):
        EXPORTS[runtime].function(model, inputs, tmp_path / "out")


@pytest.mark.parametrize("runtime", OTHERS)
def test_what_cannot_be_exported_is_refused(runtime: str, tmp_path):
    model, inputs = build("residual_mlp")
    with pytest.raises(DendriticError, match=r"dtype = \['bfloat16'\].*Call model.float\(\) first"):
        EXPORTS[runtime].function(model.bfloat16(), inputs, tmp_path / "out")
    injected, _, inputs = pruned("residual_mlp")
    with pytest.raises(DendriticError, match="is injected and not packed.*Call compress_"):
        EXPORTS[runtime].function(injected, inputs, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_shapes_are_tried_where_the_axes_are_open():
    ids = torch.ones(1, 6, dtype=torch.int64)
    free, open_ = open_axes({"input_ids": ids, "mask": ids})
    assert [tuple(case["mask"].shape) for case in cases(free, open_)] == [(2, 6), (3, 6), (1, 3)]
    fixed, bounded = bounded_axes({"input_ids": ids, "mask": ids})
    assert [tuple(case["mask"].shape) for case in cases(fixed, bounded)] == [(1, 6), (1, 3)]
    still, none = bounded_axes({"pixel_values": torch.ones(2, 3, 8, 8)})
    assert [tuple(case["pixel_values"].shape) for case in cases(still, none)] == [(2, 3, 8, 8)]


def test_the_command_line_knows_every_runtime():
    assert [*FORMATS] == [*RUNTIMES, "gguf", "nir", "vllm"] and [*GGUF_TYPES] == [*TYPES]
    assert every(RUNTIMES[name][1] is export.function for name, export in EXPORTS.items())


@pytest.mark.slow
def test_the_command_exports_to_openvino(cli, tmp_path: Path):
    needed("openvino")
    import openvino

    model, inputs = saved(tmp_path / "small", "bert", "packed")
    with quietly():
        code, output, errors = cli(
            "dendritic", "export", "small", "--format", "openvino", "--output", "ov", "--sequence-length", "8"
        )
    assert code == 0, errors
    assert "OpenVINO answers as the model does" in output and (tmp_path / "ov/config.json").exists()
    compiled = openvino.Core().compile_model(
        tmp_path / "ov/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    torch.testing.assert_close(torch.from_numpy(compiled(feed)["logits"]), outputs(model, inputs), rtol=1e-4, atol=1e-5)


def quietly() -> warnings.catch_warnings:
    """The exporters and the packages that they import warn of much that is not ours."""
    return warnings.catch_warnings(action="ignore")
