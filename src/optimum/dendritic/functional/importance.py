"""Scores of dendritic segments, one number per tile, shape `[A, S]`: every formula from the weights to the ranking.

`dendritic` is the Fisher information of a tile's gate: with `y[a] = b[a] + sum_s m[a, s] W[a, s] x[s]` the chain rule
gives `dL/dm[a, s] = <W[a, s], dL/dW[a, s]>` at `m = 1`, and its running second moment estimates
`E[(dL/dm)^2]` (Theis et al. 2018, eq. 7; Molchanov et al. 2019, eq. 8). The others are the controls that every claim is
measured against. In order: what one step says of a tile, its mean over the steps, and what the ranking makes of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .tiles import sum_tiles, wide

Tiles = Float[Tensor, "arbors rows segments inputs kernel"]
TileScores = Float[Tensor, "arbors segments"]
# weights, gradients, activity of the inputs -> a sum over each tile, so that the sums over parts of a tile add up
Measure = Callable[[Tiles, Tiles, Tensor | None], TileScores]


def gate_gradient(weight: Tiles, gradient: Tiles, activity: Tensor | None = None) -> TileScores:
    """`dL/dm[a, s] = <W[a, s], dL/dW[a, s]>`, the chain rule at `m = 1` (Molchanov et al. 2019, eq. 8).

    >>> weight, gradient = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, -2.0, 0.5])
    >>> gate_gradient(weight.view(1, 1, 1, 3, 1), gradient.view(1, 1, 1, 3, 1))
    tensor([[2.]])
    """
    return sum_tiles(wide(weight) * gradient)


def gate_information(gate_gradients: Tensor) -> Tensor:
    """`(dL/dm)^2`: one sample of the gate's Fisher information (Theis et al. 2018, eq. 7).

    Args:
        gate_gradients: `<W, dL/dW>`, summed over all that the gate multiplies before it is squared.

    >>> gate_information(torch.tensor([2.0, -3.0]))
    tensor([4., 9.])
    """
    return gate_gradients.square()


def square_norm(weight: Tiles, gradient: Tiles, activity: Tensor | None = None) -> TileScores:
    """`||W||^2` (Han et al. 2015).

    >>> square_norm(torch.tensor([3.0, 4.0]).view(1, 1, 1, 2, 1), torch.zeros(1, 1, 1, 2, 1))
    tensor([[25.]])
    """
    return sum_tiles(wide(weight).square())


def square_gradient(weight: Tiles, gradient: Tiles, activity: Tensor | None = None) -> TileScores:
    """`||dL/dW||^2`: how much a pruned tile wants to come back (Evci et al. 2020, RigL, section 3).

    >>> square_gradient(torch.zeros(1, 1, 1, 2, 1), torch.tensor([1.0, -2.0]).view(1, 1, 1, 2, 1))
    tensor([[5.]])
    """
    return sum_tiles(wide(gradient).square())


def weighted_norm(weight: Tiles, gradient: Tiles, activity: Tensor | None = None) -> TileScores:
    """`sum |W| ||x||`, from the running `E[x^2]` of each input (Sun et al. 2024, Wanda, eq. 1).

    >>> weight, activity = torch.tensor([-3.0, 1.0]).view(1, 1, 1, 2, 1), torch.tensor([4.0, 1.0])
    >>> weighted_norm(weight, torch.zeros_like(weight), activity)
    tensor([[7.]])
    """
    assert activity is not None, "layers are injected with an activity buffer for this importance"
    norm = activity.sqrt().unflatten(0, (weight.shape[2], -1))
    return sum_tiles(wide(weight).abs() * norm[None, None, :, :, None])


def square_sums(x: Tensor, axis: int) -> Tensor:
    """`sum x_i^2` of each input `i`: over every axis of `x` but that of the inputs (Wanda's `||x_i||^2`).

    >>> square_sums(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), axis=-1)
    tensor([10.,  4.])
    """
    return x.square().sum([other for other in range(x.dim()) if other != axis % x.dim()])


def finite_or(value: Tensor, otherwise: Tensor) -> Tensor:
    """`value` where it is finite, and what there was elsewhere: one bad batch spoils nothing.

    >>> finite_or(torch.tensor([1.0, torch.nan, torch.inf]), torch.tensor([7.0, 8.0, 9.0]))
    tensor([1., 8., 9.])
    """
    return torch.where(value.isfinite(), value, otherwise)


def running_mean(mean: Tensor, reading: Tensor, decay: float) -> Tensor:
    """`I <- β I + (1 - β) x` in float32, where that is finite; `I` elsewhere (as the moments of Adam, Kingma & Ba 2015,
    algorithm 1, without the correction of the start).

    Args:
        mean: `I`.
        reading: `x`, what this step says.
        decay: `β`.

    >>> running_mean(torch.tensor([8.0, 8.0]), torch.tensor([4.0, torch.nan]), decay=0.75)
    tensor([7., 8.])
    """
    return finite_or(mean.float().lerp(reading, 1 - decay), mean)


def with_dying_rows(
    score: TileScores, norms: Float[Tensor, " rows"], reached: Int[Tensor, " rows"]
) -> Float[Tensor, "arbors segments"]:
    """`score[a, s] + sum_{r -> s} ||W_r||^2 / A`: the norm of a whole dependency group, the rows that die with segment
    `s` of their reader included (Fang et al. 2023, DepGraph, section 3.3). Every arbor bears an equal part, since the
    rows die when the segment is gone from all `A` of them.

    Args:
        norms: `||W_r||^2` of each row of the producer.
        reached: the reader's segment that each row reaches, -1 where it cannot die.

    >>> with_dying_rows(torch.ones(2, 2), torch.tensor([4.0, 2.0, 8.0]), torch.tensor([0, 0, -1]))
    tensor([[4., 1.],
            [4., 1.]])
    """
    (arbors, segments), dies = score.shape, reached >= 0
    rows = torch.zeros(segments).index_add(0, reached[dies], norms[dies])
    return score + rows / arbors


def per_cost(score: Tensor, saved: float | Tensor) -> Tensor:
    """`I / c`: what the budget pays for. A ranking by it is the greedy solution of the knapsack whose values are the
    scores (Dantzig 1957).

    Args:
        score: `I`, of units that go together.
        saved: `c > 0`, what they cost.

    >>> per_cost(torch.tensor([6.0, 3.0]), 2.0)
    tensor([3.0000, 1.5000])
    """
    return score / saved


def times_cost(score: TileScores, saved: float) -> TileScores:
    """`I c / A`: scores whose sum over the `A` arbors is ranked as their mean, whatever a unit costs, by `per_cost`.

    >>> times_cost(torch.tensor([[1.0], [3.0]]), 4.0)
    tensor([[2.],
            [6.]])
    """
    return score * saved / len(score)


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How a score is made and ranked.

    Attributes:
        measure: The function that reads one step, as a sum over each tile; None for scores that are drawn once.
        score: The function that makes a score of the sum over the whole tile.
        running: Whether the score is a running mean of the readings.
        needs_activity: Whether the inputs of the layer must be observed.
        grouped: Whether the norm of the rows that are removed with a segment is part of its score.
        per_cost: Whether the score is divided by what the segment costs.
    """

    measure: Measure | None
    score: Callable[[Tensor], Tensor] = torch.positive
    running: bool = False
    needs_activity: bool = False
    grouped: bool = False
    per_cost: bool = True


