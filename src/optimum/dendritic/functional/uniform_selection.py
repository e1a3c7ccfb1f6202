"""Scores + costs + budget -> masks that a stock config can say: one number of units for every member of a dial.

A rung of a dial takes the weakest units that are left of each of its members at once (one neuron of every layer; one
block of a stack; as many heads as the config admits). Of a member that has more units than another one of its dial,
several go with each: the channels of a stream with the heads of all layers. Rungs of all dials are ranked together by
score per cost, and the first that meet the budget are taken. Since a rung may be as large as a block, the finest dial
then makes up the difference, and what still fits of the others returns: the budget is met, and missed by less than one
rung of any dial, unless a floor stops it.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gcd, lcm

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..layout.records import Dial
from .costs import Masks
from .importance import per_cost
from .selection import Costs, Scores, smallest_kept, total_cost, unit_cost

Chosen = dict[str, Bool[Tensor, "arbors segments"]]


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """A dial at this update, as rungs on each of which fewer units of each member are left.

    Attributes:
        dial: The dial.
        pruned: The number of units of the dial that are gone on each rung.
        several: How many units of each member are one unit of the dial.
        first: The lowest rung that brings no pruned unit back.
        values: The score per cost of each step, from the rung `first` on; none where all members stand in skipped
            blocks, whose units stay as they are.
        step: What one rung saves on average.
    """

    dial: Dial
    pruned: tuple[int, ...]
    several: Mapping[str, int]
    first: int
    values: tuple[float, ...]
    step: float


def select_uniform(
    scores: Scores,
    masks: Masks,
    costs: Costs,
    budget: float,
    floor: float,
    dials: Sequence[Dial],
    regrown: Masks | None = None,
    *,
    together: Mapping[str, int] | None = None,
) -> Chosen:
    """The masks with `total_cost <= budget` that keep the highest scores per cost with the same part of every member of
    a dial.

    Masks of modules outside the dials stay as they are. Pruned units go first, those in `regrown` last; a pruned one
    returns only where a coarser dial took too much.

    Args:
        scores: higher is more important; CPU tensors.
        masks: the present masks; members of a dial have one arbor, and of segments a multiple of those
            of the member that has the fewest.
        budget: largest cost allowed.
        floor: fraction of its units (at least one) that a member keeps.
        together: of how many units each member keeps a multiple, or all; 1 where it is not named.
    """
    nothing = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    back = regrown or nothing
    orders = {m: _order(scores[m], masks[m], back[m]) for dial in dials for m in dial.members}
    units = unit_cost(masks, costs)
    ladders = [_ladder(dial, scores, masks, back, orders, units, floor, together or {}) for dial in dials]
    steps = [(value, index) for index, ladder in enumerate(ladders) for value in ladder.values]
    steps.sort(key=lambda step: step[0])  # stable, and values ascend within a dial

    def rungs_after(count: int) -> list[int]:
        taken = [index for _, index in steps[:count]]
        return [ladder.first + taken.count(index) for index, ladder in enumerate(ladders)]

    def masks_at(rungs: Sequence[int]) -> Chosen:
        chosen = dict(masks)
        for ladder, rung in zip(ladders, rungs, strict=True):
            for member in ladder.dial.members:
                mask = torch.ones_like(masks[member])
                mask[0, orders[member][: ladder.pruned[rung] * ladder.several[member]]] = False
                chosen[member] = mask
        return chosen

    def fits(rungs: Sequence[int]) -> bool:
        return total_cost(masks_at(rungs), costs) <= budget

    enough = bisect_left(range(len(steps)), True, key=lambda count: fits(rungs_after(count)))
    rungs = rungs_after(enough)
    last = steps[enough - 1][1] if enough else None
    return masks_at(_settled(rungs, last, ladders, fits))


def _settled(
    rungs: list[int], last: int | None, ladders: Sequence[Ladder], fits: Callable[[Sequence[int]], bool]
) -> list[int]:
    """The finest dial gives back what a coarse `last` step took too much; where it has nothing to give, that step is
    undone and the finest dial goes as far as it needs. What still fits of the others returns, too."""
    live = sorted((i for i, ladder in enumerate(ladders) if ladder.step > 0), key=lambda i: ladders[i].step)
    if last is None or not fits(rungs):
        return rungs
    finest = live[0]

    def at(base: list[int], rung: int, of: int = finest) -> list[int]:
        return [rung if index == of else value for index, value in enumerate(base)]

    if last != finest:
        given = at(rungs, bisect_left(range(rungs[finest]), True, key=lambda rung: fits(at(rungs, rung))))
        undone = [rung - (index == last) for index, rung in enumerate(rungs)]
        top = len(ladders[finest].pruned) - 1
        further = at(undone, bisect_left(range(top), True, key=lambda rung: fits(at(undone, rung))))
        rungs = further if given[finest] == 0 and fits(further) else given
    for index in live:
        while rungs[index] > 0 and fits(at(rungs, rungs[index] - 1, index)):
            rungs = at(rungs, rungs[index] - 1, index)
    return rungs


def _order(
    scores: Tensor, mask: Bool[Tensor, "arbors segments"], back: Bool[Tensor, "arbors segments"]
) -> Int[Tensor, " segments"]:
    """Units of a member in the order in which they go: pruned ones, live ones, regrown ones; the weakest first."""
    by_score = scores[0].double().argsort(stable=True)
    kind = torch.where(back[0], 2, mask[0].long())
    return by_score[kind[by_score].argsort(stable=True)]


def _ladder(
    dial: Dial,
    scores: Scores,
    masks: Masks,
    back: Masks,
    orders: Mapping[str, Tensor],
    units: Mapping[str, float],
    floor: float,
    together: Mapping[str, int],
) -> Ladder:
    size = min(masks[member].shape[1] for member in dial.members)
    several = {member: masks[member].shape[1] // size for member in dial.members}
    of = lcm(*(together.get(member, 1) // gcd(together.get(member, 1), each) for member, each in several.items()))
    least = max(1, smallest_kept(size, floor))
    kept = [count for count in dial.counts or range(1, size + 1) if least <= count < size and count % of == 0]
    pruned = (0, *(size - count for count in reversed(kept)))
    dead = max(-(-int((~masks[m] & ~back[m]).sum()) // several[m]) for m in dial.members)
    first = min(bisect_left(pruned, dead), len(pruned) - 1)
    live = [m for m in dial.members if units[m] > 0]  # others stand in skipped blocks
    saved = sum(units[m] * several[m] for m in live)
    ordered = [scores[m][0].double()[orders[m]].unflatten(0, (size, -1)).sum(1) for m in live]
    summed = torch.stack(ordered).sum(0) if live else torch.zeros(size)
    sums, rungs = torch.cat([summed.new_zeros(1), summed.cumsum(0)]), torch.tensor(pruned[first:])
    each = per_cost(sums[rungs].diff(), max(saved, 1e-9) * rungs.diff().double())
    ascending = tuple(accumulate(each.tolist(), max))  # those of regrown units, which go last, may be lower
    step = saved * size / len(pruned)
    values = ascending if live else ()
    return Ladder(dial=dial, pruned=pruned, several=several, first=first, values=values, step=step)
