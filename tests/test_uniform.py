"""Uniform selection: as many units in every member of a dial, the budget met within one rung of the finest dial."""

import dataclasses

import pytest
import torch
from helpers.compare import every
from hypothesis import given
from hypothesis import strategies as st

from optimum.dendritic.functional.costs import Block, LayerCost, Link
from optimum.dendritic.functional.other_costs import StackCost
from optimum.dendritic.functional.selection import total_cost
from optimum.dendritic.functional.uniform_selection import select_uniform
from optimum.dendritic.layout.records import Dial

WIDTH, DEPTH, HEADS = (
    Dial(fields=("width",), members=("0.down", "1.down", "2.down"), counts=(), lists=()),
    Dial(fields=("layers",), members=("stack",), counts=(), lists=()),
    Dial(fields=("heads",), members=("0.out", "1.out", "2.out"), counts=(1, 2, 4), lists=()),
)
OWN_WIDTHS = tuple(dataclasses.replace(WIDTH, fields=(member,), members=(member,)) for member in WIDTH.members)
NEURONS, BLOCKS, GROUPS = 12, 3, 4


def problem(seed: int, dials=(WIDTH, DEPTH, HEADS)):
    """Three blocks of a FFN (12 neurons) and four heads of 2; scores are random."""
    draw = torch.Generator().manual_seed(seed)
    masks, costs = {"stack": torch.ones(1, BLOCKS, dtype=torch.bool)}, {"stack": StackCost()}
    for i in range(BLOCKS):
        place = {"per_weight": 1, "per_row": 1, "block": Block("stack", i)}
        for reader, producer, units, size in (("down", "up", NEURONS, 1), ("out", "value", GROUPS, 2)):
            rows = torch.arange(units).repeat_interleave(size)
            costs[f"{i}.{reader}"] = LayerCost(rows=8, segment_size=size, **place)
            feeds = (Link(host=f"{i}.{reader}", segments=rows),)
            costs[f"{i}.{producer}"] = LayerCost(rows=units * size, segment_size=8, feeds=feeds, **place)
            masks[f"{i}.{reader}"] = torch.ones(1, units, dtype=torch.bool)
            masks[f"{i}.{producer}"] = torch.ones(1, 1, dtype=torch.bool)
    scores = {name: torch.rand(mask.shape, generator=draw) for name, mask in masks.items()}
    return scores, masks, costs, dials


def counts(masks, dial) -> set[int]:
    return {int(masks[member].sum()) for member in dial.members}


@pytest.mark.slow
@given(st.integers(0, 999), st.floats(0.15, 1), st.floats(0.1, 1))
def test_uniform_and_as_close_to_the_budget_as_one_neuron_everywhere(seed, first, second):
    scores, masks, costs, dials = problem(seed)
    dense = total_cost(masks, costs)
    for left in (first, min(first, second)):  # two updates, the second from what the first left
        masks = select_uniform(scores, masks, costs, left * dense, 0.0, dials)
        assert every(len(counts(masks, dial)) == 1 for dial in dials)
        assert counts(masks, HEADS) <= set(HEADS.counts) and min(*counts(masks, WIDTH), *counts(masks, DEPTH)) >= 1
        assert every(bool(mask.all()) for name, mask in masks.items() if name.endswith(("up", "value")))
        (blocks,), (width,) = counts(masks, DEPTH), counts(masks, WIDTH)
        step = blocks * (8 + 8 + 1)  # a neuron: its row with a bias, and its column
        cost = total_cost(masks, costs)
        assert cost <= left * dense or (blocks, width) == (1, 1)
        assert cost > left * dense - step or width == NEURONS


def test_the_weakest_of_each_layer_go():
    scores, masks, costs, dials = problem(0, (WIDTH,))
    chosen = select_uniform(scores, masks, costs, 0.7 * total_cost(masks, costs), 0.0, dials)
    for member in WIDTH.members:
        kept, gone = scores[member][chosen[member]], scores[member][~chosen[member]]
        assert len(gone) and kept.min() > gone.max()


