"""The density map: its counts are those of the tensors, and its places those of the masks and indices."""

import copy

import pytest
import torch
from helpers.checkpoints import pruned, saved
from helpers.compare import every
from helpers.models import build
from transformers import AutoModelForCausalLM

from optimum.dendritic import DendriticError, compress_, describe
from optimum.dendritic.inspection.density import Density, density
from optimum.dendritic.nn import DendriticWeight
from optimum.dendritic.state import dendritic_layers, gates_of

NAMES = ["bert", "gpt2", "resnet_basic", "grouped_cnn", "concat_mlp", "lstm"]


def consistent(found: Density) -> None:
    assert found.layers
    for layer in found.layers:
        for side in (layer.inputs, layer.outputs):
            assert 0 <= side.kept <= side.size
            if side.places is not None:
                assert len(side.places) == side.size and side.places.min() >= 0 and side.places.max() <= 1
                assert side.places.sum() == pytest.approx(side.kept, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "resnet_basic"])
def test_what_goes_with_a_stream_is_counted_before_it_is_packed(name: str):
    model, dense, inputs = pruned(name, units="structured")
    before = density(model)
    after = density(compress_(model, inputs), dense)
    assert before.parameters == after.parameters == sum(p.numel() for p in model.parameters())
    assert before.dense_parameters == after.dense_parameters
    assert before.groups == after.groups
    gates = gates_of(pruned(name, units="structured")[0]).values()
    counts = sorted((gate.dendrite_mask.numel(), int(gate.dendrite_mask.sum())) for gate in gates)
    assert counts == sorted((each.units, each.kept) for each in after.groups)
    assert "streams" in {each.kind for each in after.groups}
    assert len({(each.kind, each.first) for each in after.groups}) == len(after.groups)


@pytest.mark.slow
@pytest.mark.parametrize("arbors", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_an_injected_model_shows_what_it_will_be_packed_to(name: str, arbors: int):
    model, dense, inputs = pruned(name, arbors=arbors)
    before = density(model)
    consistent(before)
    assert not before.packed and before.dense_parameters == sum(p.numel() for p in dense.parameters())
    after = density(compress_(model, inputs), dense)
    consistent(after)
    assert after.packed and after.dense_parameters == before.dense_parameters
    assert after.parameters == sum(p.numel() for p in model.parameters())
    assert after.target_parameters() == before.target_parameters()
    for old, new in zip(before.layers, after.layers, strict=True):
        assert (old.name, old.parameters, old.dense_parameters) == (new.name, new.parameters, new.dense_parameters)
        assert new.parameters == sum(p.numel() for p in model.get_submodule(new.name).parameters())
        assert (old.inputs.kept, old.outputs.kept) == (new.inputs.kept, new.outputs.kept)
        assert (old.inputs.size, old.outputs.size) == (new.inputs.size, new.outputs.size)
        assert old.inputs.places is not None and old.outputs.places is not None
        for places, others in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
            assert places.places is not None
            assert others.places is None or torch.equal(others.places, places.places)
        assert new.words == describe(model)[new.name]


def test_the_places_are_those_of_the_mask_and_the_model_is_left_alone():
    model, _, _ = pruned("gpt2", arbors=2)
    tensors, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    found = {layer.name: layer for layer in density(model).layers}
    for name, layer in dendritic_layers(model).items():
        assert isinstance(layer, DendriticWeight)
        shares = layer.dendrite_mask.float().mean(0).repeat_interleave(layer.segment_size)
        places = found[name].inputs.places
        assert places is not None and torch.equal(places, shares)
    rows = found["transformer.h.0.attn.c_attn"].outputs
    heads = found["transformer.h.0.attn.c_proj"].inputs.places
    assert rows.places is not None and heads is not None
    assert torch.equal(rows.places, (heads > 0).float().repeat(3)), "a head is gone from queries, keys and values alike"
    assert torch.equal(random, torch.random.get_rng_state())
    assert every(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_a_loaded_model_shows_the_same(tmp_path):
    model, _ = saved(tmp_path, "llama", "packed")
    random = torch.random.get_rng_state()
    found = density(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert torch.equal(random, torch.random.get_rng_state())
    assert found.to_dict() == density(model).to_dict() and found.packed
    assert found.untouched == ("lm_head",)


def test_a_stock_model_is_untouched():
    model, _ = build("bert")
    found = density(model)
    assert found.layers == () and len(found.untouched) == 14
    assert found.parameters == found.dense_parameters == sum(p.numel() for p in model.parameters())


def test_a_packed_module_of_ones_own_needs_its_dense_twin():
    model, dense, inputs = pruned("plain_cnn")
    compress_(model, inputs)
    with pytest.raises(DendriticError, match="only a PreTrainedModel tells its dense shapes once packed. Pass dense="):
        density(model)
    with torch.device("meta"):
        shapes = type(dense)()
    assert density(model, shapes).to_dict() == density(model, dense).to_dict()


def test_sprouts_count():
    model, dense, inputs = pruned("residual_mlp", sprout_rank=1, segment_size=2)
    assert density(model).dense_parameters == sum(p.numel() for p in dense.parameters())
    expected = density(model).target_parameters()
    assert density(compress_(model, inputs), dense).target_parameters() == expected
