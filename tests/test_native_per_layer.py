"""Where a stock class reads numbers of single layers from `per_layer_config`, layers of a native model may differ."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers.compare import every
from helpers.families import build, inputs_of
from helpers.families_training import close, logits
from helpers.native_models import STEP_3_7, step_3_7
from helpers.stock_environment import answers_elsewhere, python_without_us
from transformers.integrations.heterogeneity import HeterogeneousConfigMixin
from transformers.models.step3p7 import Step3p7TextConfig, Step3p7TextModel

from optimum.dendritic import DendriticConfig, compress_, describe, inject_, mask_, prune_
from optimum.dendritic.inspection.density import density
from optimum.dendritic.state import injected_layout
from optimum.dendritic.stock_config.changes import Blueprint
from optimum.dendritic.stock_config.fields import Entries, UnsupportedConfig, changed, numbers_of, written_numbers
from optimum.dendritic.stock_config.per_layer import layers_of

INPUTS = inputs_of(STEP_3_7)
HEADS, GROUPS = "num_attention_heads", "num_key_value_heads"


def text_config(**fields: Any) -> Step3p7TextConfig:
    return step_3_7(**fields).text_config


def native(**fields: Any) -> DendriticConfig:
    return DendriticConfig(**{"sparsity": 0.4, "native": True, "floor": 0.0, "updates": 3, **fields})


def dials(model: hf.PreTrainedModel) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The fields of each dial and its members."""
    return {dial.fields: dial.members for dial in injected_layout(model).dials}


def of_layer(layer: int, where: str = "") -> tuple[str, str]:
    return f"{where}per_layer_config.{layer}.{HEADS}", f"{where}per_layer_config.{layer}.{GROUPS}"


def injected(model: hf.PreTrainedModel, **fields: Any) -> hf.PreTrainedModel:
    return inject_(model, native(**fields), example_inputs=INPUTS)