@pytest.mark.slow
@given(st.integers(0, 999), st.floats(0.15, 1), st.floats(0.1, 1))
def test_a_dial_for_each_layer_where_blocks_go_too(seed, first, second):
    """The budget is met, and no block that is left could have one neuron more."""
    scores, masks, costs, dials = problem(seed, (*OWN_WIDTHS, DEPTH, HEADS))
    dense = total_cost(masks, costs)
    for left in (first, min(first, second)):
        masks = select_uniform(scores, masks, costs, left * dense, 0.0, dials)
        cost, blocks = total_cost(masks, costs), masks["stack"][0].nonzero().flatten().tolist()
        widths = [int(masks[f"{block}.down"].sum()) for block in blocks]
        assert cost <= left * dense or widths == [1]
        assert every(cost + 8 + 8 + 1 > left * dense or width == NEURONS for width in widths)


def test_a_dial_of_a_block_that_is_gone_stays_as_it_is():
    scores, masks, costs, dials = problem(0, (*OWN_WIDTHS, DEPTH))
    masks["stack"][0, 1], masks["1.down"][0, ::2] = False, False
    chosen = select_uniform(scores, masks, costs, 0.9 * total_cost(masks, costs), 0.0, dials)
    assert torch.equal(chosen["1.down"], masks["1.down"]) and not chosen["stack"][0, 1]
    assert int(chosen["0.down"].sum() + chosen["2.down"].sum()) < 2 * NEURONS


def test_a_block_that_matters_least_goes_first():
    scores, masks, costs, dials = problem(0)
    scores["stack"] = torch.tensor([[3.0, 1e-6, 2.0]])
    chosen = select_uniform(scores, masks, costs, 0.6 * total_cost(masks, costs), 0.0, dials)
    assert chosen["stack"].tolist() == [[True, False, True]]


def test_pruned_units_stay_pruned_unless_they_are_regrown():
    scores, masks, costs, dials = problem(0, (WIDTH,))
    budget = 0.7 * total_cost(masks, costs)
    masks = select_uniform(scores, masks, costs, budget, 0.0, dials)
    loud = {name: torch.where(masks[name], score, score + 9) for name, score in scores.items()}
    again = select_uniform(loud, masks, costs, budget, 0.0, dials)
    assert every(torch.equal(again[name], mask) for name, mask in masks.items())
    back = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for member in WIDTH.members:
        back[member][0, int((~masks[member][0]).nonzero()[0])] = True
    regrown = select_uniform(scores, masks, costs, budget, 0.0, dials, back)
    for member in WIDTH.members:
        assert every(regrown[member][back[member]]) and regrown[member].sum() == masks[member].sum()


@pytest.mark.slow
@given(st.integers(0, 999), st.floats(0.15, 1), st.floats(0.1, 1))
def test_members_of_several_units_to_each_of_another_one(seed, first, second):
    """The channels of a stream go with the heads: as many as a head is wide with each."""
    stream = Dial(fields=("width", "heads"), members=("stream", "0.out", "1.out", "2.out"), counts=(), lists=())
    scores, masks, costs, dials = problem(seed, (WIDTH, stream))
    masks["stream"] = torch.ones(1, 8, dtype=torch.bool)
    scores["stream"] = torch.rand(1, 8, generator=torch.Generator().manual_seed(seed))
    links = (Link(host="stream", segments=torch.arange(8)),)
    for name in [name for name in costs if name.endswith(("down", "out"))]:
        costs[name] = dataclasses.replace(costs[name], feeds=links)
    costs["stream"] = LayerCost(rows=5, segment_size=1, per_weight=1, per_row=1)
    dense = total_cost(masks, costs)
    for left in (first, min(first, second)):
        masks = select_uniform(scores, masks, costs, left * dense, 0.0, dials)
        (heads,), channels = {int(masks[f"{index}.out"].sum()) for index in range(3)}, int(masks["stream"].sum())
        assert channels == 2 * heads and 1 <= heads
        width = int(masks["0.down"].sum())
        assert total_cost(masks, costs) <= left * dense or (heads, width) == (1, 1)


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_a_floor_holds_in_every_dial(floor):
    scores, masks, costs, dials = problem(0)
    chosen = select_uniform(scores, masks, costs, -1, floor, dials)
    least = {0.0: [{1}, {1}, {1}], 0.5: [{6}, {2}, {2}]}[floor]
    assert [counts(chosen, dial) for dial in dials] == least
