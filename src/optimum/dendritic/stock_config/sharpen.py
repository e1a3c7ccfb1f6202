"""Weights that are large enough for a trial: in a model that has not been trained yet attention is flat, and what its
scores are divided by, or how many heads there are, hardly shows in the outputs.

Weights are multiplied by powers of two, which is undone exactly.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

GAIN = 2.0  # what a layer multiplies the norm of its input with, about


@contextmanager
@torch.no_grad()
def sharpened(model: nn.Module) -> Iterator[None]:
    """Matrices whose gain is below `GAIN` have about that; afterwards all weights are as they were, bit for bit."""
    powers = {parameter: _power(parameter) for parameter in model.parameters() if parameter.dim() > 1}
    done: list[nn.Parameter] = []
    try:
        for parameter, power in powers.items():
            parameter.mul_(2.0**power)
            done.append(parameter)
        yield
    finally:
        for parameter in done:
            parameter.mul_(2.0 ** -powers[parameter])


def _power(weight: nn.Parameter) -> int:
    """By which power of two a weight is multiplied; 0 where it is large enough, or nothing."""
    size = float(torch.linalg.vector_norm(weight, dtype=torch.float32)) / math.sqrt(weight.numel())
    wanted = GAIN / math.sqrt(weight[0].numel())
    return max(0, round(math.log2(wanted / size))) if size > 0 and math.isfinite(size) else 0
