"""The state that compression keeps on a model: its layout, which is mirrored in the config that a `PreTrainedModel`
saves, and the name of the dense model that it was."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .errors import invalid
from .functional.units import living, units_along
from .layout.layout import Layout
from .layout.records import Group
from .nn import DendriticGroup, DendriticLayer, DendriticStack, DendriticWeight, Gates, weight_layer, widths

ATTRIBUTE = "dendritic_layout"
DENSE_CONFIG = "dendritic_dense_config"
BASE = "dendritic_base"
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")  # how huggingface_hub names what it downloads


@dataclass(frozen=True)
class Source:
    """Where a model comes from, without a path of this machine.

    Attributes:
        name: The id on the Hub, or the name of a folder without the folders above it.
        on_hub: Whether `name` is an id on the Hub.
    """

    name: str
    on_hub: bool


def source_named(name: str | None) -> Source | None:
    """The name to publish of the model that `from_pretrained(name)` loads; None if it does not have one.

    >>> source_named("google/bert_uncased"), source_named("/home/me/runs/bert-sst2/")
    (Source(name='google/bert_uncased', on_hub=True), Source(name='bert-sst2', on_hub=False))
    >>> source_named("/home/me/.cache/huggingface/hub/models--google--bert_uncased/snapshots/0123abcd")
    Source(name='google/bert_uncased', on_hub=True)
    """
    if not name:
        return None
    cached = CACHED.search(Path(name).as_posix())
    if cached:
        return Source("/".join(cached.groups()), on_hub=True)
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not Path(name).exists():
        return Source(name, on_hub=True)
    last = Path(name).resolve().name
    return Source(last, on_hub=False) if last else None


def note_base(model: nn.Module) -> None:
    """Record the name that `model`, still dense, was loaded by; the next `save_pretrained` changes the name."""
    if isinstance(model, PreTrainedModel):
        model.__dict__[BASE] = source_named(model.name_or_path)


def base_of(model: nn.Module) -> Source | None:
    """The dense model that `model` was; None if that is unknown, as for one that was loaded compressed."""
    return model.__dict__.get(BASE)


def layout_of(model: nn.Module) -> Layout | None:
    """The layout of an injected or packed model, None for a stock one."""
    return model.__dict__.get(ATTRIBUTE)


def set_layout(model: nn.Module, layout: Layout) -> None:
    """Record the present shape of `model`."""
    model.__dict__[ATTRIBUTE] = layout
    if isinstance(model, PreTrainedModel) and layout.config.native and layout.packed:
        model.config.__dict__.pop("quantization_config", None)  # it is a stock model, and its config a stock config
    elif isinstance(model, PreTrainedModel):
        model.config.quantization_config = layout.to_dict()


def injected_layout(model: nn.Module) -> Layout:
    """The layout of a model that is injected and not yet packed. Raises `DendriticError` for any other."""
    layout = layout_of(model)
    if layout is None:
        raise invalid("model", type(model).__name__, "has no dendritic segments", "Call inject_(model, config) first.")
    if layout.packed:
        raise invalid("model", type(model).__name__, "is packed already", "Load or build the dense model to prune it.")
    return layout


def dendritic_layers(model: nn.Module) -> dict[str, DendriticLayer]:
    """The injected layers by name, in the layout's order.

    Raises:
        DendriticError: `model` is not injected, or another module stands in a layer's place.
    """
    return layers_in(model, injected_layout(model))


def layers_in(model: nn.Module, layout: Layout) -> dict[str, DendriticLayer]:
    """The layers that the layout of an injected model names, as `dendritic_layers`."""
    layers = {}
    for name in layout.modules:
        layer = model.get_submodule(name)
        if not isinstance(layer, DendriticLayer):
            rule = f"{name} was replaced after the injection, by an adapter of PEFT or another wrapper"
            remedy = "Remove it, or pack the model first and add adapters to the packed one."
            raise invalid("model", type(model).__name__, rule, remedy)
        layers[name] = layer
    return layers


def gates_of(model: nn.Module) -> dict[str, Gates]:
    """The gates of an injected model, as `gates_in`.

    Raises:
        DendriticError: `model` is not injected, or another module stands in a layer's place.
    """
    layout = injected_layout(model)
    return gates_in(model, layout, layers_in(model, layout))


def gates_in(model: nn.Module, layout: Layout, layers: Mapping[str, DendriticLayer]) -> dict[str, Gates]:
    """All that is scored, pruned and regrown, by the layer that holds its mask: groups that are cut, the layers that
    have a mask of their own, stacks.

    Args:
        layers: those of `layers_in`.
    """
    groups = {group.host: group for group in layout.groups if group.cut}
    return {
        name: group_in(model, groups[name]) if name in groups else layer
        for name, layer in layers.items()
        if layer.dendrite_mask.numel()
    }


def group_in(model: nn.Module, group: Group) -> DendriticGroup:
    """The gates of a group that is cut."""
    host = model.get_submodule(group.host)
    assert isinstance(host, DendriticWeight)
    layers = {member: weight_layer(model, member.name) for member in group.consumers}
    device = host.dendrite_mask.device
    consumers = {m.name: (layer, units_along(m.runs, widths(layer)[0], device)) for m, layer in layers.items()}
    return DendriticGroup(host, consumers)


def kept_in(
    model: nn.Module, layout: Layout, layers: Mapping[str, DendriticLayer]
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """The ascending inputs (int64, on the CPU) that each arbor of each layer still reads, of a recurrent layer the
    hidden units; and for each group that is cut, by its host, which units are left. Stacks of blocks read nothing."""
    layers = split_stacks(layers)[1]
    kept = {name: layer.kept() for name, layer in layers.items() if not _is_host(layout, name)}
    alive = {}
    for group in layout.groups:
        if group.cut:
            gates = group_in(model, group)
            alive[group.host] = gates.alive()
            for name, (_, units) in gates.consumers.items():
                if name in layers:
                    kept[name] = [living(units.cpu(), alive[group.host]).nonzero().flatten()]
    return {name: kept[name] for name in layers}, alive


def _is_host(layout: Layout, name: str) -> bool:
    return any(group.cut and group.host == name for group in layout.groups)


def split_stacks(
    layers: Mapping[str, DendriticLayer],
) -> tuple[dict[str, DendriticStack], dict[str, DendriticLayer]]:
    """The stacks of blocks among injected layers, and the others."""
    stacks = {name: layer for name, layer in layers.items() if isinstance(layer, DendriticStack)}
    return stacks, {name: layer for name, layer in layers.items() if name not in stacks}


def dense_config_of(model: PreTrainedModel) -> PreTrainedConfig:
    """The config of the dense model: the model's own, unless it is native and its config tells what is left."""
    return model.__dict__.get(DENSE_CONFIG, model.config)


def set_dense_config(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Record, on the model object alone, what the config of a native model was."""
    model.__dict__[DENSE_CONFIG] = config
