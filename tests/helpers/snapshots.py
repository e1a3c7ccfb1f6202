"""All that a refused call must leave alone."""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from helpers.compare import every
from optimum.dendritic.state import layout_of


def snapshot(model: nn.Module) -> dict:
    """Everything that a refused call must leave alone."""
    return {
        "modules": {name: (module, module.training) for name, module in model.named_modules()},
        "state": {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()},
        "layout": copy.deepcopy(layout_of(model)),
        "config": model.config.to_json_string() if isinstance(model, PreTrainedModel) else None,
    }


def same(before: dict, after: dict) -> bool:
    states = before["state"].keys() == after["state"].keys() and every(
        before["state"][name][0] == place and torch.equal(before["state"][name][1], tensor)
        for name, (place, tensor) in after["state"].items()
    )
    return states and all(before[key] == after[key] for key in ("modules", "layout", "config"))
