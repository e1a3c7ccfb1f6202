"""Problems of selection, drawn at random, and what can be said of a solution without ranking anything."""

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from hypothesis import strategies as st
from torch import Tensor

from optimum.dendritic.functional.costs import Cost, LayerCost, Link
from optimum.dendritic.functional.selection import choose_regrown, total_cost
from optimum.dendritic.state import gates_in, injected_layout, layers_in
from optimum.dendritic.structure.ranking import ranking_of

Masks = dict[str, Tensor]
Costs = Mapping[str, Cost]


@contextmanager
def repeatable() -> Iterator[None]:
    """Leave Python's random state alone, as a strategy must; annotated tuples are checked at a random entry."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def balanced(generator: torch.Generator, arbors: int, segments: int, pruned: int) -> Tensor:
    order = torch.rand(arbors, segments, generator=generator).argsort(1)
    return torch.ones(arbors, segments, dtype=torch.bool).scatter_(1, order[:, :pruned], False)


@st.composite
def problems(draw, ties: bool = True, regrowth: bool = True):
    """A chain of layers, some rows of each leading to segments of the next; masks partly pruned.

    Args:
        ties: whether scores may be equal.
        regrowth: whether pruned segments may return.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = draw(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 6)), min_size=1, max_size=4))
    scores, masks, costs = {}, {}, {}
    for i, (arbors, segments) in enumerate(shapes):
        name, rows = f"layer{i}", arbors * draw(st.integers(1, 4))
        feeds = ()
        if i + 1 < len(shapes) and draw(st.booleans()):
            reached = torch.randint(-1, shapes[i + 1][1], (rows,), generator=generator)
            feeds = (Link(host=f"layer{i + 1}", segments=reached),)
        per_weight, per_row = draw(st.sampled_from([1, 9, 50])), draw(st.sampled_from([0, 1]))
        fields = {"segment_size": draw(st.integers(1, 3)), "per_weight": per_weight, "per_row": per_row}
        with repeatable():
            costs[name] = LayerCost(rows=rows, feeds=feeds, **fields)
        if ties:
            levels = draw(st.sampled_from([2, 1000]))
            scores[name] = torch.randint(0, levels, (arbors, segments), generator=generator).float()
        else:
            scores[name] = torch.rand(arbors, segments, generator=generator)
        masks[name] = balanced(generator, arbors, segments, draw(st.integers(0, segments)))
    regrown = choose_regrown(
        {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()},
        masks,
        draw(st.sampled_from([0.0, 0.3, 1.0])) if regrowth else 0.0,
    )
    budget = draw(st.floats(0, 1)) * total_cost({name: torch.ones_like(m) for name, m in masks.items()}, costs)
    budget = draw(st.sampled_from([budget, round(budget)]))
    return scores, masks, costs, budget, draw(st.sampled_from([0.0, 0.05, 0.5])), regrown


def live(mask: Tensor) -> int:
    """Segments that each arbor keeps."""
    return int(mask[0].sum())


def above_floor(mask: Tensor, floor: float) -> bool:
    """Whether a layer may lose a unit more."""
    return live(mask) - 1 >= floor * mask.shape[1] - 1e-9


def within_budget(chosen: Masks, costs: Costs, budget: float, floor: float) -> bool:
    """Whether the budget is met, or floors forbid it: then no layer may lose anything more."""
    return total_cost(chosen, costs) <= budget or not any(above_floor(mask, floor) for mask in chosen.values())


def with_one_back(chosen: Masks, name: str, gone: Tensor, scores: Tensor) -> Masks:
    """`chosen` and, in each arbor of the layer `name`, the strongest of the segments that are `gone`."""
    back = chosen[name].clone()
    strongest = scores.masked_fill(~gone, -math.inf).argmax(1)
    back[torch.arange(len(back)), strongest] = True
    return chosen | {name: back}


def masks_at(model, sparsity):
    """The masks of an injected model with `sparsity` of the budget gone, inside of the present ones."""
    layout = injected_layout(model)
    layers = layers_in(model, layout)
    return ranking_of(model, layout, layers, gates_in(model, layout, layers)).choose(sparsity)
