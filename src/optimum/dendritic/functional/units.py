"""The units of a dependency group along an axis: which index belongs to which unit, and runs that say so briefly."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..layout.records import Group, Run
from .codes import Reach

CPU = torch.device("cpu")


@lru_cache(maxsize=4096)
def units_along(runs: tuple[Run, ...], length: int, device: torch.device = CPU) -> Int[Tensor, " length"]:
    """The unit of each index along an axis, -1 where it has none. The tensor is made once and shared: nobody writes to
    it, and no step of a training moves it to its device again.

    >>> units_along((Run(start=1, size=2, unit=0, count=2),), 6).tolist()
    [-1, 0, 0, 1, 1, -1]
    """
    units = torch.full((length,), -1, dtype=torch.int64)
    for run in runs:
        blocks = torch.arange(run.unit, run.unit + run.count).repeat_interleave(run.size)
        units[run.start : run.start + len(blocks)] = blocks
    return units.to(device)


def runs_along(units: Int[Tensor, " length"]) -> tuple[Run, ...]:
    """The runs that `units_along` reads.

    >>> runs_along(torch.tensor([-1, 0, 0, 1, 1, 5]))
    (Run(start=1, size=2, unit=0, count=2), Run(start=5, size=1, unit=5, count=1))
    """
    unit, size = units.unique_consecutive(return_counts=True)
    start = size.cumsum(0) - size
    living = unit >= 0
    unit, size, start = unit[living], size[living], start[living]
    follows = (unit.diff() == 1) & (size.diff() == 0) & (start.diff() == size[:-1])
    first = torch.cat([torch.ones(min(1, len(unit)), dtype=torch.bool), ~follows]).nonzero().flatten()
    count = torch.cat([first, torch.tensor([len(unit)])]).diff()
    columns = (start[first], size[first], unit[first], count)
    return tuple(Run(start=a, size=b, unit=c, count=d) for a, b, c, d in zip(*map(Tensor.tolist, columns), strict=True))


def streams(groups: Iterable[Group]) -> set[str]:
    """The hosts of groups of which something must be left, since a model without them is none."""
    return {group.host for group in groups if group.kind == "streams"}


def needed_hosts(groups: Iterable[Group], whole: bool) -> set[str]:
    """The hosts of groups of which something must be left: those of `streams`, and where the `whole` model is counted
    those with more than layers in them, since without any unit they are not cut."""
    groups = list(groups)
    return streams(groups) | {group.host for group in groups if whole and (group.passers or group.parameters)}


def living(units: Int[Tensor, " length"], alive: Bool[Tensor, " units"]) -> Bool[Tensor, " length"]:
    """Which indices are left when these units are alive; those of no unit always are.

    >>> living(torch.tensor([-1, 0, 1, 1]), torch.tensor([False, True])).tolist()
    [True, False, True, True]
    """
    return torch.where(units < 0, True, alive[units.clamp(min=0)])


def connected(relations: Sequence[tuple[str, str, Reach]], sizes: Mapping[str, int]) -> dict[str, Int[Tensor, "..."]]:
    """The connected components of a graph whose nodes are the entries of axes, by propagation of the smallest label.

    Args:
        relations: an axis, another one, and which entry of the first is connected with which of the second.
        sizes: the number of entries of each axis.

    Returns:
        For each axis the label of the component of each entry; of two axes in the order of `sizes` the first has the
        smaller labels.

    >>> reach = Reach(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), width=4)
    >>> connected([("a", "b", reach)], {"a": 2, "b": 4})
    {'a': tensor([0, 1]), 'b': tensor([0, 1, 1, 5])}
    """
    ends = torch.tensor([0, *sizes.values()]).cumsum(0).tolist()
    labels = {axis: torch.arange(low, high) for axis, low, high in zip(sizes, ends, ends[1:], strict=False)}
    changed = True
    while changed:
        changed = False
        for first, second, reach in relations:
            a, b = labels[first][reach.channels], labels[second][reach.inputs]
            if torch.equal(a, b):
                continue
            changed, smaller = True, torch.minimum(a, b)
            labels[first].scatter_reduce_(0, reach.channels, smaller, "amin")
            labels[second].scatter_reduce_(0, reach.inputs, smaller, "amin")
    return labels
