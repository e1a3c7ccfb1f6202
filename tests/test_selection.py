"""Selection: properties of the masks, found without ranking anything, and brute force on tiny problems."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers.compare import every
from helpers.selection import Masks, above_floor, live, problems, repeatable, with_one_back, within_budget
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimum.dendritic.functional.costs import LayerCost, Link
from optimum.dendritic.functional.selection import choose_regrown, select, smallest_kept, total_cost, unit_cost


@pytest.fixture
def compared():
    """How often each property was held against something; a test that never came to it has shown nothing."""
    counts: Counter[str] = Counter()
    yield counts
    assert counts and min(counts.values()) > 0, counts


@st.composite
def alike(draw, arbors: tuple[int, ...] = (1,), layers: int = 4, segments: int = 6):
    """Layers that lead nowhere and whose units all cost the same: scores, full masks, costs, budget, floor."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    several, scores, costs = draw(st.sampled_from(arbors)), {}, {}
    for index in range(draw(st.integers(1, layers))):
        rows, size, per_weight = draw(st.sampled_from([(4, 3, 1), (4, 1, 3), (2, 6, 1), (2, 1, 6)]))
        per_row = draw(st.integers(0, 2))
        with repeatable():
            costs[f"layer{index}"] = LayerCost(rows=rows, segment_size=size, per_weight=per_weight, per_row=per_row)
        scores[f"layer{index}"] = torch.rand(several, draw(st.integers(1, segments)), generator=generator)
    masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    budget = draw(st.floats(0, 1)) * total_cost(masks, costs)
    return scores, masks, costs, budget, draw(st.sampled_from([0.0, 0.05, 0.5]))


def start_of(problem) -> Masks:
    """The masks before anything is pruned: what is live, and what returns."""
    _, masks, _, _, _, regrown = problem
    return {name: mask | regrown[name] for name, mask in masks.items()}


def same(left: Masks, right: Masks) -> bool:
    return left.keys() == right.keys() and every(torch.equal(mask, right[name]) for name, mask in left.items())


@pytest.mark.slow
def test_the_budget_is_met_unless_floors_forbid_it(compared):
    @given(problems())
    def check(problem):
        _, _, costs, budget, floor, _ = problem
        chosen = select(*problem)
        assert within_budget(chosen, costs, budget, floor)
        compared["met"] += total_cost(chosen, costs) <= budget
        compared["forbidden"] += total_cost(chosen, costs) > budget

    check()


def test_one_unit_more_would_break_the_budget(compared):
    @given(problems(ties=False))
    def check(problem):
        scores, masks, costs, budget, _, regrown = problem
        chosen, before = select(*problem), start_of(problem)
        gone = {name: before[name] & ~mask for name, mask in chosen.items() if (before[name] & ~mask).any()}
        last = {name: scores[name].masked_fill(regrown[name], 2.0) for name in gone}  # what returned goes last
        more = [total_cost(with_one_back(chosen, name, gone[name], last[name]), costs) for name in gone]
        assert not gone or max(more) > budget
        assert gone or same(chosen, before)
        compared["pruned"] += bool(gone)
        compared["left alone"] += not gone

    check()


@pytest.mark.slow
def test_a_mask_that_meets_the_budget_is_left_as_it_is(compared):
    @given(problems())
    def check(problem):
        scores, _, costs, _, floor, _ = problem
        chosen = select(*problem)
        assert same(select(scores, chosen, costs, total_cost(chosen, costs), floor), chosen)
        compared["masks"] += any(mask.any() and not mask.all() for mask in chosen.values())

    check()


def test_among_units_of_the_same_cost_all_that_is_kept_scores_more_than_all_that_is_pruned(compared):
    @given(alike())
    def check(problem):
        scores, _, _, _, floor = problem
        chosen = select(*problem)
        kept = [scores[name][mask] for name, mask in chosen.items() if above_floor(mask, floor)]
        pruned = [scores[name][~mask] for name, mask in chosen.items() if not mask.all()]
        if kept and pruned:
            assert torch.cat(kept).min() >= torch.cat(pruned).max()
            compared["layers"] += len(kept) + len(pruned) > 2

    check()


