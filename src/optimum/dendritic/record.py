"""Where a model keeps its layout: on the model itself, and mirrored in the config that a `PreTrainedModel` saves."""

from torch import nn
from transformers import PreTrainedModel

from .errors import invalid
from .layout import Layout
from .nn import DendriticLayer

ATTRIBUTE = "dendritic_layout"


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
    layers = {}
    for name in injected_layout(model).modules:
        layer = model.get_submodule(name)
        if not isinstance(layer, DendriticLayer):
            rule = f"{name} was replaced after the injection, by an adapter of PEFT or another wrapper"
            remedy = "Take it off, or pack the model first: adapters go on the packed one."
            raise invalid("model", type(model).__name__, rule, remedy)
        layers[name] = layer
    return layers
