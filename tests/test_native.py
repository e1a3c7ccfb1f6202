"""The native form: what is saved is a stock model, and stock transformers, with nothing of ours installed, agrees."""

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from helpers.compare import every
from helpers.families import Family, build, inputs_of
from helpers.families_training import close, logits
from helpers.native_models import FAMILIES, NativeModels
from helpers.stock_environment import answers_elsewhere, python_without_us
from safetensors.torch import load_file

from optimum.dendritic import (
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    compress_,
    describe,
    inject_,
    prune_,
    score_,
    update_,
)
from optimum.dendritic.efficiency.size import count_parameters
from optimum.dendritic.functional.selection import total_cost
from optimum.dendritic.inspection.density import density
from optimum.dendritic.nn import DendriticStack
from optimum.dendritic.state import dendritic_layers, injected_layout, layout_of
from optimum.dendritic.structure.model_costs import layer_costs

pytestmark = pytest.mark.slow

NAMES = ["BERT", "DistilBERT", "GPT-2", "ViT", "Llama"]
SPARSITY = {"ViT": 0.3}  # its patches, which no stock config makes narrower, are much of so small a model


def native(name: str, **fields) -> DendriticConfig:
    return DendriticConfig(
        **{"sparsity": SPARSITY.get(name, 0.45), "native": True, "updates": 3, "floor": 0.0, **fields}
    )


MODELS = NativeModels(native)
masked, packed = MODELS.masked, MODELS.packed


def wide() -> tuple[hf.PreTrainedModel, dict]:
    """A BERT of four layers, in which several dials have room."""
    family = FAMILIES["BERT"]
    config = copy.deepcopy(build(family).config)
    config.num_hidden_layers = 4
    return build(
        Family("wide", lambda: hf.BertForSequenceClassification(config), family.batch, family.load)
    ), inputs_of(family)


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Every family's native model in a folder, and what a process without this package answered with it."""
    folders = {name: tmp_path_factory.mktemp("native") / name for name in NAMES}
    python = python_without_us(tmp_path_factory.mktemp("stock") / "venv")
    found = answers_elsewhere(python, {folder: (packed(name), FAMILIES[name]) for name, folder in folders.items()})
    return {name: (folder, found[folder]) for name, folder in folders.items()}


class TestStockTransformers:
    @pytest.mark.parametrize("name", NAMES)
    def test_answers_as_the_packed_and_the_masked_model_here(self, saved, name):
        found, inputs = saved[name][1], inputs_of(FAMILIES[name])
        assert close(found, logits(packed(name), inputs), rtol=1e-5)
        assert close(found, logits(copy.deepcopy(masked(name)), inputs), rtol=1e-4)

    @pytest.mark.parametrize("name", NAMES)
    def test_nothing_of_ours_is_in_the_folder(self, saved, name):
        folder, _ = saved[name]
        config = json.loads((folder / "config.json").read_text())
        stock = build(FAMILIES[name]).config.to_dict()
        assert "quantization_config" not in config and config.keys() <= stock.keys() | {"architectures", "dtype"}
        assert "dendrit" not in (folder / "config.json").read_text()
        tensors = load_file(folder / "model.safetensors")
        assert not any("dendrite" in key for key in tensors)


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_met_within_one_step(name):
    """Counted in the tensors; one more unit in every layer of any dial that says widths would break it."""
    model, layout = masked(name), injected_layout(masked(name))
    budget = (1 - layout.config.sparsity) * layout.dense_cost
    left = sum(packed(name).get_submodule(n).get_parameter("weight").numel() for n in layout_of(packed(name)).modules)
    left += sum(m.bias.numel() for n in layout_of(packed(name)).modules
                if (m := packed(name).get_submodule(n)).bias is not None)  # fmt: skip
    layers, costs = dendritic_layers(model), layer_costs(model)
    masks = {n: layer.dendrite_mask for n, layer in layers.items()}
    assert left == total_cost(masks, costs) <= budget
    room = []
    for dial in layout.dials:
        count = int(masks[dial.members[0]].sum())
        more = dict(masks)
        for member in dial.members:
            assert int(masks[member].sum()) == count
            more[member] = torch.zeros_like(masks[member])
            more[member][0, : count + 1] = True
        if count < masks[dial.members[0]].shape[1]:
            room.append(total_cost(more, costs) > budget)
    assert every(room)


