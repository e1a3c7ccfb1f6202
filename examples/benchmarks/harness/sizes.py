"""How large a saved model is: parameters and MACs, in all and of the modules that the sparsity is a fraction of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import count_macs, count_macs_by_module
from optimum.dendritic.efficiency.size import count_parameters


def sizes(model: nn.Module, inputs: dict[str, Tensor], targets: list[str]) -> dict[str, Any]:
    """Counted on the model as it is, for one sample; `layers` has both counts of each target module."""
    model.eval()
    batch = Batch.of(inputs).resized(1)
    by_module = count_macs_by_module(model, batch)
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