@pytest.mark.slow
def test_among_units_of_any_cost_it_is_the_score_for_each_parameter_that_counts(compared):
    """What a unit costs is counted: the difference that it makes to the total."""

    @given(alike(), st.lists(st.integers(1, 9), min_size=4, max_size=4), st.floats(0, 1))
    def check(problem, dear, share):
        scores, masks, costs, _, floor = problem
        costs = {
            name: replace(cost, per_weight=times * cost.per_weight)
            for (name, cost), times in zip(costs.items(), dear, strict=False)
        }
        worth = {}
        for name, mask in masks.items():
            fewer = mask.clone()
            fewer[:, 0] = False
            worth[name] = scores[name] / (total_cost(masks, costs) - total_cost(masks | {name: fewer}, costs))
        chosen = select(scores, masks, costs, share * total_cost(masks, costs), floor)
        kept = [worth[name][mask] for name, mask in chosen.items() if above_floor(mask, floor)]
        pruned = [worth[name][~mask] for name, mask in chosen.items() if not mask.all()]
        if kept and pruned:
            assert torch.cat(kept).min() >= torch.cat(pruned).max()
            compared["layers"] += len(kept) + len(pruned) > 2

    check()


def test_in_each_arbor_what_stays_scores_more_than_what_goes(compared):
    @given(problems())
    def check(problem):
        scores, masks, *_, regrown = problem
        for name, mask in select(*problem).items():
            for arbor, score in enumerate(scores[name]):
                stays, goes = (score[masks[name][arbor] & part] for part in (mask[arbor], ~mask[arbor]))
                if len(stays) and len(goes):
                    assert stays.min() >= goes.max()
                    compared["arbors"] += 1

    check()


def balanced_masks(arbors: int, segments: int) -> list[Tensor]:
    """Every mask of a layer that keeps equally many segments in each arbor."""
    found = []
    for kept in range(segments + 1):
        for rows in itertools.product(itertools.combinations(range(segments), kept), repeat=arbors):
            mask = torch.zeros(arbors, segments, dtype=torch.bool)
            for arbor, chosen in enumerate(rows):
                mask[arbor, list(chosen)] = True
            found.append(mask)
    return found


@pytest.mark.slow
def test_of_all_masks_that_meet_the_budget_the_chosen_ones_keep_the_highest_score(compared):
    """Brute force; where all units cost the same, the greedy choice is the best one."""

    @given(alike((1, 2), layers=2, segments=3))
    def check(problem):
        scores, masks, costs, budget, floor = problem

        def kept_score(some: Masks) -> float:
            return sum(float(scores[name].double()[mask].sum()) for name, mask in some.items())

        every_layer = [balanced_masks(*mask.shape) for mask in masks.values()]
        everything = [dict(zip(masks, choice, strict=True)) for choice in itertools.product(*every_layer)]
        high = [some for some in everything if every(live(m) >= floor * m.shape[1] - 1e-9 for m in some.values())]
        allowed = [some for some in high if total_cost(some, costs) <= budget]
        chosen = select(*problem)
        if allowed:
            assert total_cost(chosen, costs) <= budget
            assert kept_score(chosen) == pytest.approx(max(map(kept_score, allowed)))
        else:
            assert total_cost(chosen, costs) == min(total_cost(some, costs) for some in high)
        compared["allowed"] += len(allowed) > 1
        compared["forbidden"] += not allowed

    check()


def test_pruned_stays_pruned_unless_regrown(compared):
    @given(problems())
    def check(problem):
        before = start_of(problem)
        for name, mask in select(*problem).items():
            assert not (mask & ~before[name]).any()
            compared["pruned"] += int((~before[name]).sum())

    check()


def test_what_goes_at_a_lower_sparsity_goes_at_a_higher_one(compared):
    @given(problems(), st.floats(0, 1))
    def check(problem, share):
        scores, masks, costs, budget, floor, regrown = problem
        more, less = select(*problem), select(scores, masks, costs, share * budget, floor, regrown)
        assert every(not (less[name] & ~more[name]).any() for name in masks)
        compared["fewer"] += not same(less, more)

    check()


