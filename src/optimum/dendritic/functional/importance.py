"""Scores of dendritic segments: weight, gradient (and input activity) -> one number per tile, shape `[A, S]`.

`dendritic` is the Fisher information of a tile's gate: with `y[a] = b[a] + sum_s m[a, s] W[a, s] x[s]` the chain rule
gives `dL/dm[a, s] = <W[a, s], dL/dW[a, s]>` at `m = 1`, and its running second moment estimates
`E[(dL/dm)^2]` (Theis et al. 2018, eq. 7; Molchanov et al. 2019, eq. 8). The others are the controls that every claim is
measured against.
"""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import torch
from jaxtyping import Float
from torch import Tensor

from .tiles import sum_tiles, wide

Tiles = Float[Tensor, "arbors rows segments inputs kernel"]
Scores = Float[Tensor, "arbors segments"]
# weights, gradients, activity of the inputs -> a sum over each tile, so that the sums over parts of a tile add up
Measure = Callable[[Tiles, Tiles, Tensor | None], Scores]


def gate_gradient(weight: Tiles, gradient: Tiles, activity: Tensor | None = None) -> Scores:
    """`dL/dm[a, s] = <W[a, s], dL/dW[a, s]>`."""
    return sum_tiles(wide(weight) * gradient)


def square_norm(weight: Tiles, gradient: Tiles, activity: Tensor | None = None) -> Scores:
    """`||W||^2`."""
    return sum_tiles(wide(weight).square())


def square_gradient(weight: Tiles, gradient: Tiles, activity: Tensor | None = None) -> Scores:
    """`||dL/dW||^2`."""
    return sum_tiles(wide(gradient).square())


def weighted_norm(weight: Tiles, gradient: Tiles, activity: Tensor | None = None) -> Scores:
    """`sum |W| ||x||`, from the running `E[x^2]` of each input."""
    assert activity is not None, "layers are injected with an activity buffer for this importance"
    norm = activity.sqrt().unflatten(0, (weight.shape[2], -1))
    return sum_tiles(wide(weight).abs() * norm[None, None, :, :, None])


@dataclass(frozen=True)
class Importance:
    """How a score is made and ranked.

    Attributes:
        measure: reads one step, as a sum over each tile; None for scores that are drawn once.
        score: of the sum over the whole tile.
        running: whether the readings are folded into a moving average.
        needs_activity: whether the inputs of the layer are observed.
        grouped: whether the norm of the rows that die with a segment is part of its score.
        per_cost: whether the score is divided by what the segment costs.
    """

    measure: Measure | None
    score: Callable[[Tensor], Tensor] = torch.positive
    running: bool = False
    needs_activity: bool = False
    grouped: bool = False
    per_cost: bool = True


IMPORTANCE: dict[str, Importance] = {
    "dendritic": Importance(gate_gradient, torch.square, running=True),
    # the first-order change of the loss, |<W, dL/dW>| (Molchanov et al. 2017, eq. 6)
    "taylor": Importance(gate_gradient, torch.abs, running=True),
    # positive where training moves weights away from zero (Sanh et al. 2020, eq. 5)
    "movement": Importance(gate_gradient, torch.neg, running=True),
    # divided by the cost it ranks by the mean square weight (Han et al. 2015); along a wire the rows that die with a
    # segment count too (Fang et al. 2023, DepGraph, section 3.3)
    "magnitude": Importance(square_norm, grouped=True),
    # Sun et al. 2024, Wanda, eq. 1, by groups
    "activation": Importance(weighted_norm, needs_activity=True),
    "random": Importance(None, per_cost=False),  # every segment goes with the same chance, dear or cheap
}


def random_scores(arbors: int, segments: int, seed: int, name: str) -> Scores:
    """Uniform scores that depend on the seed and the layer's name alone, hence equal on every rank and after resume."""
    generator = torch.Generator().manual_seed(seed + crc32(name.encode()))
    return torch.rand(arbors, segments, generator=generator)
