"""The embedding as two factors: the same model at full rank, a group of its own, counted against what the user had."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.models import build, outputs, roughen
from helpers.processes import environment
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
)

from optimum.dendritic import (
    CheckpointError,
    DendriticConfig,
    DendriticError,
    compress_,
    describe,
    export_onnx,
    from_config,
    inject_,
    load,
    prune_,
    save,
    update_,
)
from optimum.dendritic.efficiency.size import count_parameters
from optimum.dendritic.inspection.density import density
from optimum.dendritic.nn import FactoredEmbedding
from optimum.dendritic.runtimes.gguf import export_gguf
from optimum.dendritic.runtimes.vllm import export_vllm
from optimum.dendritic.state import layout_of
from optimum.dendritic.train_steps import initial_sparsity, pruning_of

WORDS = "bert.embeddings.word_embeddings"
FIELDS = {"units": "structured", "floor": 0.0, "importance": "random"}


def config(rank=8, sparsity=0.5, **fields):
    return DendriticConfig(sparsity=sparsity, scope="model", embedding_rank=rank, **{**FIELDS, **fields})


def factored(name="bert", **fields):
    """An injected model, the dense one and inputs."""
    model, inputs = build(name)
    dense = copy.deepcopy(model)
    return inject_(model, config(**fields), example_inputs=inputs), dense, inputs


def pruned(name="bert", **fields):
    model, dense, inputs = factored(name, **fields)
    update_(model, model.dendritic_layout.sparsity)
    return model, dense, inputs


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("counts", [None, torch.arange(50)])
def test_at_full_rank_it_is_the_same_model(name, counts):
    model, inputs = build(name)
    expected = outputs(model, inputs)
    inject_(model, config(rank=16), example_inputs=inputs, token_counts=counts)
    assert isinstance(model.get_input_embeddings(), FactoredEmbedding)
    torch.testing.assert_close(outputs(model, inputs), expected, atol=1e-4, rtol=1e-4)


def test_the_tokens_that_occur_lose_least_whatever_the_scale_of_the_counts():
    words = build("bert")[0].get_submodule(WORDS).weight
    counts = torch.zeros(len(words))
    counts[:8] = 1e6
    found = []
    for scale in (1, 1000):
        model, inputs = build("bert")
        inject_(model, config(), example_inputs=inputs, token_counts=counts * scale)
        found.append(model.get_submodule(WORDS).merged())
    lost = (found[0] - words).norm(dim=1) / words.norm(dim=1)
    assert lost[:8].max() < 0.05 < lost[8:].mean()
    torch.testing.assert_close(found[1][:8], found[0][:8], atol=1e-3, rtol=1e-3)


def test_the_budget_is_a_share_of_the_model_that_was():
    model, dense, inputs = factored(sparsity=0.6)
    layout, total = layout_of(model), count_parameters(dense)
    assert layout.dense_cost == total and layout.factored == {WORDS: 8}
    assert initial_sparsity(model) == pytest.approx(1 - count_parameters(model) / total)
    assert pruning_of(model).sparsity == initial_sparsity(model)
    before = density(model)
    assert (before.dense_parameters, before.parameters) == (total, count_parameters(model))
    prune_(model, [{**inputs, "labels": torch.zeros(2, dtype=torch.long)}], reconstruct=False)
    found, due = pruning_of(model).sparsity, density(model)
    compress_(model, inputs)
    left = count_parameters(model)
    assert 0.6 <= found == 1 - left / total < 0.65
    for told in (due, density(model)):
        assert (told.dense_parameters, told.parameters) == (total, left)
    assert density(model, dense).dense_parameters == total


@pytest.mark.parametrize("target", [{"parameters": 2000}, {"megabytes": 0.02}, {"sparsity": 0.5, "budget": "macs"}])
def test_other_targets_are_met(target):
    model, inputs = build("bert")
    scope = {"scope": "model"} if "sparsity" in target else {}
    inject_(model, DendriticConfig(embedding_rank=8, **target, **scope, **FIELDS), example_inputs=inputs)
    dense = build("bert")[0]
    inject_(dense, DendriticConfig(**target, **scope, **FIELDS), example_inputs=inputs)
    header = 400 if "megabytes" in target else 0
    assert layout_of(model).dense_cost == pytest.approx(layout_of(dense).dense_cost, abs=header)
    update_(model, layout_of(model).sparsity)
    compress_(model, inputs)
    assert "parameters" not in target or count_parameters(model) <= 2000


@pytest.mark.parametrize("units", ["structured", "fine", ["heads"]])
def test_masked_is_packed_and_loads_in_another_process(tmp_path, units):
    model, _, inputs = pruned(units=units, sparsity=0.3)
    expected = outputs(model, inputs)
    model.save_pretrained(tmp_path / "injected")
    (group,) = [g for g in layout_of(model).groups if g.host == f"{WORDS}.up"] if units == "structured" else [None]
    assert group is None or (group.cut and [member.name for member in group.producers] == [f"{WORDS}.table"])
    compress_(model, inputs)
    torch.testing.assert_close(outputs(model, inputs), expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "packed")
    for form, answer in (("injected", expected), ("packed", outputs(model, inputs))):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / form)
        assert torch.equal(outputs(loaded, inputs), answer)
    if units != "structured":
        return
    torch.save((inputs, expected, outputs(model, inputs)), tmp_path / "expected.pt")
    code = (
        "import sys, torch, optimum.dendritic\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        "inputs, masked, packed = torch.load(sys.argv[1] + '/expected.pt')\n"
        "for form, answer in (('injected', masked), ('packed', packed)):\n"
        "    model = Auto.from_pretrained(f'{sys.argv[1]}/{form}')\n"
        "    assert torch.equal(model(**inputs).logits, answer), form\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment())


def test_a_checkpoint_loads_as_its_body_and_goes_on_being_pruned(tmp_path):
    model, _, inputs = pruned(sparsity=0.4)
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    assert layout_of(body).factored == {WORDS.removeprefix("bert."): 8}
    assert torch.equal(body(**inputs)[0], model.bert(**inputs)[0])
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert layout_of(again) == layout_of(model)
    compress_(update_and_return(again, 0.6), inputs)
    assert count_parameters(again) <= 0.4 * layout_of(again).dense_cost


def update_and_return(model, sparsity):
    update_(model, sparsity)
    return model


def test_a_new_model_of_a_packed_config_has_its_shapes(tmp_path):
    model, _, inputs = pruned()
    compress_(model, inputs)
    model.save_pretrained(tmp_path)
    found = from_config(AutoConfig.from_pretrained(tmp_path))
    assert {n: t.shape for n, t in found.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert outputs(found, inputs).isfinite().all()


class Bag(nn.Module):
    """A mean of embeddings and two layers: no `PreTrainedModel`."""

    def __init__(self, more=False):
        super().__init__()
        self.words, self.first, self.last = nn.Embedding(40, 12, padding_idx=0), nn.Linear(12, 20), nn.Linear(20, 3)
        self.more = nn.Embedding(4, 12) if more else None

    def forward(self, ids):
        return self.last(torch.relu(self.first(self.words(ids).mean(1))))


def test_a_module_of_ones_own_is_factored_saved_and_loaded(tmp_path):
    dense, inputs = roughen(Bag()), {"ids": torch.randint(1, 40, (4, 6))}
    model = inject_(copy.deepcopy(dense), config(rank=5, sparsity=0.6), example_inputs=inputs)
    assert layout_of(model).dense_cost == count_parameters(dense) and model.words.padding_idx == 0
    update_(model, 0.6)
    for form in ("injected", "packed"):
        save(model, tmp_path / form)
        loaded = load(tmp_path / form, dense)
        assert torch.equal(outputs(loaded, inputs), outputs(model, inputs))
        compress_(model, inputs) if form == "injected" else None
    with pytest.raises(DendriticError, match="has no input embedding, or several"):
        inject_(Bag(more=True), config(rank=5), example_inputs=inputs)


@pytest.mark.parametrize(
    ("name", "rank", "message"),
    [
        ("gpt2", 8, "transformer.wte shares its weight with lm_head.weight"),
        ("t5", 8, "shares its weight with"),
        ("vit", 8, "has no input embedding|is a "),
        ("bert", 17, "has 50 rows of 16, whose factors have a rank from 1 to 16"),
        ("bert", 1, "removes 0.* of the params alone"),
    ],
)
def test_what_cannot_be_two_factors_is_refused_and_stays(name, rank, message):
    model, inputs = build(name)
    before, modules = copy.deepcopy(model.state_dict()), [*model.modules()]
    with pytest.raises(DendriticError, match=message):
        inject_(model, config(rank=rank, sparsity=0.05), example_inputs=inputs)
    assert [*model.modules()] == modules and layout_of(model) is None
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("counts", [torch.ones(49), -torch.ones(50), torch.full((50,), torch.nan), "many"])
def test_counts_that_are_not_those_of_the_tokens_are_refused(counts):
    model, inputs = build("bert")
    with pytest.raises(DendriticError, match="token_counts"):
        inject_(model, config(), example_inputs=inputs, token_counts=counts)
    with pytest.raises(DendriticError, match="token_counts .* keeps its form"):
        inject_(model, DendriticConfig(), example_inputs=inputs, token_counts=torch.ones(50))
    assert type(model.get_input_embeddings()) is nn.Embedding


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "embedding_rank = 8: pays out of the budget of the whole model, and scope = 'targets'"),
        ({"scope": "model", "native": True}, "embedding_rank = 8: a stock config cannot express it"),
        ({"speedup": 2.0}, "embedding_rank = 8: has no measured price"),
    ],
)
def test_configs_that_it_contradicts_are_refused(fields, message):
    with pytest.raises(DendriticError, match=message):
        DendriticConfig(embedding_rank=8, **fields)
    with pytest.raises(DendriticError, match="embedding_rank = 0: must be an integer of at least 1"):
        DendriticConfig(embedding_rank=0, scope="model")


def test_its_table_cannot_be_resized_or_tied(tmp_path):
    model, _, inputs = pruned()
    with pytest.raises(DendriticError, match="has no table that could be read, resized or tied"):
        model.resize_token_embeddings(60)
    compress_(model, inputs)
    model.save_pretrained(tmp_path)
    with pytest.raises(DendriticError, match="shares its weight with"):
        BertForMaskedLM.from_pretrained(tmp_path)


def test_hooks_on_the_embedding_stay():
    model, inputs = build("bert")
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[2].shape))
    inject_(model, config(), example_inputs=inputs)
    seen.clear()
    outputs(model, inputs)
    assert seen == [(2, 6, 16)]
    handle.remove()
    outputs(model, inputs)
    assert len(seen) == 1


def test_it_is_described_as_what_it_is():
    model, _, inputs = pruned(sparsity=0.6)
    compress_(model, inputs)
    kept = model.get_submodule(f"{WORDS}.table").embedding_dim
    assert describe(model)[f"{WORDS}.up"].startswith(f"plain: {kept} -> ") and kept < 8


HOSTILE = [
    ("rank", {WORDS: 7}, "must be one embedding of embedding_rank = 8"),
    ("nothing", {}, "must be one embedding of embedding_rank = 8"),
    ("two", {WORDS: 8, "bert.embeddings.position_embeddings": 8}, "must be one embedding"),
    ("another", {"bert.embeddings.position_embeddings": 8}, "is not the input embedding"),
    ("a layer", {"bert.pooler.dense": 8}, "is not the input embedding"),
    ("unknown", {"code": 8}, "is not a module of"),
    ("no number", {WORDS: "8"}, "must be an integer"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, _, inputs = pruned()
    compress_(model, inputs)
    model.save_pretrained(place := tmp_path_factory.mktemp("packed"))
    return place


def edited(folder, place, **fields):
    shutil.copytree(folder, place, dirs_exist_ok=True)
    written = json.loads((place / "config.json").read_text())
    layout = written["quantization_config"]
    config = layout["config"] | {name: fields.pop(name) for name in [*fields] if name in layout["config"]}
    written["quantization_config"] = layout | fields | {"config": config}
    (place / "config.json").write_text(json.dumps(written))
    return place


@pytest.mark.parametrize(("factors", "message"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_a_layout_that_lies_is_refused(folder, tmp_path, factors, message):
    place = edited(folder, tmp_path, factored=factors)
    with pytest.raises(CheckpointError, match=message):
        AutoModelForSequenceClassification.from_pretrained(place)


@pytest.mark.parametrize(
    ("rank", "message"), [(2**31 - 1, "rank from 1 to 16"), (16, None), (None, "must be one embedding")]
)
def test_a_rank_asks_for_no_more_memory_than_the_table(folder, tmp_path, rank, message):
    place = edited(folder, tmp_path, factored={WORDS: rank or 8}, embedding_rank=rank)
    if message is None:  # wider factors of which the same columns are left
        AutoModelForSequenceClassification.from_pretrained(place)
        return
    with pytest.raises(CheckpointError, match=message):
        AutoModelForSequenceClassification.from_pretrained(place)


@pytest.mark.parametrize("factor", ["table", "up"])
@pytest.mark.parametrize("loaded_as", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_factors_that_are_not_in_the_file_are_not_left_at_random(tmp_path, factor, loaded_as):
    model, _, inputs = pruned(units=["heads"], sparsity=0.3)  # the table has no record of its own once packed
    compress_(model, inputs)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"{WORDS}.{factor}.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{factor}\.weight"):
        loaded_as.from_pretrained(tmp_path)


@pytest.mark.slow
def test_it_exports_to_onnx(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    model, (_, inputs) = AutoModelForSequenceClassification.from_pretrained(folder), build("bert")
    export_onnx(model, inputs, tmp_path)  # which runs the graph beside the model


def test_files_for_llama_cpp_and_vllm_have_one_table(tmp_path):
    gguf = pytest.importorskip("gguf")
    model, _, inputs = pruned("llama", sparsity=0.3, units=["neurons", "streams"])
    compress_(model, inputs)
    table = model.get_input_embeddings().merged()
    export_vllm(model, tmp_path / "vllm")
    (file,) = (tmp_path / "vllm").glob("*.safetensors")
    assert torch.equal(load_file(file)["model.embed_tokens.weight"], table)
    export_gguf(model, tmp_path / "model.gguf", dtype="f32")
    (found,) = [t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors if t.name == "token_embd.weight"]
    torch.testing.assert_close(torch.from_numpy(found.data.copy()).view_as(table), table.detach())
