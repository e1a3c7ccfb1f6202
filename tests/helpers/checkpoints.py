"""Pruned models in folders, for the tests of the loader."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from helpers.models import Inputs, build
from optimum.dendritic import DendriticConfig, compress_, inject_, score_, update_
from optimum.dendritic.state import injected_layout, set_layout


def saved(folder: Path, name: str, form: str, cut: bool = True, **fields: Any) -> tuple[PreTrainedModel, Inputs]:
    """Prune a model by magnitude, half of it unless `fields` say otherwise, and save it.

    Args:
        form: `"injected"` or `"packed"`.
        cut: False leaves the tensors along its groups as wide as they were, as where a cut would break a reshape.
        fields: of the config.
    """
    model, inputs = build(name)
    assert isinstance(model, PreTrainedModel)
    config = DendriticConfig(**{"sparsity": 0.5, "segment_size": 4, "importance": "magnitude", **fields})
    inject_(model, config, example_inputs=inputs)
    if not cut:
        layout = injected_layout(model)
        set_layout(model, replace(layout, groups=tuple(replace(group, cut=False) for group in layout.groups)))
    score_(model)
    update_(model, config.sparsity)
    if form == "packed":
        compress_(model, inputs)
    model.save_pretrained(folder)
    return model, inputs


def pruned(name: str, **fields):
    """An injected model, half pruned at random, its stock twin and its inputs."""
    model, inputs = build(name)
    dense = copy.deepcopy(model)
    config = DendriticConfig(**{"sparsity": 0.5, "segment_size": 4, "importance": "random", **fields})
    inject_(model, config, example_inputs=inputs)
    score_(model)
    update_(model, config.sparsity)
    return model, dense, inputs