@functools.cache
def scored(budget: str) -> hf.PreTrainedModel:
    model, inputs = wide()
    inject_(model, native("BERT", budget=budget), example_inputs=inputs)
    model(**FAMILIES["BERT"].batch()).loss.backward()
    score_(model)
    return model


@pytest.mark.parametrize("budget", ["params", "macs"])
@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.6, 0.8])
def test_widths_and_layers_go_together(budget, sparsity):
    model, inputs = copy.deepcopy(scored(budget)), wide()[1]
    dense = copy.deepcopy(model.config)
    update_(model, sparsity / 2)
    update_(model, sparsity)
    expected, layout = logits(model, inputs), injected_layout(model)
    left = total_cost({n: layer.dendrite_mask for n, layer in dendritic_layers(model).items()}, layer_costs(model))
    compress_(model, inputs)
    assert close(logits(model, inputs), expected, rtol=1e-4)
    assert left <= (1 - sparsity) * layout.dense_cost
    assert left > (1 - sparsity) * layout.dense_cost - 4 * 34 * (
        max(layout.positions.values()) if budget == "macs" else 1
    )
    config = model.config
    assert 1 <= config.num_hidden_layers == len(model.bert.encoder.layer) <= dense.num_hidden_layers
    assert every(
        layer.intermediate.dense.out_features == config.intermediate_size for layer in model.bert.encoder.layer
    )
    assert (config.num_hidden_layers < 4) or (config.intermediate_size < 24)
    assert every(words.startswith(("plain", "dense")) for words in describe(model).values())


@pytest.mark.parametrize("importance", ["magnitude", "activation", "random"])
def test_every_importance(importance):
    model, inputs = wide()
    inject_(model, native("BERT", sparsity=0.3, importance=importance), example_inputs=inputs)
    prune_(model, [FAMILIES["BERT"].batch()], rounds=1, reconstruct=False)
    compress_(model, inputs)
    assert importance != "activation" or model.config.num_hidden_layers == 4  # a block has no one input to watch


def test_a_stack_stays_whole_where_a_layer_of_it_is_excluded():
    model, inputs = wide()
    inject_(model, native("BERT", sparsity=0.3, exclude_modules=["query"]), example_inputs=inputs)
    assert [dial.fields for dial in injected_layout(model).dials] == [("intermediate_size",)]


def test_the_outer_model_keeps_what_was_set_on_it():
    family = FAMILIES["BERT"]
    model = hf.BertModel(build(family).config).eval()
    inputs = inputs_of(family)
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == 3  # transformers has set its hooks
    calls = []
    model.register_forward_hook(lambda m, args, output: calls.append(len(output.last_hidden_state)))
    inject_(model.train(), native("BERT"), example_inputs=inputs)
    update_(model, 0.45)
    compress_(model, inputs)
    assert model.training and every(module.training for module in model.modules())
    calls.clear()
    states = model.eval()(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == model.config.num_hidden_layers + 1 and calls == [4]


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_generation_with_a_cache(name):
    model, prompt = packed(name), {k: v[:2] for k, v in inputs_of(FAMILIES[name]).items()}
    tokens = [
        model.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=c)
        for c in (True, False)
    ]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("name", ["BERT", "Llama"])
def test_the_density_map_counts_what_is_left_before_and_after(name):
    dense, left = count_parameters(build(FAMILIES[name])), count_parameters(packed(name))
    for model in (masked(name), packed(name)):
        found = density(model)
        assert (found.dense_parameters, found.parameters) == (dense, left)
    assert {layer.name for layer in density(masked(name)).layers} >= {"BERT": {"bert.pooler.dense"}, "Llama": set()}[
        name
    ]


