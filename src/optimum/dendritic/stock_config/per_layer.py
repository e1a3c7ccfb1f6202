"""What a config says of single layers: `per_layer_config`, where the installed transformers has it (from 5.23 on).

A layer has numbers of its own there, `{layer: {field: value}}`, and where it has none those of the config. Few stock
classes read them; the others raise when they are built, which a trial tells.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

FIELD = "per_layer_config"
NUMBER = re.compile(rf"((?:\w+\.)*{FIELD})\.(\d+)\.(\w+)")  # the path of a layer's number: where, which layer, what


def beside(path: str) -> tuple[str, str]:
    """Of the path of a field, or of a layer's number, that of `per_layer_config` in the config that holds it, and its
    name."""
    if match := NUMBER.fullmatch(path):
        return match[1], match[3]
    holder, _, name = path.rpartition(".")
    return f"{holder}.{FIELD}".removeprefix("."), name


def layers_of(config: PreTrainedConfig) -> dict[str, list[dict[str, Any]]]:
    """What each layer has of its own, of a config and of those inside it, by the dotted path of `per_layer_config`.

    It is there for each config that says how many layers there are, though none may have anything of its own.
    """
    own, inner = _own_layers(config), {name: v for name, v in vars(config).items() if isinstance(v, PreTrainedConfig)}
    nested = {f"{name}.{path}": layers for name, each in inner.items() for path, layers in layers_of(each).items()}
    return ({FIELD: own} if own else {}) | nested


def _own_layers(config: PreTrainedConfig) -> list[dict[str, Any]]:
    names = config.attribute_map  # an override may have another name of a field, too
    depth = vars(config).get(names.get("num_hidden_layers", "num_hidden_layers"))
    if type(depth) is not int or not hasattr(type(config), FIELD):
        return []
    written: dict[str, dict[str, Any]] = config.to_dict()[FIELD] if config.is_heterogeneous else {}
    layers: list[dict[str, Any]] = [{} for _ in range(depth)]
    for layer, own in written.items():
        layers[int(layer)] = {names.get(name, name): value for name, value in own.items()}
    return layers


def layer_numbers(config: PreTrainedConfig, shared: Mapping[str, int]) -> dict[str, int]:
    """The whole numbers of each layer by dotted path (`per_layer_config.3.num_attention_heads`).

    Args:
        shared: numbers by dotted path, which each layer of the config that they stand in has, too, unless it has its
            own.
    """
    found = {}
    for path, layers in layers_of(config).items():
        holder = path.removesuffix(FIELD)
        common = {name.removeprefix(holder): n for name, n in shared.items() if name.rpartition(".")[0] == holder[:-1]}
        for layer, own in enumerate(layers):
            found |= {f"{path}.{layer}.{name}": n for name, n in (common | own).items() if type(n) is int}
    return found


def set_layers_(config: PreTrainedConfig, path: str, layers: Sequence[Mapping[str, Any]]) -> None:
    """Let the config at the dotted `path` of its `per_layer_config` say what each of its layers has of its own.

    Raises:
        ValueError: it has another number of layers, or does not admit it.
    """
    for name in path.split(".")[:-1]:
        config = vars(config)[name]
    config.per_layer_config = {layer: dict(own) for layer, own in enumerate(layers)}
    if len(config.per_layer_config) != len(layers):
        raise ValueError(f"{path} is of {len(layers)} layers, and there are {len(config.per_layer_config)}")
