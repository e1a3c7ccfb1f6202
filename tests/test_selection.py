"""Selection: the budget is met within one unit, floors hold, and the same scores give the same masks."""

import math

import torch
from helpers.selection import Masks, fewest, problems, pruned, units
from hypothesis import given
from hypothesis import strategies as st

from optimum.dendritic.functional.costs import LayerCost
from optimum.dendritic.functional.selection import (
    choose_regrown,
    select,
    smallest_kept,
    total_cost,
    unit_cost,
)


def one_more(problem, chosen: Masks, name: str) -> Masks:
    """`chosen` with the last pruned unit of a layer undone: its strongest pruned segment in each arbor."""
    scores, masks, _, _, _, regrown = problem
    live = scores[name].masked_fill(~masks[name], -math.inf).masked_fill(regrown[name], math.inf)
    best = live.masked_fill(chosen[name], -math.inf)
    back = chosen[name].clone()
    for arbor in range(len(back)):
        candidates = ((~chosen[name][arbor]) & (best[arbor] == best[arbor].max())).nonzero()
        back[arbor, candidates[-1]] = True
    return chosen | {name: back}


@given(problems())
def test_the_budget_is_met_within_one_unit(problem):
    scores, masks, costs, budget, floor, regrown = problem
    chosen = select(*problem)
    gone, left = units(problem, chosen)
    if left:
        assert total_cost(chosen, costs) <= budget
    if gone:
        _, name = max(gone)
        assert total_cost(one_more(problem, chosen, name), costs) > budget


@given(problems())
def test_what_goes_scores_less_per_cost_than_what_stays(problem):
    gone, left = units(problem, select(*problem))
    assert not gone or not left or max(gone) < min(left)


@given(problems())
def test_pruned_stays_pruned_unless_regrown(problem):
    _, masks, _, _, _, regrown = problem
    for name, mask in select(*problem).items():
        assert not (mask & ~masks[name] & ~regrown[name]).any()


@given(problems())
def test_arbors_stay_balanced(problem):
    _, masks, *_, regrown = problem
    for group in (select(*problem), regrown):
        for mask in group.values():
            assert mask.sum(1).unique().numel() == 1


@given(problems())
def test_no_layer_falls_below_its_floor_by_this_update(problem):
    _, masks, _, _, floor, regrown = problem
    for name, mask in select(*problem).items():
        already = mask.shape[1] - fewest(masks, regrown)[name]
        assert mask.sum(1)[0] >= min(already, math.ceil(floor * mask.shape[1] - 1e-9))


@given(problems())
def test_regrown_segments_go_only_when_their_layer_keeps_nothing_else(problem):
    _, _, _, _, _, regrown = problem
    for name, mask in select(*problem).items():
        for arbor, back in enumerate(regrown[name]):
            assert mask[arbor][back].all() or not mask[arbor][~back].any()


@given(problems())
def test_equal_inputs_give_equal_masks_under_ties(problem):
    scores, *rest = problem
    for tied in (scores, {name: torch.zeros_like(score) for name, score in scores.items()}):
        first, second = select(tied, *rest), select({k: v.clone() for k, v in tied.items()}, *rest)
        assert all(torch.equal(first[name], second[name]) for name in first)


@given(problems())
def test_a_smaller_budget_prunes_no_less(problem):
    scores, masks, costs, budget, floor, regrown = problem
    more, less = select(*problem), select(scores, masks, costs, budget / 2, floor, regrown)
    assert all(not (less[name] & ~more[name]).any() for name in masks)


@given(problems())
def test_the_total_cost_is_what_counting_by_hand_gives(problem):
    _, masks, costs, *_ = problem
    expected = 0
    for name, cost in costs.items():
        mask = masks[name]
        for row in range(cost.rows):
            arbor = row // (cost.rows // len(mask))
            segment = -1 if cost.reached is None else int(cost.reached[row])
            alive = segment < 0 or bool(masks[cost.reader][:, segment].any())
            assert alive == bool(cost.alive_rows(masks)[row])
            if alive:
                expected += int(mask[arbor].sum()) * cost.segment_size * cost.per_weight + cost.per_row
    assert total_cost(masks, costs) == expected


@given(problems(), st.floats(0, 1))
def test_only_pruned_segments_with_a_gradient_come_back_and_the_strongest_first(problem, fraction):
    _, masks, *_ = problem
    generator = torch.Generator().manual_seed(0)
    growth = {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
    regrown, dead = choose_regrown(growth, masks, fraction), pruned(masks)
    for name, back in regrown.items():
        assert int(back.sum(1)[0]) == round(fraction * min(dead[name], back.shape[1] - dead[name]))
        assert not (back & masks[name]).any()
        for arbor in range(len(back)):
            stayed = growth[name][arbor][~masks[name][arbor] & ~back[arbor]]
            returned = growth[name][arbor][back[arbor]]
            assert not len(stayed) or not len(returned) or returned.min() >= stayed.max()
    nothing = choose_regrown({name: torch.zeros_like(g) for name, g in growth.items()}, masks, 1.0)
    assert not any(back.any() for back in nothing.values())


def test_a_budget_that_a_mask_meets_to_the_unit_is_not_overshot():
    costs = {"layer": LayerCost(rows=1, segment_size=1, per_weight=1, per_row=0)}
    masks, scores = {"layer": torch.ones(1, 10, dtype=torch.bool)}, {"layer": torch.arange(10.0)[None]}
    for budget in range(11):
        assert total_cost(select(scores, masks, costs, budget, 0.0), costs) == budget


def test_a_floor_keeps_at_least_one_segment_and_zero_none():
    for segments in (1, 2, 7, 64):
        assert smallest_kept(segments, 0.0) == 0 and smallest_kept(segments, 1e-6) == 1
        assert smallest_kept(segments, 1.0) == segments


@given(st.integers(1, 4), st.integers(2, 6), st.integers(1, 3), st.sampled_from([1, 9]), st.sampled_from([0, 1]))
def test_a_unit_saves_its_columns_and_the_rows_that_die_with_it(rows_each, segments, size, per_weight, per_row):
    reached = torch.arange(segments).repeat_interleave(rows_each)
    costs = {
        "producer": LayerCost(rows=rows_each * segments, segment_size=2, per_weight=per_weight, per_row=per_row, reader="reader", reached=reached),
        "reader": LayerCost(rows=5, segment_size=size, per_weight=1, per_row=per_row),
    }
    masks = {"producer": torch.ones(1, 3, dtype=torch.bool), "reader": torch.ones(1, segments, dtype=torch.bool)}
    for name in masks:
        fewer = masks | {name: masks[name].clone()}
        fewer[name][0, 0] = False
        assert total_cost(masks, costs) - total_cost(fewer, costs) == unit_cost(masks, costs)[name]


def test_a_layer_cut_into_arbors_ranks_as_the_whole_layer_does():
    """A unit takes a segment of every arbor: its score is their sum, as its cost is."""
    scores = torch.rand(2, 6, generator=torch.Generator().manual_seed(0)).sort(1)[0]
    whole = {"a": scores.sum(0)[None], "b": torch.rand(1, 6, generator=torch.Generator().manual_seed(1))}
    costs = {name: LayerCost(rows=4, segment_size=1, per_weight=1, per_row=0) for name in whole}
    for budget in range(0, 49, 4):
        kept = []
        for problem in (whole, whole | {"a": scores}):
            masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in problem.items()}
            kept.append({name: int(mask[0].sum()) for name, mask in select(problem, masks, costs, budget, 0.0).items()})
        assert kept[0] == kept[1]