# one for each of `config.IMPORTANCES`, which a test compares
IMPORTANCE: dict[str, Importance] = {
    "dendritic": Importance(measure=gate_gradient, score=gate_information, running=True),
    # the first-order change of the loss, |<W, dL/dW>| (Molchanov et al. 2017, eq. 6)
    "taylor": Importance(measure=gate_gradient, score=torch.abs, running=True),
    # positive where training moves weights away from zero (Sanh et al. 2020, eq. 5)
    "movement": Importance(measure=gate_gradient, score=torch.neg, running=True),
    # divided by the cost it ranks by the mean square weight (Han et al. 2015); along a wire the rows that die with a
    # segment count too: see `with_dying_rows`
    "magnitude": Importance(measure=square_norm, grouped=True),
    # of a group of inputs, the sum over its weights (Sun et al. 2024, eq. 1)
    "activation": Importance(measure=weighted_norm, needs_activity=True),
    "random": Importance(measure=None, per_cost=False),  # every segment is equally likely to go, whatever it costs
}


def random_scores(arbors: int, segments: int, seed: int, name: str) -> TileScores:
    """Uniform scores that depend on the seed and the layer's name alone, hence equal on every rank and after resume.

    >>> random_scores(1, 2, seed=0, name="encoder").equal(random_scores(1, 2, seed=0, name="encoder"))
    True
    """
    generator = torch.Generator().manual_seed(seed + crc32(name.encode()))
    return torch.rand(arbors, segments, generator=generator)