@pytest.mark.slow
def test_step_by_step_without_regrowth_masks_only_shrink_and_every_budget_is_met(compared):
    @given(problems(regrowth=False))
    def check(problem):
        scores, masks, costs, budget, floor, _ = problem
        for share in (1.0, 0.75, 0.5, 0.25, 0.0):
            found = select(scores, masks, costs, share * budget, floor)
            assert every(not (found[name] & ~masks[name]).any() for name in masks)
            assert within_budget(found, costs, share * budget, floor)
            compared["shrunk"] += not same(found, masks)
            masks = found

    check()


@pytest.mark.slow
@given(problems(), st.sampled_from([2.0**-20, 0.25, 2.0, 2.0**20]))  # powers of two, which round nothing
def test_all_scores_on_another_scale_give_the_same_masks(problem, scale):
    scores, *rest = problem
    assert same(select({name: scale * score for name, score in scores.items()}, *rest), select(*problem))


@pytest.mark.slow
def test_layers_in_another_order_give_the_same_masks(compared):
    @given(problems(ties=False, regrowth=False), st.randoms(use_true_random=False))
    def check(problem, random):
        scores, masks, costs, budget, floor, _ = problem
        order = random.sample(list(masks), len(masks))
        shuffled = [{name: each[name] for name in order} for each in (scores, masks, costs)]
        found = select(*shuffled, budget, floor)
        assert list(found) == order
        assert same({name: found[name] for name in masks}, select(scores, masks, costs, budget, floor))
        compared["orders"] += order != list(masks)

    check()


@given(problems())
def test_arbors_stay_balanced(problem):
    _, masks, *_, regrown = problem
    for group in (select(*problem), regrown):
        for mask in group.values():
            assert mask.sum(1).unique().numel() == 1


@pytest.mark.slow
@given(problems())
def test_no_layer_falls_below_its_floor_by_this_update(problem):
    _, masks, _, _, floor, regrown = problem
    for name, mask in select(*problem).items():
        before = live(masks[name] | regrown[name])
        assert live(mask) >= min(before, math.ceil(floor * mask.shape[1] - 1e-9))


@given(problems())
def test_regrown_segments_go_only_when_their_layer_keeps_nothing_else(problem):
    _, _, _, _, _, regrown = problem
    for name, mask in select(*problem).items():
        for arbor, back in enumerate(regrown[name]):
            assert mask[arbor][back].all() or not mask[arbor][~back].any()


@pytest.mark.slow
@given(problems())
def test_equal_inputs_give_equal_masks_under_ties(problem):
    scores, *rest = problem
    for tied in (scores, {name: torch.zeros_like(score) for name, score in scores.items()}):
        first, second = select(tied, *rest), select({k: v.clone() for k, v in tied.items()}, *rest)
        assert same(first, second)


@given(problems())
def test_the_total_cost_is_what_counting_by_hand_gives(problem):
    _, masks, costs, *_ = problem
    expected = 0
    for name, cost in costs.items():
        mask = masks[name]
        for row in range(cost.rows):
            arbor = row // (cost.rows // len(mask))
            ends = [(link.host, int(link.segments[row])) for link in cost.feeds]
            alive = all(segment < 0 or bool(masks[host][:, segment].any()) for host, segment in ends)
            assert alive == bool(cost.alive_rows(masks)[row])
            if alive:
                expected += int(mask[arbor].sum()) * cost.segment_size * cost.per_weight + cost.per_row
    assert total_cost(masks, costs) == expected


@given(problems(), st.floats(0, 1))
def test_only_pruned_segments_with_a_gradient_come_back_and_the_strongest_first(problem, fraction):
    _, masks, *_ = problem
    generator = torch.Generator().manual_seed(0)
    growth = {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
    regrown = choose_regrown(growth, masks, fraction)
    for name, back in regrown.items():
        assert int(back.sum(1)[0]) == round(fraction * min(live(masks[name]), back.shape[1] - live(masks[name])))
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
        "producer": LayerCost(
            rows=rows_each * segments,
            segment_size=2,
            per_weight=per_weight,
            per_row=per_row,
            feeds=(Link(host="reader", segments=reached),),
        ),
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