def packed_of(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """What is left of a model once what its masks leave out is zero."""
    mask_(model)
    return compress_(model, INPUTS)


def text_model(**fields: Any) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return Step3p7TextModel(text_config(**fields)).eval()


@pytest.fixture(scope="module")
def masked() -> hf.PreTrainedModel:
    """Its heads alone are pruned, by importance."""
    model = injected(build(STEP_3_7), exclude_modules=["gate_proj", "up_proj", "down_proj"])
    return prune_(model, [STEP_3_7.batch()], rounds=1, reconstruct=False)


class TestNumbers:
    def test_each_layer_has_those_of_the_config_or_its_own(self):
        given = step_3_7(per_layer_config={1: {HEADS: 4}})
        numbers = numbers_of(given)
        assert [numbers[f"text_config.per_layer_config.{layer}.{HEADS}"] for layer in range(3)] == [8, 4, 8]
        assert numbers["text_config.per_layer_config.2.hidden_size"] == 16
        assert {path for path in written_numbers(given) if "per_layer" in path} == {
            f"text_config.per_layer_config.1.{HEADS}"
        }

    def test_they_are_set_in_a_copy_and_what_layers_had_is_kept(self):
        given = text_config(per_layer_config={1: {HEADS: 4, "attention_dropout": 0.5}})
        new = changed(given, {f"per_layer_config.2.{GROUPS}": 2, f"per_layer_config.1.{GROUPS}": 1})
        assert layers_of(new) == {
            "per_layer_config": [{}, {HEADS: 4, "attention_dropout": 0.5, GROUPS: 1}, {GROUPS: 2}]
        }
        assert layers_of(given) == {"per_layer_config": [{}, {HEADS: 4, "attention_dropout": 0.5}, {}]}
        assert layers_of(changed(given, {})) == layers_of(given)

    def test_a_field_of_two_names_is_one_number(self):
        given = text_config(per_layer_config={0: {"num_attention_groups": 2}})
        assert numbers_of(given)[f"per_layer_config.0.{GROUPS}"] == 2
        assert layers_of(changed(given, {f"per_layer_config.0.{GROUPS}": 4})) == {"per_layer_config": [{}, {}, {}]}

    def test_a_number_of_all_layers_leaves_those_that_have_their_own(self):
        given = text_config(per_layer_config={1: {HEADS: 4}})
        new = changed(given, {HEADS: 4, f"per_layer_config.2.{GROUPS}": 2})
        assert layers_of(new) == {"per_layer_config": [{}, {}, {GROUPS: 2}]} and vars(new)[HEADS] == 4

    @pytest.mark.parametrize(
        "path", [f"per_layer_config.3.{HEADS}", "per_layer_config.0.heads", f"inner.per_layer_config.0.{HEADS}"]
    )
    def test_paths_that_are_not_there(self, path: str):
        with pytest.raises(UnsupportedConfig, match="is not a field of Step3p7TextConfig"):
            changed(text_config(), {path: 2})

    def test_layers_that_stay_take_theirs_along(self):
        given = text_config(per_layer_config={1: {HEADS: 4}, 2: {HEADS: 2}})
        fewer = {"num_hidden_layers": 2, "mlp_layer_types": Entries((1, 2)), "layer_types": Entries((1, 2))}
        for own in (0, 2):  # of a layer that is left either way, and of one that is not
            with pytest.raises(UnsupportedConfig, match="per_layer_config"):
                changed(text_config(per_layer_config={own: {HEADS: 4}}), fewer)
        with pytest.raises(UnsupportedConfig, match="per_layer_config is of 2 layers, and there are 3"):
            changed(given, {"per_layer_config": Entries((1, 2))})
        new = changed(given, {**fewer, "per_layer_config": Entries((1, 2)), f"per_layer_config.2.{HEADS}": 1})
        assert layers_of(new) == {"per_layer_config": [{HEADS: 4}, {HEADS: 1}]}

    def test_a_transformers_without_it(self, monkeypatch):
        """As 5.0 is."""
        given = hf.LlamaConfig(num_hidden_layers=2)
        assert numbers_of(given)[f"per_layer_config.1.{HEADS}"] == given.num_attention_heads
        monkeypatch.delattr(HeterogeneousConfigMixin, "per_layer_config")
        assert numbers_of(given) == written_numbers(given) and not layers_of(given)


@pytest.mark.slow
class TestDials:
    def test_heads_are_a_dial_of_each_layer(self):
        found = dials(injected(text_model()))
        assert found == {
            **{of_layer(layer): (f"layers.{layer}.self_attn.o_proj",) for layer in range(3)},
            ("intermediate_size",): tuple(f"layers.{layer}.mlp.down_proj" for layer in range(3)),
            ("num_hidden_layers",): ("layers",),
        }

    def test_layers_that_have_numbers_of_their_own(self):
        """Twelve heads on the four groups of the sliding layer, as the published models have more there."""
        model = injected(text_model(per_layer_config={1: {HEADS: 12}}))
        assert [of_layer(layer) in dials(model) for layer in range(3)] == [True] * 3
        masks = {layer: model.layers[layer].self_attn.o_proj.dendrite_mask for layer in range(3)}
        masks[0][0, 1:], masks[1][0, :2] = False, False
        packed_of(model)
        assert layers_of(model.config) == {"per_layer_config": [{HEADS: 2, GROUPS: 1}, {HEADS: 6, GROUPS: 2}, {}]}

    def test_layers_that_have_too_few_are_left_alone(self):
        found = dials(injected(text_model(per_layer_config={0: {HEADS: 2, GROUPS: 1}})))
        assert {fields for fields in found if HEADS in fields[0]} == {of_layer(1), of_layer(2)}

    def test_what_a_layer_says_goes_with_it(self):
        model = injected(text_model(per_layer_config={1: {"attention_dropout": 0.5}}))
        (depth,) = (dial for dial in injected_layout(model).dials if dial.fields == ("num_hidden_layers",))
        assert set(depth.lists) == {"layer_types", "mlp_layer_types", "per_layer_config"}
        model.layers.dendrite_mask[0, 0] = False
        packed_of(model)
        assert layers_of(model.config) == {"per_layer_config": [{"attention_dropout": 0.5}, {}]}

    def test_one_model_is_built_to_know_that_a_class_does_not_read_it(self, monkeypatch):
        tried: list[str] = []
        says = Blueprint.says

        def noting(self: Blueprint, fields: Any, *rest: Any) -> Any:
            tried.extend(field for field in fields[:1] if "per_layer_config" in field)
            return says(self, fields, *rest)

        monkeypatch.setattr(Blueprint, "says", noting)
        config = hf.LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=4,
        )  # fmt: skip
        model = injected(hf.LlamaForCausalLM(config))
        assert dials(model).keys() == {(HEADS, GROUPS), ("intermediate_size",), ("num_hidden_layers",)}
        assert sorted(tried) == ["per_layer_config.0.intermediate_size", f"per_layer_config.0.{HEADS}"]


