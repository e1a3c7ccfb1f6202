"""When what is dormant wakes: gates and their thresholds, without anything to train.

A dormant pack `q` of a layer is a group of its inputs `P_q` with their weights. For a row `x` it is computed where the
gate fires: `y = core(x) + sum_q 1[||x[P_q]|| > t_q] W_q x[P_q]` (rows are tokens, or images, whose norm is that of all
their positions). A whole model wakes where it doubts: where the margin between its two most probable classes is small.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .channels import gather_channels
from .tiles import wide

LEVELS = 101  # quantiles that are kept of what was seen in calibration
MOST_PACKS = 8  # of one layer


def pack_norms(rows: Float[Tensor, "rows inputs *positions"], inputs: Int[Tensor, " pack"]) -> Float[Tensor, " rows"]:
    """The Euclidean norm of what each row brings to a pack.

    >>> pack_norms(torch.tensor([[3.0, 1.0, 4.0]]), torch.tensor([0, 2]))
    tensor([5.])
    """
    return wide(gather_channels(rows, inputs, 1)).flatten(1).norm(dim=1)


def add_packs_(
    y: Float[Tensor, "rows outputs *places"],
    rows: Float[Tensor, "rows inputs *positions"],
    packs: Sequence[Int[Tensor, "..."]],
    thresholds: Sequence[float],
    multiply: Callable[[int, Tensor], Tensor],
) -> int:
    """Add to the answers `y` of a layer, in place, what each pack answers for the rows whose gate fires.

    Args:
        rows: what the layer read.
        packs: the inputs of each pack.
        thresholds: the gate of a pack fires above it.
        multiply: what a pack, by its index, answers for some rows of its inputs.

    Returns:
        How often a gate fired.
    """
    fired = 0
    for index, (inputs, threshold) in enumerate(zip(packs, thresholds, strict=True)):
        if threshold == float("inf"):
            continue
        if threshold == -float("inf"):
            y += multiply(index, gather_channels(rows, inputs, 1))
            fired += len(rows)
            continue
        awake = (pack_norms(rows, inputs) > threshold).nonzero().flatten()
        if len(awake):
            y.index_add_(0, awake, multiply(index, gather_channels(rows[awake], inputs, 1)).to(y.dtype))
            fired += len(awake)
    return fired


def margins(logits: Float[Tensor, "samples classes"]) -> Float[Tensor, " samples"]:
    """How sure a classifier is: the probability of its first choice less that of the second.

    >>> margins(torch.tensor([[0.0, 0.0, -50.0], [50.0, 0.0, 0.0]])).round(decimals=3)
    tensor([0., 1.])
    """
    first, second = wide(logits).softmax(-1).topk(2).values.unbind(-1)
    return first - second


def quantiles(seen: Float[Tensor, " values"]) -> Float[Tensor, " levels"]:
    """`LEVELS` evenly spaced quantiles of what was seen, the smallest and the largest among them.

    >>> quantiles(torch.arange(201.0))[:3]
    tensor([0., 2., 4.])
    """
    ordered = seen.double().sort().values
    place = torch.linspace(0, len(ordered) - 1, LEVELS, dtype=torch.float64, device=ordered.device)
    low, high = ordered[place.floor().long()], ordered[place.ceil().long()]
    return (low + (place - place.floor()) * (high - low)).float()


def threshold(known: Float[Tensor, " levels"], share: float) -> float:
    """The value below which a share of what was seen lies, from its `quantiles`.

    >>> threshold(quantiles(torch.arange(201.0)), 0.1)
    20.0
    """
    place = share * (len(known) - 1)
    low, high = float(known[int(place)]), float(known[min(len(known) - 1, int(place) + 1)])
    return low + (place - int(place)) * (high - low)


def inside(shape: Sequence[int], grid: Sequence[Int[Tensor, "..."]]) -> Tensor:
    """Which entries of a tensor lie on a grid, given by the entries along its first axes; a bool of that shape.

    >>> inside((2, 3), (torch.tensor([1]), torch.tensor([0, 2]))).long()
    tensor([[0, 0, 0],
            [1, 0, 1]])
    """
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for axis, entries in enumerate(grid):
        along = torch.zeros(shape[axis], dtype=torch.bool)
        along[entries] = True
        mask &= along.view([-1 if each == axis else 1 for each in range(len(shape))])
    return mask
