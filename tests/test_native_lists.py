"""A config that already takes a list says one number for each layer, so layers of a stock model may differ."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from helpers.families import build, inputs_of
from helpers.families_training import close, logits
from helpers.native_models import GEMMA_3N, gemma_3n
from helpers.stock_environment import answers_elsewhere, python_without_us

from optimum.dendritic import DendriticConfig, compress_, describe, inject_, prune_
from optimum.dendritic.state import injected_layout
from optimum.dendritic.stock_config.fields import Entries, UnsupportedConfig, changed, numbers_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def masked() -> hf.PreTrainedModel:
    model = inject_(
        build(GEMMA_3N),
        DendriticConfig(sparsity=0.4, native=True, floor=0.0, updates=3),
        example_inputs=inputs_of(GEMMA_3N),
    )
    return prune_(model, [GEMMA_3N.batch()], rounds=1, reconstruct=False)


@pytest.fixture(scope="module")
def packed(masked) -> hf.PreTrainedModel:
    return compress_(copy.deepcopy(masked), inputs_of(GEMMA_3N))


def test_each_entry_is_a_dial_of_its_layer(masked):
    dials = {dial.fields: dial.members for dial in injected_layout(masked).dials}
    for layer in range(3):
        assert dials[(f"intermediate_size.{layer}",)] == (f"model.layers.{layer}.mlp.down_proj",)


def test_layers_of_different_widths_load_without_this_package(masked, packed, tmp_path: Path):
    folder, python = tmp_path / "small", python_without_us(tmp_path / "venv")
    found = answers_elsewhere(python, {folder: (packed, GEMMA_3N)})[folder]
    inputs = inputs_of(GEMMA_3N)
    assert close(found, logits(packed, inputs), rtol=1e-5)
    assert close(found, logits(copy.deepcopy(masked), inputs), rtol=1e-4)
    said = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in said and "dendrit" not in json.dumps(said)
    widths = said["intermediate_size"]
    assert widths == [layer.mlp.down_proj.in_features for layer in packed.model.layers]
    assert any(left < dense for left, dense in zip(widths, (24, 20, 16), strict=True))
    assert len({left / dense for left, dense in zip(widths, (24, 20, 16), strict=True)}) > 1  # as importance has it
    assert all(words.startswith(("plain", "dense")) for words in describe(packed).values())


def test_entries_are_set_before_others_go():
    given = gemma_3n()
    assert numbers_of(given)["intermediate_size.1"] == 20
    values = {
        "intermediate_size": Entries((0, 2)), "num_hidden_layers": 2, "intermediate_size.2": 5,
        "layer_types": Entries((0, 2)), "activation_sparsity_pattern": Entries((0, 2)),
    }  # fmt: skip
    new = changed(given, values)
    assert new.intermediate_size == [24, 5] and new.layer_types == ["sliding_attention", "full_attention"]
    assert given.intermediate_size == [24, 20, 16]


@pytest.mark.parametrize("path", ["intermediate_sizes.1", "text.intermediate_size.1", "hidden_size.0"])
def test_entries_that_are_not_there(path: str):
    with pytest.raises(UnsupportedConfig, match="is not a field of Gemma3nTextConfig"):
        changed(gemma_3n(), {path: 3})


def test_an_entry_beyond_the_list():
    with pytest.raises(UnsupportedConfig, match="is not a field of Gemma3nTextConfig"):
        changed(gemma_3n(), {"intermediate_size.3": 3})


def test_one_width_for_all_layers_is_still_one_number():
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
    )
    ids = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    inject_(model, DendriticConfig(sparsity=0.3, native=True), example_inputs={"input_ids": ids})
    assert ("intermediate_size",) in {dial.fields for dial in injected_layout(model).dials}