@pytest.mark.slow
class TestStockTransformers:
    def test_other_heads_in_other_layers_load_without_this_package(self, masked, tmp_path: Path):
        packed = compress_(copy.deepcopy(masked), INPUTS)
        folder, python = tmp_path / "small", python_without_us(tmp_path / "venv")
        found = answers_elsewhere(python, {folder: (packed, STEP_3_7)})[folder]
        assert close(found, logits(packed, INPUTS), rtol=1e-5)
        assert close(found, logits(copy.deepcopy(masked), INPUTS), rtol=1e-4)
        said = json.loads((folder / "config.json").read_text())
        assert "quantization_config" not in said and "dendrit" not in json.dumps(said)
        layers = packed.model.language_model.layers
        heads = [layer.self_attn.q_proj.out_features // 4 for layer in layers]
        groups = [layer.self_attn.k_proj.out_features // 4 for layer in layers]
        own = [said["text_config"]["per_layer_config"].get(str(layer), {}) for layer in range(3)]
        assert [each.get(HEADS, 8) for each in own] == heads and [each.get(GROUPS, 4) for each in own] == groups
        assert len(set(groups)) > 1 and (said["text_config"][HEADS], said["text_config"][GROUPS]) == (8, 4)
        assert every(words.startswith(("plain", "dense")) for words in describe(packed).values())
        assert density(packed).parameters == sum(parameter.numel() for parameter in packed.parameters())

    def test_heads_and_layers_go_together(self, tmp_path: Path):
        model = injected(build(STEP_3_7))
        layers = model.model.language_model.layers
        for layer, kept in enumerate(([0, 2, 3], [1, 2], [3])):
            mask = layers[layer].self_attn.o_proj.dendrite_mask
            mask[0] = torch.isin(torch.arange(4), torch.tensor(kept))
        layers.dendrite_mask[0, 1] = False
        mask_(model)
        expected, packed = logits(model, INPUTS), packed_of(model)
        text = packed.config.text_config
        assert layers_of(text) == {"per_layer_config": [{HEADS: 6, GROUPS: 3}, {HEADS: 2, GROUPS: 1}]}
        assert text.layer_types == ["full_attention"] * 2 and len(packed.model.language_model.layers) == 2
        folder, python = tmp_path / "small", python_without_us(tmp_path / "venv")
        assert close(answers_elsewhere(python, {folder: (packed, STEP_3_7)})[folder], expected, rtol=1e-4)

    def test_a_checkpoint_from_mid_training_packs_as_the_model_in_memory(self, masked, tmp_path: Path):
        masked.save_pretrained(tmp_path)
        loaded = STEP_3_7.load.from_pretrained(tmp_path)
        assert injected_layout(loaded) == injected_layout(masked)
        again, packed = compress_(loaded, INPUTS), compress_(copy.deepcopy(masked), INPUTS)
        assert layers_of(again.config) == layers_of(packed.config)
        assert "quantization_config" not in again.config.to_dict()
        assert every(torch.equal(tensor, again.state_dict()[key]) for key, tensor in packed.state_dict().items())

    def test_text_is_generated_with_a_cache(self, masked):
        packed, prompt = compress_(copy.deepcopy(masked), INPUTS), {k: v[:2] for k, v in INPUTS.items()}
        tokens = [
            packed.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=cache)
            for cache in (True, False)
        ]
        assert torch.equal(*tokens)
