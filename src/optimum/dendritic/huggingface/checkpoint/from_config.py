"""A model of the packed shapes that a config records, without the tensors of its checkpoint."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ...errors import invalid
from ...layout.layout import Layout
from ...nn.surgery import place, set_numbers, swap
from ...state import set_layout
from .auto_class import auto_class_for
from .build import build, with_cost
from .fitting import fit_
from .key_mapping import resolver


def from_config(config: PretrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """A new model in the shapes of the compressed one whose config this is, with initial weights.

    (`AutoModel….from_config` builds the dense model, whatever the config records.) Under accelerate's
    `init_empty_weights` it holds no memory, and `load_checkpoint_and_dispatch` fills it from the checkpoint.

    Args:
        config: With a layout under `quantization_config`, as `AutoConfig.from_pretrained` reads it.
        kwargs: For the `from_config` of the Auto class that builds the architecture that the config names.

    Raises:
        CheckpointError: the layout contradicts itself or the model.
        DendriticError: the config has no layout, or no Auto class builds its architecture.
    """
    fields = config.to_dict().get("quantization_config")
    if not isinstance(fields, dict):
        remedy = "Build it with the from_config of its Auto class."
        raise invalid("config", type(config).__name__, "has no quantization_config of a compressed model", remedy)
    layout = Layout.from_dict(fields)
    model = auto_class_for(config).from_config(config, **kwargs)
    assert isinstance(model, PreTrainedModel)
    layout = fit_(model, layout, lambda model: resolver(model, set()), initial=True)
    modules, parameters = build(model, layout)
    for name, module in modules.items():
        _initialise_(module, model.get_submodule(name))
    for name, parameter in parameters.items():
        parameter.copy_(_corner(model.get_parameter(name), parameter))
    swap(model, modules)
    place(model, parameters)
    set_numbers(model, layout.numbers)
    model.tie_weights()
    set_layout(model, with_cost(model, layout, trusted=True))
    return model


@torch.no_grad()
def _initialise_(module: nn.Module, dense: nn.Module) -> None:
    """Give a module a corner of each tensor of the dense one, and the first of its inputs and outputs."""
    initial = dict(dense.named_parameters()) | dict(dense.named_buffers())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name in initial and initial[name] is not tensor:
            tensor.copy_(_corner(initial[name], tensor))
        elif name in ("inputs", "outputs"):
            tensor.copy_(torch.arange(tensor.shape[-1], device=tensor.device).expand_as(tensor))


def _corner(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor[tuple(slice(length) for length in like.shape)]
