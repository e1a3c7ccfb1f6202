"""How large a saved model is: parameters and MACs, in all and of the modules that the sparsity is a fraction of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import _RECURRENT, count_macs
from optimum.dendritic.efficiency.size import count_parameters


def sizes(model: nn.Module, inputs: dict[str, Tensor], targets: list[str]) -> dict[str, Any]:
    """Counted on the model as it is, for one sample; `layers` has both counts of each target module."""
    model.eval()
    batch = Batch.of(inputs).resized(1)
    by_module = _macs_by_module(model, batch)
    layers = {
        name: {"parameters": count_parameters(model.get_submodule(name)), "macs": by_module.get(name, 0)}
        for name in targets
    }
    return {
        "parameters": count_parameters(model),
        "macs": count_macs(model, batch),
        "target_parameters": sum(layer["parameters"] for layer in layers.values()),
        "target_macs": sum(layer["macs"] for layer in layers.values()),
        "layers": layers,
    }


def _macs_by_module(model: nn.Module, batch: Batch) -> dict[str, int]:
    """Module name -> MACs of one forward pass, those of its children included."""
    counter = FlopCounterMode(display=False, custom_mapping=_RECURRENT)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        batch.run(model)
    root = f"{type(model).__name__}."
    counts = {name.removeprefix(root): sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    return counts
