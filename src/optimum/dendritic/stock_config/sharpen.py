"""Weights that are large enough for a trial: in a model that has not been trained yet attention is flat, and what its
scores are divided by, or how many heads there are, hardly shows in the outputs.

Weights are multiplied by powers of two, which is undone exactly: no entry overflows, since none is larger than the norm
of its weight, which comes to about `GAIN` times the root of its rows.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

GAIN = 2.0  # what a layer multiplies the norm of its input with, about


@contextmanager
def sharpened(model: nn.Module) -> Iterator[None]:
    """Matrices whose gain is below `GAIN` have about that; afterwards all weights are as they were, bit for bit."""
    parameters = [each.detach() for each in model.parameters() if each.numel() and each.is_floating_point()]
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    powers = {matrix: _power(matrix) for matrix in matrices}
    done: list[Tensor] = []
    try:
        for matrix, power in powers.items():
            matrix.mul_(2.0**power)
            done.append(matrix)
        yield
    finally:
        for matrix in done:
            matrix.mul_(2.0 ** -powers[matrix])


def _power(weight: Tensor) -> int:
    """By which power of two a weight is multiplied; 0 where it is large enough, or nothing."""
    size = float(torch.linalg.vector_norm(weight, dtype=torch.float32)) / math.sqrt(weight.numel())
    wanted = GAIN / math.sqrt(weight[0].numel())
    return max(0, round(math.log2(wanted / size))) if size > 0 and math.isfinite(size) else 0
