"""Dials are found by turning the numbers of a config: single ones, several together, one that is None, lists beside."""

import copy
import logging

import pytest
import torch
import transformers as hf
from helpers.compare import every
from helpers.families import ALL, GROUPED, TEXT, build, inputs_of
from helpers.models import roughen
from torch import nn

from optimum.dendritic import DendriticConfig, DendriticError, inject_
from optimum.dendritic.state import injected_layout
from optimum.dendritic.stock_config.fields import UnsupportedConfig, changed, fields_of
from optimum.dendritic.stock_config.models import assemble, same_blocks, shapes, skeleton
from optimum.dendritic.stock_config.sharpen import sharpened

FAMILIES = {family.name: family for family in ALL}
IDS = {"input_ids": torch.arange(5)[None]}


def found(model: nn.Module, inputs=IDS, **fields) -> dict[tuple[str, ...], tuple]:
    """Fields -> (number of members, counts, lists) of each dial."""
    torch.manual_seed(0)
    inject_(roughen(model), DendriticConfig(sparsity=0.1, native=True, floor=0.0, **fields), example_inputs=inputs)
    return {dial.fields: (len(dial.members), dial.counts, dial.lists) for dial in injected_layout(model).dials}


def test_a_width_that_is_none_until_it_is_set():
    model = hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0)
    )
    assert model.config.n_inner is None
    assert found(model) == {("n_inner",): (2, (), ()), ("n_layer",): (1, (), ())}


def test_heads_whose_number_the_config_restricts():
    """Llama wants hidden_size to be a multiple of its heads, so that three of four cannot stay."""
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT | {"num_key_value_heads": 4, "head_dim": 4}))
    assert found(model)[("num_attention_heads", "num_key_value_heads")] == (2, (1, 2, 4), ())


def test_lists_with_an_entry_for_each_layer_lose_them_with_it():
    model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**TEXT | GROUPED))
    assert found(model)[("num_hidden_layers",)] == (1, (), ("layer_types",))


@pytest.mark.slow
def test_numbers_of_a_config_inside_the_config():
    family = FAMILIES["CLIP vision"]
    dials = found(build(family), inputs_of(family))
    assert set(dials) == {("vision_config.intermediate_size",), ("vision_config.num_hidden_layers",)}


def test_blocks_that_are_not_made_alike_cannot_go():
    """A window that a short input does not show: every third layer of a ModernBERT sees everything, the others not."""
    family = FAMILIES["ModernBERT"]
    config = copy.deepcopy(build(family).config)
    config.num_hidden_layers, config.layer_types = 3, ["full_attention", "sliding_attention", "sliding_attention"]
    assert set(found(type(build(family))(config), inputs_of(family))) == {("intermediate_size",)}


def test_a_number_that_says_more_than_the_tensors_is_no_dial():
    """Attention that is scaled by the index of its layer: a later block is another one when one before it goes."""
    config = hf.GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=3, n_head=2, n_inner=12, bos_token_id=0)
    config.scale_attn_by_inverse_layer_idx = True
    assert set(found(hf.GPT2LMHeadModel(config))) == {("n_inner",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet", "Swin"])
def test_no_dial_at_all(name):
    with pytest.raises(
        DendriticError, match=f"native = True: no number in {type(build(FAMILIES[name]).config).__name__}"
    ):
        found(build(FAMILIES[name]), inputs_of(FAMILIES[name]))


def test_a_model_without_a_config_or_unlike_it():
    with pytest.raises(DendriticError, match="a Sequential has no config"):
        found(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 2)), {"input": torch.ones(1, 4)})
    model = build(FAMILIES["BERT"])
    model.classifier = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 3))
    with pytest.raises(DendriticError, match="layers were changed after it was made"):
        found(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_enlarged_for_the_trial_and_then_as_they_were(dtype):
    """Also where something is raised meanwhile, and for numbers at the ends of what the dtype holds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 4)).to(dtype)
    with torch.no_grad():
        model[0].weight.mul_(1e-3)[0, :2] = torch.tensor([torch.finfo(dtype).smallest_normal / 4, 0.0], dtype=dtype)
        model[1].weight.zero_()[0, 0] = 1
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), sharpened(model):
        norm = model[0].weight.float().norm()
        assert 1 < norm / 64**0.5 < 4 and every(tensor.isfinite().all() for tensor in model.state_dict().values())
        raise KeyboardInterrupt
    assert every(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class TestVanilla:
    def test_a_changed_config_is_a_copy_that_reads_back(self):
        config = build(FAMILIES["Llama"]).config
        config.quantization_config = {"quant_method": "optimum-dendritic"}
        new = changed(config, {"intermediate_size": 7})
        assert (new.intermediate_size, config.intermediate_size) == (7, 24)
        assert "quantization_config" not in new.to_dict() and new._attn_implementation == config._attn_implementation
        for values in ({"num_attention_heads": 3}, {"intermediate_size": "7"}, {"nothing": 1}, {"vocab_size.inner": 1}):
            with pytest.raises(UnsupportedConfig):
                changed(config, values)

    def test_fields_are_of_the_architecture(self):
        numbers = fields_of(build(FAMILIES["CLIP vision"]).config, int)
        assert {"vision_config.intermediate_size", "vision_config.patch_size"} <= set(numbers)
        assert "dtype" not in fields_of(build(FAMILIES["BERT"]).config, type(None))

    def test_a_skeleton_is_silent_and_holds_no_memory(self, recwarn):
        torch.manual_seed(0)
        before, verbosity = torch.random.get_rng_state(), hf.logging.get_verbosity()
        model = build(FAMILIES["BERT"])
        empty = skeleton(model, changed(model.config, {"intermediate_size": 1}))
        assert every(p.is_meta for p in empty.parameters()) and not recwarn.list
        assert torch.equal(torch.random.get_rng_state(), before) and hf.logging.get_verbosity() == verbosity
        assert logging.getLogger("transformers").isEnabledFor(logging.WARNING)

    def test_assembled_on_the_same_tensors(self):
        model = build(FAMILIES["GPT-2"])
        stock = assemble(model, changed(model.config, {"n_layer": 1}), {"transformer.h": [1]})
        assert stock.lm_head.weight is stock.transformer.wte.weight is model.transformer.wte.weight
        assert stock.transformer.h[0].mlp.c_fc.weight is model.transformer.h[1].mlp.c_fc.weight
        assert shapes(stock).keys() < shapes(model).keys() and same_blocks(model, stock, {"transformer.h": [1]})
        with pytest.raises(UnsupportedConfig, match="does not fit"):
            assemble(model, changed(model.config, {"n_inner": 5}))
