"""Whole blocks as units, without `native`: what stands in their place, what it costs, what is refused."""

import json

import pytest
import torch
from helpers.models import backward, build, outputs
from torch import nn
from transformers import BertForSequenceClassification, LlamaForCausalLM

from optimum.dendritic import (
    CheckpointError,
    DendriticConfig,
    DendriticError,
    compress_,
    describe,
    inject_,
    load,
    mask_,
    prune_,
    save,
    score_,
    update_,
)
from optimum.dendritic.efficiency.size import count_parameters
from optimum.dendritic.functional.selection import total_cost
from optimum.dendritic.nn import SkippedBlock
from optimum.dendritic.state import gates_in, injected_layout, layers_in, layout_of
from optimum.dendritic.structure.model_costs import layer_costs

UNITS = ("heads", "neurons", "streams", "blocks")


def without_block(name: str, stack: str, block: int, **fields):
    """A model that skips one block, and something of all else, still injected."""
    model, inputs = build(name)
    fields = {"sparsity": 0.0, "units": UNITS, "scope": "model", "floor": 0.0} | fields
    inject_(model.eval(), DendriticConfig(**fields), example_inputs=inputs)
    layout = injected_layout(model)
    for gate in gates_in(model, layout, layers_in(model, layout)).values():
        gate.dendrite_mask[:, 1] = False
    model.get_submodule(stack).dendrite_mask[:] = torch.arange(2) != block
    mask_(model)
    return model, inputs


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(("name", "stack"), [("bert", "bert.encoder.layer"), ("gpt2", "transformer.h")])
def test_the_packed_model_has_no_part_of_the_block_and_costs_what_was_counted(name, stack, block):
    model, inputs = without_block(name, stack, block)
    expected, masks = (
        outputs(model, inputs),
        {n: m.dendrite_mask for n, m in layers_in(model, layout_of(model)).items()},
    )
    cost = total_cost({n: mask for n, mask in masks.items() if mask.numel()}, layer_costs(model))
    compress_(model, inputs)
    assert torch.allclose(outputs(model, inputs), expected, atol=1e-5)
    assert isinstance(model.get_submodule(f"{stack}.{block}"), SkippedBlock)
    assert not any(name.startswith(f"{stack}.{block}.") for name in model.state_dict())
    assert describe(model)[f"{stack}.{block}"] == "skipped: returns what it is given"
    assert count_parameters(model) == cost
    left = {each.kind: each for each in layout_of(model).left}["blocks"]
    assert (left.kept, left.units, left.first) == (1, 2, f"{stack}.0")


def test_a_model_without_its_first_block_generates_with_a_cache(tmp_path):
    model, inputs = without_block("llama", "model.layers", 0)
    compress_(model, inputs).save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    said = [m.generate(inputs["input_ids"], max_new_tokens=6, do_sample=False, use_cache=m is loaded, pad_token_id=0)
            for m in (model, loaded)]  # fmt: skip
    assert torch.equal(*said)


def test_gates_are_closed_where_scores_say_so_and_hooks_are_gone():
    model, inputs = build("bert")
    inject_(model.eval(), DendriticConfig(sparsity=0.4, units=["blocks"]), example_inputs=inputs)
    stack = model.bert.encoder.layer
    backward(model, inputs)
    score_(model)
    assert (stack.dendrite_score > 0).all()
    stack.dendrite_score[0, 0] = 0
    update_(model, 0.4)
    assert stack.skipped() == [0]
    compress_(model, inputs)
    assert type(model.bert.encoder.layer) is nn.ModuleList
    assert not any(module._forward_hooks for module in model.bert.encoder.layer)


def test_one_shot_pruning_can_take_blocks():
    model, inputs = build("vit")
    inject_(model, DendriticConfig(sparsity=0.2, units=["blocks"], scope="model"), example_inputs=inputs)
    prune_(model, [inputs | {"labels": torch.tensor([0, 1])}], rounds=1)
    compress_(model, inputs)
    assert sum(isinstance(module, SkippedBlock) for module in model.modules()) == 1


class Counting(nn.Module):
    """Blocks whose second results are added up, so that nothing can stand in the place of one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Pair() for _ in range(2)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        extra = 0
        for block in self.blocks:
            x, more = block(x)
            extra = extra + more
        return self.head(x + extra)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + self.down(self.up(x).relu()), x.mean()


def test_a_stack_whose_blocks_are_needed_keeps_them():
    torch.manual_seed(0)
    model, inputs = Counting(), {"x": torch.randn(3, 8)}
    inject_(model, DendriticConfig(sparsity=0.0, units=["neurons", "blocks"]), example_inputs=inputs)
    assert "blocks" not in layout_of(model).modules


def test_a_plain_module_without_a_block_is_saved_and_loaded(tmp_path):
    class Plain(Counting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)[0]
            return self.head(x)

    torch.manual_seed(0)
    model, inputs = Plain().eval(), {"x": torch.randn(3, 8)}
    inject_(model, DendriticConfig(sparsity=0.0, units=["neurons", "blocks"]), example_inputs=inputs)
    model.blocks.dendrite_mask[0, 0] = False
    mask_(model)
    expected = model(**inputs)
    save(compress_(model, inputs), tmp_path)
    assert torch.allclose(load(tmp_path, Plain())(**inputs), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("record", "place", "said"),
    [
        ({"returns": 17}, "bert.encoder.layer.0", "must be from 0 to 16"),
        ({"returns": 0}, "bert.pooler.activation", "must be a block of a stack"),
        ({"returns": 0}, "bert.encoder.layer.1", "nothing is left within a block that is skipped"),
    ],
)
def test_a_layout_that_skips_what_it_may_not_is_refused(tmp_path, record, place, said):
    model, inputs = without_block("bert", "bert.encoder.layer", 0)
    compress_(model, inputs).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["modules"][place] = {"skipped": record}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        BertForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"speedup": 2.0}, "has no measured price"),
        ({"sparsity": 0.5, "dormant": 0.2}, "its model has one form"),
    ],
)
def test_what_does_not_go_with_blocks_is_refused(fields, said):
    with pytest.raises(DendriticError, match=said):
        DendriticConfig(units=["neurons", "blocks"], **fields)


def test_an_importance_that_needs_inputs_is_refused_with_blocks():
    model, inputs = build("bert")
    with pytest.raises(DendriticError, match="which 'activation' cannot score"):
        inject_(model, DendriticConfig(units=["blocks"], importance="activation"), example_inputs=inputs)
    assert layout_of(model) is None
