"""The width of the residual streams in a stock config: alone, or with the heads where it says no width of them."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import transformers as hf
from helpers.compare import every
from helpers.families import build, inputs_of
from helpers.families_training import close, logits
from helpers.native_models import FAMILIES, NativeModels
from helpers.sizes import TEXT
from helpers.stock_environment import answers_elsewhere, python_without_us
from safetensors.torch import load_file

from optimum.dendritic import (
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    compress_,
    describe,
    inject_,
    mask_,
    update_,
)
from optimum.dendritic.functional.selection import total_cost
from optimum.dendritic.nn.living_norm import LivingNorm
from optimum.dendritic.state import dendritic_layers, injected_layout, layout_of
from optimum.dendritic.stock_config.admission import admitted_together
from optimum.dendritic.structure.model_costs import layer_costs

pytestmark = pytest.mark.slow

ALONE = {("hidden_size",), ("num_attention_heads", "num_key_value_heads")}
WIDTHS = {  # the dials of widths beside that of the FFN
    "Llama": ALONE, "Qwen3": ALONE, "Mistral": ALONE, "Gemma": ALONE, "Gemma 2": ALONE,
    "BERT": {("hidden_size", "num_attention_heads")}, "ViT": {("hidden_size", "num_attention_heads")},
    "GPT-2": {("n_embd", "n_head")}, "OPT": {("hidden_size", "word_embed_proj_dim", "num_attention_heads")},
}  # fmt: skip
WITHOUT_FFN = {"units": ["heads", "streams"], "sparsity": 0.5}  # it is most of so small a Gemma, and goes first
FIELDS = {"Gemma": WITHOUT_FFN}


def native(name: str, **fields) -> DendriticConfig:
    given = {"sparsity": 0.7, "native": True, "units": "structured", "updates": 3, "floor": 0.0}
    return DendriticConfig(**{**given, **FIELDS.get(name, {}), **fields})


MODELS = NativeModels(native)
masked, packed = MODELS.masked, MODELS.packed


def dials(model: hf.PreTrainedModel) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {dial.fields: dial.counts for dial in injected_layout(model).dials}


def narrow(name: str, units: int) -> hf.PreTrainedModel:
    """A model of which nothing but the streams, with what goes with them, has lost so many units."""
    family = FAMILIES[name]
    model = inject_(build(family), native(name), example_inputs=inputs_of(family))
    (dial,) = (dial for dial in injected_layout(model).dials if dial.fields[0] in ("hidden_size", "n_embd"))
    masks = [model.get_submodule(member).dendrite_mask for member in dial.members]
    for mask in masks:
        mask[0, : units * mask.shape[1] // min(mask.shape[1] for mask in masks)] = False
    mask_(model)
    return model


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Every family's model in a folder, and what a process without this package answered with it."""
    folders = {name: tmp_path_factory.mktemp("width") / name for name in WIDTHS}
    python = python_without_us(tmp_path_factory.mktemp("stock") / "venv")
    found = answers_elsewhere(python, {folder: (packed(name), FAMILIES[name]) for name, folder in folders.items()})
    return {name: (folder, found[folder]) for name, folder in folders.items()}


