"""Problems of selection, drawn at random."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from optimum.dendritic.functional.costs import LayerCost
from optimum.dendritic.functional.selection import choose_regrown, smallest_kept, total_cost, unit_cost

Masks = dict[str, Tensor]


def balanced(generator: torch.Generator, arbors: int, segments: int, pruned: int) -> Tensor:
    order = torch.rand(arbors, segments, generator=generator).argsort(1)
    return torch.ones(arbors, segments, dtype=torch.bool).scatter_(1, order[:, :pruned], False)


@st.composite
def problems(draw):
    """A chain of layers, some rows of each leading to segments of the next; scores with ties; masks partly pruned."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = draw(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 6)), min_size=1, max_size=4))
    scores, masks, costs = {}, {}, {}
    for i, (arbors, segments) in enumerate(shapes):
        name, rows = f"layer{i}", arbors * draw(st.integers(1, 4))
        reader, reached = None, None
        if i + 1 < len(shapes) and draw(st.booleans()):
            reader, reached = f"layer{i + 1}", torch.randint(-1, shapes[i + 1][1], (rows,), generator=generator)
        per_weight, per_row = draw(st.sampled_from([1, 9, 50])), draw(st.sampled_from([0, 1]))
        costs[name] = LayerCost(rows=rows, segment_size=draw(st.integers(1, 3)), per_weight=per_weight, per_row=per_row, reader=reader, reached=reached)
        scores[name] = torch.randint(
            0, draw(st.sampled_from([2, 1000])), (arbors, segments), generator=generator
        ).float()
        masks[name] = balanced(generator, arbors, segments, draw(st.integers(0, segments)))
    regrown = choose_regrown(
        {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()},
        masks,
        draw(st.sampled_from([0.0, 0.3, 1.0])),
    )
    budget = draw(st.floats(0, 1)) * total_cost({name: torch.ones_like(m) for name, m in masks.items()}, costs)
    budget = draw(st.sampled_from([budget, round(budget)]))
    return scores, masks, costs, budget, draw(st.sampled_from([0.0, 0.05, 0.5])), regrown


def pruned(masks: Masks) -> dict[str, int]:
    return {name: int((~mask).sum(1)[0]) for name, mask in masks.items()}


def fewest(masks: Masks, regrown: Masks) -> dict[str, int]:
    return {name: int((~mask & ~regrown[name]).sum(1)[0]) for name, mask in masks.items()}


def units(problem, chosen: Masks) -> tuple[list, list]:
    """(rank, name) of the units that were newly pruned, and of those that could still have been."""
    scores, masks, costs, _, floor, regrown = problem
    weights, gone, left = unit_cost(masks, costs), [], []
    for index, (name, mask) in enumerate(masks.items()):
        live = scores[name].double().masked_fill(~mask, -math.inf).masked_fill(regrown[name], math.inf)
        values = (live.sort(1)[0].sum(0) / weights[name]).tolist()
        low, now = fewest(masks, regrown)[name], pruned(chosen)[name]
        high = max(low, mask.shape[1] - smallest_kept(mask.shape[1], floor))
        gone += [((value, index, low + i), name) for i, value in enumerate(values[low:now])]
        left += [((value, index, now + i), name) for i, value in enumerate(values[now:high])]
    return gone, left