class TestTrainer:
    """A ViT: transformers names its modules otherwise in files than in memory."""

    CONFIG = native("ViT", regrow=0.5, updates=6)

    def trainer(self, folder: Path, *callbacks, **changes) -> hf.Trainer:
        batch = FAMILIES["ViT"].batch()
        samples = [{key: tensor[i] for key, tensor in batch.items()} for i in range(len(batch["labels"]))]
        settings = {
            "max_steps": 20, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": "none",
            "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False, "save_steps": 5,
        } | changes  # fmt: skip
        callbacks = [DendriticCallback(self.CONFIG), *callbacks]
        arguments = hf.TrainingArguments(str(folder), **settings)
        return hf.Trainer(build(FAMILIES["ViT"]), arguments, train_dataset=samples, callbacks=callbacks)

    def test_resumed_equals_uninterrupted_and_checkpoints_load(self, tmp_path):
        class Stop(hf.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop |= state.global_step == 10

        whole = self.trainer(tmp_path / "whole")
        whole.train()
        self.trainer(tmp_path / "parts", Stop()).train()
        checkpoint = tmp_path / "parts" / "checkpoint-10"
        loaded = hf.ViTForImageClassification.from_pretrained(checkpoint)
        assert isinstance(loaded.get_submodule("vit.layers"), DendriticStack)
        assert (
            injected_layout(loaded).dials
            and json.loads((checkpoint / "config.json").read_text())["quantization_config"]
        )
        resumed = self.trainer(tmp_path / "parts")
        resumed.train(resume_from_checkpoint=str(checkpoint))
        expected, found = whole.model.state_dict(), resumed.model.state_dict()
        assert expected.keys() == found.keys() and not any("dendrite" in key for key in found)
        assert every(torch.equal(tensor, found[key]) for key, tensor in expected.items())
        before = injected_layout(self.trainer(tmp_path / "new").model)
        left = sum(p.numel() for n in layout_of(whole.model).modules for p in whole.model.get_submodule(n).parameters())
        assert left <= (1 - self.CONFIG.sparsity) * before.dense_cost
        whole.save_model(str(tmp_path / "small"))
        assert "quantization_config" not in json.loads((tmp_path / "small" / "config.json").read_text())
        again = hf.ViTForImageClassification.from_pretrained(tmp_path / "small")
        assert close(logits(again, inputs_of(FAMILIES["ViT"])), logits(whole.model, inputs_of(FAMILIES["ViT"])))

    def test_a_checkpoint_from_mid_training_packs_as_the_model_in_memory(self, tmp_path):
        model, inputs = masked("Llama"), inputs_of(FAMILIES["Llama"])
        model.save_pretrained(tmp_path)
        loaded = hf.LlamaForCausalLM.from_pretrained(tmp_path)
        assert injected_layout(loaded) == injected_layout(model)
        compress_(loaded, inputs)
        expected = packed("Llama").state_dict()
        assert every(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
        assert "quantization_config" not in loaded.config.to_dict()


class TestRefusal:
    def test_a_model_whose_config_says_none_of_it_stays_as_it_was(self):
        family = FAMILIES["ResNet"]
        model = build(family)
        before, modules = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
        config, expected = model.config.to_dict(), logits(model, inputs_of(family))
        with pytest.raises(DendriticError, match=r"^native = True: no number in ResNetConfig says"):
            inject_(model, native("ResNet"), example_inputs=inputs_of(family))
        assert layout_of(model) is None and [type(m) for m in model.modules()] == modules
        assert model.config.to_dict() == config and torch.equal(logits(model, inputs_of(family)), expected)
        assert every(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules())

    def test_too_much(self):
        model, inputs = wide()
        with pytest.raises(DendriticError, match="^sparsity = 0.99"):
            inject_(model, native("BERT", sparsity=0.99), example_inputs=inputs)
        assert layout_of(model) is None and not any(m._forward_hooks for m in model.modules())

    def test_masks_that_are_not_uniform(self):
        model = copy.deepcopy(masked("BERT"))
        reader = injected_layout(model).dials[0].members[0]
        mask = model.get_submodule(reader).dendrite_mask
        mask[0] = ~mask[0]
        mask[0, 0] = True
        count, expected = int(mask.sum()), logits(model, inputs_of(FAMILIES["BERT"]))
        assert count != int(model.get_submodule(injected_layout(model).dials[0].members[1]).dendrite_mask.sum())
        with pytest.raises(DendriticError, match="must be the same in all layers"):
            compress_(model, inputs_of(FAMILIES["BERT"]))
        assert not layout_of(model).packed and expected.shape == logits(model, inputs_of(FAMILIES["BERT"])).shape

    @pytest.mark.parametrize("field", ["arbors", "sprout_rank"])
    def test_what_no_stock_config_can_say(self, field):
        with pytest.raises(DendriticError, match=f"^{field} = 4: a stock config cannot"):
            DendriticConfig(native=True, **{field: 4})

    def test_native_is_a_flag(self):
        with pytest.raises(DendriticError, match="^native = 'yes'"):
            DendriticConfig(native="yes")
