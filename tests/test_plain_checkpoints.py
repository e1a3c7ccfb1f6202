"""Modules that are not a `PreTrainedModel`: saved without a pickle, loaded and checked."""

import json

import pytest
import torch
from helpers.compare import assert_same
from helpers.models import build, outputs
from helpers.trainers import tensors
from safetensors.torch import load_file, save_file

from optimum.dendritic import CheckpointError, DendriticConfig, DendriticError, compress_, inject_, load, save, update_
from optimum.dendritic.huggingface.checkpoint.plain import LAYOUT, TENSORS
from optimum.dendritic.state import layout_of

MODELS = ["plain_cnn", "residual_mlp", "grouped_cnn", "concat_mlp", "lstm", "gru"]
CONFIG = DendriticConfig(sparsity=0.4, segment_size=2, importance="random")


def pruned(name, packed=True):
    model, inputs = build(name)
    inject_(model, CONFIG, example_inputs=inputs)
    update_(model, 0.4)
    return (compress_(model, inputs) if packed else model), inputs


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "injected"])
def test_a_saved_module_loads_the_same(name, packed, tmp_path):
    model, inputs = pruned(name, packed)
    save(model, tmp_path / "small")
    assert {file.name for file in (tmp_path / "small").iterdir()} == {LAYOUT, TENSORS}
    dense, _ = build(name, seed=1)
    before = tensors(dense)
    loaded = load(tmp_path / "small", dense)
    assert_same(tensors(loaded), tensors(model))
    assert_same(tensors(dense), before)
    assert torch.equal(outputs(loaded, inputs), outputs(model, inputs))
    assert layout_of(loaded) == layout_of(model) and layout_of(dense) is None


def test_a_stock_module_is_not_saved(tmp_path):
    with pytest.raises(DendriticError, match="neither injected nor packed"):
        save(build("plain_cnn")[0], tmp_path)
    assert not any(tmp_path.iterdir())


class TestWhatDoesNotFitIsRefused:
    @pytest.fixture
    def folder(self, tmp_path):
        save(pruned("plain_cnn")[0], tmp_path)
        return tmp_path

    def test_another_module(self, folder):
        with pytest.raises(CheckpointError, match="must be a module of ResidualMLP"):
            load(folder, build("residual_mlp")[0])

    def test_a_compressed_module(self, folder):
        with pytest.raises(DendriticError, match="injected or packed"):
            load(folder, pruned("plain_cnn")[0])

    @pytest.mark.parametrize("text", ["", "{", "[1]", '{"version": 1}', "[" * 10_000], ids=range(5))
    def test_a_layout_that_is_none(self, folder, text):
        (folder / LAYOUT).write_text(text)
        with pytest.raises(CheckpointError):
            load(folder, build("plain_cnn")[0])

    def test_a_layout_of_larger_layers(self, folder):
        layout = json.loads((folder / LAYOUT).read_text())
        layout["modules"]["conv1"]["outputs"] = 10**9
        (folder / LAYOUT).write_text(json.dumps(layout))
        with pytest.raises(CheckpointError):
            load(folder, build("plain_cnn")[0])

    @pytest.mark.parametrize("change", ["missing", "wider", "unknown"])
    def test_other_tensors(self, folder, change):
        held = load_file(folder / TENSORS)
        if change == "missing":
            del held["fc2.weight"]
        else:
            held |= {"fc2.weight": torch.ones(5, 99)} if change == "wider" else {"conv1.extra": torch.ones(1)}
        save_file(held, folder / TENSORS)
        with pytest.raises(CheckpointError):
            load(folder, build("plain_cnn")[0])
