"""Scores + costs + budget -> masks. One global ranking of score per cost, met exactly as counted in the packed model.

The unit of choice is one segment of every arbor of a layer at once, the j-th weakest of each, so that arbors stay
balanced. What a unit saves depends on what is left of its layer and, in a dependency group, of the layers whose
rows die with it; so every layer has a `Cost`, the total is counted exactly, and the cut-off is found by bisection.
"""

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .costs import Cost, Masks
from .importance import per_cost

Scores = Mapping[str, Float[Tensor, "arbors segments"]]
Costs = Mapping[str, Cost]


def total_cost(masks: Masks, costs: Costs) -> int:
    """Exact cost of the packed model's target layers."""
    return sum(cost.cost(masks, name) for name, cost in costs.items())


def select(
    scores: Scores,
    masks: Masks,
    costs: Costs,
    budget: float,
    floor: float,
    regrown: Masks | None = None,
    *,
    needed: Collection[str] = (),
    together: Mapping[str, int] | None = None,
    allocation: Mapping[str, float] | None = None,
) -> dict[str, Bool[Tensor, "arbors segments"]]:
    """The masks that keep the highest scores per cost with `total_cost <= budget`.

    Pruned segments stay pruned, except those in `regrown`, which return and go last. No layer falls below `floor`;
    where floors forbid the budget, everything above them goes.

    Args:
        scores: higher is more important; CPU tensors.
        masks: the present masks; each arbor of a layer keeps equally many segments.
        budget: largest cost allowed.
        floor: fraction of its segments (at least one) that a layer keeps; 0 allows none.
        needed: names of those that keep one segment in any case, such as streams.
        together: where widths are to be multiples, how many segments of each layer make one: it keeps a multiple of so
            many, or all.
        allocation: what fraction of its segments each is to keep. Then scores rank the segments of each alone, and all
            go the way to their fractions at one pace, as far as the budget asks, or beyond.
    """
    regrown = regrown or {name: torch.zeros_like(mask) for name, mask in masks.items()}
    orders, ranked, first = {}, [], {}
    unit_costs = unit_cost(masks, costs)
    for index, (name, mask) in enumerate(masks.items()):
        dead = ~mask & ~regrown[name]
        score = scores[name].double().masked_fill(dead, -math.inf).masked_fill(regrown[name], math.inf)
        ordered, orders[name] = score.sort(dim=1, stable=True)
        gone, size = int(dead.sum(1)[0]), mask.shape[1]
        least = max(smallest_kept(size, floor), int(name in needed))
        rungs = _rungs(size, gone, max(gone, size - least), (together or {}).get(name, 1))
        first[name] = rungs[0]
        saves = unit_costs[name]  # nothing, in a block that is skipped already
        values = per_cost(ordered.sum(0), saves) if saves else torch.full((size,), math.inf)
        if allocation is not None:
            values = paces(size, allocation[name])
        ranked += [(values[a:b].mean().item(), index, name, b - a) for a, b in pairwise(rungs)]
    ranked.sort(key=lambda unit: unit[:2])  # stable: within a layer the weaker unit stays first

    def masks_without(units: int) -> dict[str, Tensor]:
        pruned = dict(first)
        for _, _, name, count in ranked[:units]:
            pruned[name] += count
        return {name: _without(order, pruned[name]) for name, order in orders.items()}

    enough = bisect_left(range(len(ranked)), -budget, key=lambda units: -total_cost(masks_without(units), costs))
    return masks_without(enough)


def paces(segments: int, kept: float) -> Float[Tensor, " segments"]:
    """How far on the way to a fraction that is kept each segment goes, the weakest first; 1 is all of the way.

    >>> paces(4, 0.5)
    tensor([0.5000, 1.0000, 1.5000, 2.0000], dtype=torch.float64)
    """
    return torch.arange(1, segments + 1, dtype=torch.float64) / segments / max(1e-6, 1 - kept)


def unit_cost(masks: Masks, costs: Costs) -> dict[str, float]:
    """What one more pruned unit of each layer saves now, in this layer and in others."""
    saved = dict.fromkeys(masks, 0.0)
    for name, cost in costs.items():
        for pruned, amount in cost.saved(masks, name).items():
            saved[pruned] += amount
    return saved


def choose_regrown(growth: Scores, masks: Masks, fraction: float) -> dict[str, Bool[Tensor, "arbors segments"]]:
    """The pruned segments of each layer that want back most.

    The number in each arbor is `fraction` of its pruned or of its live segments, whichever are fewer: a nearly empty
    layer is not replaced wholesale (Evci et al. 2020, section 3).
    """
    regrown = {}
    largest = max((float(values.max()) for values in growth.values() if values.numel()), default=0.0)
    noise = largest * torch.finfo(torch.float32).eps ** 2  # of squares: what rounding leaves where the gradient is zero
    for name, mask in masks.items():
        live = int(mask[0].sum())
        count = round(fraction * min(live, mask.shape[1] - live))
        wanted, order = growth[name].double().masked_fill(mask, -math.inf).sort(dim=1, descending=True, stable=True)
        chosen = order[:, :count][
            :, (wanted[:, :count] > noise).all(0)
        ]  # without a gradient there is nothing to grow from
        regrown[name] = torch.zeros_like(mask).scatter_(1, chosen, True)
    return regrown


def _rungs(size: int, fewest: int, most: int, step: int) -> list[int]:
    """The numbers of pruned segments from `fewest` to `most` that leave a multiple of `step`, or all.

    >>> _rungs(20, 0, 17, 8), _rungs(20, 5, 20, 8), _rungs(4, 1, 3, 1), _rungs(4, 0, 3, 8)
    ([0, 4, 12], [12, 20], [1, 2, 3], [0])
    """
    fitting = [pruned for pruned in range(fewest, most + 1) if not pruned or (size - pruned) % step == 0]
    return fitting or [fewest]


def smallest_kept(segments: int, floor: float) -> int:
    """Segments that a layer of `segments` keeps at least.

    >>> smallest_kept(64, 0.05), smallest_kept(4, 0.05), smallest_kept(4, 0.0)
    (4, 1, 0)
    """
    return math.ceil(floor * segments - 1e-9)


def _without(order: Int[Tensor, "arbors segments"], pruned: int) -> Bool[Tensor, "arbors segments"]:
    return torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :pruned], False)
