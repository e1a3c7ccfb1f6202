"""Scores of channels from what was read of a model, and how well one ranking agrees with another."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from optimum.dendritic.functional.importance import running_mean

Channels = Float[Tensor, " channels"]


@dataclass(frozen=True)
class Readings:
    """What a model shows of its channels.

    Attributes:
        batches: `dL/dm` of each batch in the order of the steps, `[steps, channels]`.
        samples: `dL/dm` of each sample's own loss, with fixed normalisation, `[samples, channels]`.
        batch_size: The number of samples in a batch.
        squares: The mean square of each channel's activation.
        rows: `||W||^2` of what makes each channel.
        scales: `||W||^2` of its normalisation.
        columns: `||W||^2` of what reads it.
    """

    batches: Float[Tensor, "steps channels"]
    samples: Float[Tensor, "samples channels"]
    batch_size: int
    squares: Channels
    rows: Channels
    scales: Channels
    columns: Channels


def running(batches: Float[Tensor, "steps channels"], decay: float) -> Channels:
    """The score that a training keeps: the running second moment of the gates' gradients."""
    score = torch.zeros(batches.shape[1])
    for batch in batches:
        score = running_mean(score, batch.square(), decay)
    return score


def second_order(samples: Float[Tensor, "samples channels"]) -> Channels:
    """`-E[g] + E[g^2] / 2`: the change of the loss to second order when a gate goes from 1 to 0, with the Fisher
    information in place of the second derivative (LeCun et al. 1990; Theis et al. 2018, eq. 7)."""
    return -samples.mean(0) + samples.square().mean(0) / 2


def ranks(score: Channels) -> Channels:
    """In [0, 1]; equal scores in the order of their places.

    >>> ranks(torch.tensor([5.0, 1.0, 3.0]))
    tensor([1.0000, 0.0000, 0.5000])
    """
    return score.argsort(stable=True).argsort().float() / max(1, len(score) - 1)


def mixture(first: Channels, second: Channels, share: float = 0.5) -> Channels:
    """`share` of the rank by `first`, the rest by `second`."""
    return share * ranks(first) + (1 - share) * ranks(second)


def scaled_norm(readings: Readings) -> Channels:
    """`γ^2 ||W||^2`, scale and column: a row that is normalised says nothing by its own norm."""
    return readings.scales * readings.columns


Rule = Callable[[Readings], Channels]
SCORES: dict[str, Rule] = {
    "magnitude": lambda r: r.rows + r.columns,
    "dendritic": lambda r: running(r.batches, 0.99),
    "taylor": lambda r: r.batches.abs().mean(0),
    "activation": lambda r: r.squares * r.columns,
    "more batches": lambda r: r.batches.square().mean(0),
    "centred": lambda r: r.batches.var(0),
    "single samples": lambda r: r.samples.square().mean(0),
    "second order": lambda r: second_order(r.samples),
    "scaled norm": scaled_norm,
    "rank mixture": lambda r: mixture(running(r.batches, 0.99), r.rows + r.columns),
    "rank mixture, scaled": lambda r: mixture(r.samples.square().mean(0), scaled_norm(r)),
}


def spearman(first: Channels, second: Channels) -> float:
    """Rank correlation.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0]))
    -1.0
    """
    return round(float(torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1]), 4)


def within(first: Channels, second: Channels, layers: Int[Tensor, " channels"]) -> float:
    """Mean over the layers of the rank correlation inside each."""
    found = [spearman(first[layers == layer], second[layers == layer]) for layer in layers.unique()]
    return round(sum(found) / len(found), 4)


def between(first: Channels, second: Channels, layers: Int[Tensor, " channels"]) -> float:
    """Rank correlation of the layers' means."""
    means = [torch.stack([score[layers == layer].mean() for layer in layers.unique()]) for score in (first, second)]
    return spearman(means[0], means[1])


def weakest(score: Channels, costs: Channels, share: float) -> Bool[Tensor, " channels"]:
    """The channels of the lowest score per cost that together cost `share` of all."""
    order = (score / costs).argsort(stable=True)
    gone = costs[order].cumsum(0) <= share * costs.sum()
    return torch.zeros(len(score), dtype=torch.bool).index_fill(0, order[gone], True)


def divided(
    amounts: Bool[Tensor, " channels"], score: Channels, layers: Int[Tensor, " channels"]
) -> Bool[Tensor, " channels"]:
    """As many channels of each layer as `amounts` has, the lowest by `score`: one ranking says how many, another which.

    >>> divided(torch.tensor([True, False, False]), torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 0, 1]))
    tensor([False,  True, False])
    """
    gone = torch.zeros_like(amounts)
    for layer in layers.unique():
        own = (layers == layer).nonzero().flatten()
        gone[own[score[own].argsort(stable=True)[: int(amounts[own].sum())]]] = True
    return gone