@pytest.mark.parametrize("name", WIDTHS)
class TestEveryFamily:
    def test_the_dials(self, name):
        assert WIDTHS[name] < dials(masked(name)).keys()
        assert any(isinstance(module, LivingNorm) for module in masked(name).modules())

    def test_a_process_without_this_package_answers_as_the_packed_and_the_masked_model_here(self, saved, name):
        (folder, found), inputs = saved[name], inputs_of(FAMILIES[name])
        assert packed(name).config.hidden_size < 16
        assert close(found, logits(packed(name), inputs), rtol=1e-5)
        assert close(found, logits(copy.deepcopy(masked(name)), inputs), rtol=1e-4)
        config = json.loads((folder / "config.json").read_text())
        stock = build(FAMILIES[name]).config.to_dict()
        assert "quantization_config" not in config and config.keys() <= stock.keys() | {"architectures", "dtype"}
        assert not any("dendrite" in key for key in load_file(folder / "model.safetensors"))

    def test_the_width_alone(self, name):
        """Half of the streams, whatever the scores would have chosen; a head keeps its width."""
        model, inputs, dense = narrow(name, 8 if WIDTHS[name] is ALONE else 2), inputs_of(FAMILIES[name]), TEXT
        expected = logits(model, inputs)
        compress_(model, inputs)
        assert close(logits(model, inputs), expected, rtol=1e-4)
        config, own = model.config, model.config.to_dict()
        assert (config.hidden_size, own.get("head_dim", 4)) == (dense["hidden_size"] // 2, 4)
        assert config.num_attention_heads == (4 if WIDTHS[name] is ALONE else 2)
        assert every(words.startswith(("plain", "dense")) for words in describe(model).values())

    def test_what_was_tied_is_tied(self, name):
        tied = build(FAMILIES[name]).get_output_embeddings()
        dense = build(FAMILIES[name])
        if tied is None or dense.get_output_embeddings().weight is not dense.get_input_embeddings().weight:
            pytest.skip("its head has a weight of its own, or it has no tokens")
        small = packed(name)
        assert small.get_output_embeddings().weight is small.get_input_embeddings().weight

    def test_the_budget_is_met_within_one_step(self, name):
        model, layout = masked(name), injected_layout(masked(name))
        budget = (1 - layout.config.sparsity) * layout.dense_cost
        modules = [packed(name).get_submodule(n) for n in layout_of(packed(name)).modules]
        left = sum(p.numel() for m in modules for p in m.parameters())
        costs = layer_costs(model)
        masks = {n: layer.dendrite_mask for n, layer in dendritic_layers(model).items()}
        assert left == total_cost(masks, costs) <= budget
        room = []
        for dial in layout.dials:
            size = min(masks[member].shape[1] for member in dial.members)
            parts = {int(masks[member].sum()) * size / masks[member].shape[1] for member in dial.members}
            assert len(parts) == 1 and parts <= set(dial.counts or range(1, size + 1))
            (count,) = parts
            if count < size:
                more = min(c for c in dial.counts or range(size + 1) if c > count)
                wider = {
                    m: torch.arange(masks[m].shape[1])[None] < more * masks[m].shape[1] // size for m in dial.members
                }
                room.append(total_cost(masks | wider, costs) > budget)
        assert every(room)


def rows() -> dict[str, set[frozenset[str]]]:
    """The table of the documentation: the numbers of each dial of each family; N is that of a layer."""
    page = (Path(__file__).parents[1] / "docs" / "how_to" / "native.md").read_text()
    table = [row.strip("| ").split(" | ") for row in page.splitlines() if row.startswith("| ") and "`" in row]
    told = {families: numbers for families, numbers in table if "with `+`" not in numbers}
    return {
        family: {frozenset(part.strip("` ") for part in dial.split("+")) for dial in numbers.split(", ")}
        for families, numbers in told.items()
        for family in families.split(", ")
    }


@pytest.mark.parametrize("name", rows())
def test_the_table_of_the_documentation(name):
    family = FAMILIES[name]
    model = inject_(build(family), native(name, units="structured", sparsity=0.01), example_inputs=inputs_of(family))
    found = {frozenset(re.sub(r"\.\d+(?=\.|$)", ".N", field) for field in fields) for fields in dials(model)}
    assert found == rows()[name]


def test_streams_go_only_where_they_are_asked_for():
    for units, asked in (("fine", False), (["neurons", "streams"], True), ("structured", True)):
        family = FAMILIES["Llama"]
        model = inject_(build(family), native("Llama", units=units, sparsity=0.1), example_inputs=inputs_of(family))
        assert (("hidden_size",) in dials(model)) is asked


@pytest.mark.parametrize("name", ["query", "classifier"])
def test_a_layer_that_is_excluded_keeps_the_streams_as_they_are(name):
    """A classifier reads the pooler, which is as wide as they are."""
    family = FAMILIES["BERT"]
    model = inject_(
        build(family), native("BERT", sparsity=0.1, exclude_modules=[name]), example_inputs=inputs_of(family)
    )
    assert ("intermediate_size",) in dials(model) and not any("hidden_size" in fields for fields in dials(model))


def test_a_layer_that_is_a_target_for_the_width_of_its_inputs_alone():
    family = FAMILIES["BERT"]
    for units in ("fine", "structured"):
        model = inject_(build(family), native("BERT", units=units, sparsity=0.1), example_inputs=inputs_of(family))
        assert ("classifier" in dendritic_layers(model)) is (units == "structured")


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_is_scaled_by_the_root_of_the_width(tied):
    """What is loaded scales by the root of the new width: the ratio is in the table, and out of its head's norm."""
    family = FAMILIES["Gemma"]
    config = copy.deepcopy(build(family).config)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model, inputs = hf.GemmaForCausalLM(config), inputs_of(family)
    inject_(model, native("Gemma", sparsity=0.3), example_inputs=inputs)
    update_(model, 0.3)
    expected, before = logits(model, inputs), model.get_input_embeddings().weight
    compress_(model, inputs)
    small = model.get_input_embeddings()
    assert model.config.hidden_size < 16 and float(small.embed_scale) == pytest.approx(model.config.hidden_size**0.5)
    assert small.weight.abs().max() > before.abs().max()
    assert (model.get_output_embeddings().weight is small.weight) is tied
    assert close(logits(model, inputs), expected, rtol=1e-4)


def test_what_a_config_admits_of_two_dials_it_admits_of_both_at_once():
    """Llama wants a `hidden_size` that its heads divide: of 48 by 6 heads 42 can stay, but not with 4 heads."""
    heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 4, "hidden_size": 48}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT | heads))
    inject_(model, native("Llama", sparsity=0.1), example_inputs={"input_ids": torch.arange(5)[None]})
    found = dials(model)
    assert found[("num_attention_heads", "num_key_value_heads")] == (1, 2, 3, 4, 6)
    assert found[("hidden_size",)] == (12, 24, 36, 48)
    layout = injected_layout(model)
    units = {m: model.get_submodule(m).dendrite_mask.shape[1] for dial in layout.dials for m in dial.members}
    assert tuple(admitted_together(model.config, layout.dials, units)) == layout.dials


