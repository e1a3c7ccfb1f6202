"""The density map: what is left of each layer that was changed, and of the whole model."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import invalid
from ..layout.layout import Layout
from ..layout.records import Follower
from ..nn import (
    DendriticLayer,
    RecurrentLayer,
    is_recurrent_layer,
    is_weight_layer,
)
from ..nn.pack_model import pack_modules
from ..state import dense_config_of, layers_in, layout_of, split_stacks
from .describe import DENSE, describe
from .layer_density import LayerDensity as LayerDensity
from .layer_density import Side as Side
from .layer_density import all_size, layer_density, own_size

DENSE_REMEDY = "Pass dense=, the model before it was pruned."


@dataclass(frozen=True, kw_only=True)
class Density:
    """The density map of a model.

    Attributes:
        model: The name of its class.
        packed: Whether it is packed; one that is not is described as it would be packed now, layer by layer.
        layers: Those that were touched, in the model's order.
        untouched: Names of other layers that multiply by a weight.
        parameters: Parameters of the whole model at present.
        dense_parameters: Parameters of the whole model before it was pruned.
    """

    model: str
    packed: bool
    layers: tuple[LayerDensity, ...]
    untouched: tuple[str, ...]
    parameters: int
    dense_parameters: int

    def target_parameters(self) -> tuple[int, int]:
        """Parameters of the touched layers, at present and before they were pruned."""
        return sum(layer.parameters for layer in self.layers), sum(layer.dense_parameters for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; places are left out."""
        return {
            "model": self.model,
            "packed": self.packed,
            "parameters": self.parameters,
            "dense_parameters": self.dense_parameters,
            "layers": {
                layer.name: {
                    "form": layer.words,
                    "parameters": layer.parameters,
                    "dense_parameters": layer.dense_parameters,
                    "inputs": {"dense": layer.inputs.size, "kept": layer.inputs.kept},
                    "outputs": {"dense": layer.outputs.size, "kept": layer.outputs.kept},
                }
                for layer in self.layers
            },
            "untouched": list(self.untouched),
        }


def density(model: nn.Module, dense: nn.Module | None = None) -> Density:
    """The density map of a stock (nothing is touched), injected, packed or loaded model; it is left as it is.

    Args:
        dense: the model before it was pruned, for its shapes; only needed for a packed model that is not a
            `PreTrainedModel`. It may be on the meta device.

    Raises:
        DendriticError: the dense shapes are not known.
    """
    layout, words, kind = layout_of(model), describe(model), type(model).__name__
    if layout is None:
        total = all_size(model)
        counts = {"parameters": total, "dense_parameters": total}
        return Density(model=kind, packed=False, layers=(), untouched=tuple(words), **counts)
    if layout.packed:
        dense = _dense(model) if dense is None else dense
        layers = [name for name, record in layout.modules.items() if not isinstance(record, Follower)]
        modules = {name: model.get_submodule(name) for name in layers}
        _check_dense(type(model), dict(dense.named_modules()), modules)
        total, dense_total = all_size(model), all_size(dense)
    else:
        stacks, layers = split_stacks(layers_in(model, layout))
        skipped = [
            f"{name}.{i}." for name, stack in stacks.items() for i in (~stack.dendrite_mask[0]).nonzero()[:, 0].tolist()
        ]
        dense, modules = model, _packed_alone(model, layout, layers)
        modules = {name: module for name, module in modules.items() if not name.startswith(tuple(skipped))}
        added = sum(all_size(layer) - own_size(layer) for layer in layers.values()) + sum(
            map(own_size, stacks.values())
        )
        dense_total = all_size(model) - added
        total = dense_total + sum(all_size(modules[name]) - own_size(model.get_submodule(name)) for name in modules)
        total -= sum(all_size(model.get_submodule(block.rstrip("."))) for block in skipped)
    found = [
        layer_density(name, modules[name], dense.get_submodule(name), words[name]) for name in words if name in modules
    ]
    untouched = tuple(name for name, word in words.items() if word == DENSE)
    counts = {"parameters": total, "dense_parameters": dense_total}
    return Density(model=kind, packed=layout.packed, layers=tuple(found), untouched=untouched, **counts)


def _dense(model: nn.Module) -> nn.Module:
    """The stock model that the config describes, on the meta device."""
    if not isinstance(model, PreTrainedModel):
        rule = "only a PreTrainedModel tells its dense shapes once packed"
        raise invalid("model", type(model).__name__, rule, DENSE_REMEDY)
    config = copy.deepcopy(dense_config_of(model))
    try:
        with torch.device("meta"):
            return type(model)(config)
    except Exception as error:  # whatever a class raises at its own config, the config does not rebuild it
        rule = f"its config does not rebuild it: {type(error).__name__}: {error}"
        raise invalid("model", type(model).__name__, rule, DENSE_REMEDY) from error


def _check_dense(kind: type, dense: dict[str, nn.Module], packed: dict[str, nn.Module]) -> None:
    for name, module in packed.items():
        before = dense.get(name, nn.Identity())
        if not (is_recurrent_layer(before) if isinstance(module, RecurrentLayer) else is_weight_layer(before)):
            rule = f"the dense model has no such layer as {name}, so its dense shape is not known"
            raise invalid("model", kind.__name__, rule, DENSE_REMEDY)


def _packed_alone(model: nn.Module, layout: Layout, layers: dict[str, DendriticLayer]) -> dict[str, nn.Module]:
    """The layers of an injected model, packed with nothing cut, so that every place is still known."""
    kept = {name: layer.kept() for name, layer in layers.items()}
    return pack_modules(model, kept, [replace(bundle, cut=False) for bundle in layout.bundles])
