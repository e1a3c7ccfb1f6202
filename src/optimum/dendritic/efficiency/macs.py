"""Multiply-accumulates of one forward pass, counted on the operators that really run.

`FlopCounterMode` knows matrix products and convolutions, and silently counts nothing for a fused kernel that it does
not know: on a CPU those of scaled-dot-product attention, of `nn.LSTM`, and of `nn.TransformerEncoderLayer`'s fast path.
Attention and encoder layers are therefore run unfused here, and the recurrent kernels get a formula. Elementwise work,
gathers and scatters count nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..process_state import plain_attention, without_fast_path
from .batch import Batch


def count_macs(model: nn.Module, batch: Batch) -> int:
    """MACs of `model` on `batch`; one MAC is two floating-point operations."""
    return _counted(model, batch).get_total_flops() // 2


def count_macs_by_module(model: nn.Module, batch: Batch) -> dict[str, int]:
    """The same by name of submodule, each with all that it calls; one that multiplies nothing is left out."""
    root = f"{type(model).__name__}."
    counts = _counted(model, batch).get_flop_counts()
    return {
        name.removeprefix(root): sum(flops.values()) // 2 for name, flops in counts.items() if name.startswith(root)
    }


def _counted(model: nn.Module, batch: Batch) -> FlopCounterMode:
    counter = FlopCounterMode(display=False, custom_mapping=RECURRENT)
    with torch.no_grad(), plain_attention(), without_fast_path(), _frozen(model), counter:
        batch.run(model)
    return counter


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient: the counter would follow it, and fails on a view of one made under no_grad."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _recurrent_flops(steps: torch.Size, *weights: torch.Size) -> int:
    """Every matrix is multiplied once for each sample and time step; `steps` is `(..., features)`."""
    return 2 * math.prod(steps[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _mkldnn_rnn_flops(inputs, weight_ih, weight_hh, *args, out_shape=None, **kwargs) -> int:
    return _recurrent_flops(inputs, weight_ih, weight_hh)


def _cudnn_rnn_flops(inputs, weights, *args, out_shape=None, **kwargs) -> int:
    return _recurrent_flops(inputs, *weights)


RECURRENT = {
    torch.ops.aten.mkldnn_rnn_layer: _mkldnn_rnn_flops,
    torch.ops.aten._cudnn_rnn: _cudnn_rnn_flops,
}