def test_a_width_that_follows_the_streams_until_it_is_set():
    """The neurons of a GPT-2 are four times its `n_embd` where `n_inner` is None, which is then a dial of its own."""
    model = hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=3, n_head=2, bos_token_id=0)
    )
    inject_(model, native("GPT-2", sparsity=0.1), example_inputs={"input_ids": torch.arange(5)[None]})
    assert dials(model).keys() == {("n_inner",), ("n_embd", "n_head"), ("n_layer",)}


def test_masks_that_are_not_the_same_part_of_every_member():
    model = copy.deepcopy(masked("BERT"))
    stream = model.get_submodule("bert.encoder.layer.0.attention.self.query").dendrite_mask
    stream[0, int(stream[0].nonzero()[0])] = False
    with pytest.raises(DendriticError, match="^hidden_size/num_attention_heads = .* must be the same in all layers"):
        compress_(model, inputs_of(FAMILIES["BERT"]))
    assert not layout_of(model).packed


@pytest.mark.parametrize("name", ["BERT", "Gemma"])
def test_a_checkpoint_from_mid_training_packs_as_the_model_in_memory(tmp_path, name):
    masked(name).save_pretrained(tmp_path)
    loaded = FAMILIES[name].load.from_pretrained(tmp_path)
    assert injected_layout(loaded) == injected_layout(masked(name))
    compress_(loaded, inputs_of(FAMILIES[name]))
    expected = packed(name).state_dict()
    assert every(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
    assert "quantization_config" not in loaded.config.to_dict()


@pytest.mark.parametrize("name", ["BERT", "Gemma"])
def test_resumed_equals_uninterrupted(tmp_path, name):
    class Stop(hf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 10

    def trainer(folder: Path, *callbacks: hf.TrainerCallback) -> hf.Trainer:
        batch = FAMILIES[name].batch()
        samples = [{key: tensor[i] for key, tensor in batch.items()} for i in range(len(batch["labels"]))]
        arguments = hf.TrainingArguments(
            str(folder), max_steps=20, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
            use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, save_steps=5,
        )  # fmt: skip
        callbacks = (DendriticCallback(native(name, regrow=0.5, updates=6)), *callbacks)
        return hf.Trainer(build(FAMILIES[name]), arguments, train_dataset=samples, callbacks=list(callbacks))

    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "parts", Stop()).train()
    resumed = trainer(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-10"))
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert whole.model.config.hidden_size < 16
    assert expected.keys() == found.keys() and not any("dendrite" in key for key in found)
    assert every(torch.equal(tensor, found[key]) for key, tensor in expected.items())
