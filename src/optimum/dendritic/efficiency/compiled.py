"""The form of a model that is fastest in PyTorch: compiled, on a CPU with its weights packed for oneDNN beforehand.

The public way to packed weights is the freezing of `torch.compile`: weights become constants of the graph, which the
compiler lays out as the library wants them. The model itself keeps its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import invalid
from .conditions import device_of
from .wakeful import wakeful_of


def compiled_forms(models: Sequence[nn.Module]) -> list[nn.Module]:
    """What `torch.compile` makes of each, for inference on inputs of one shape. What was compiled before in this
    process is forgotten, or the models would count as recompilations of each other.

    Raises:
        DendriticError: a model holds what is dormant, which chooses by its inputs what it computes.
    """
    for model in models:
        if wakeful_of(model) is not None:
            rule = "cannot be compiled as a whole: what is dormant in it is computed for some inputs only"
            raise invalid("compiled", True, rule, "Measure it as it is, or load it without its dormant part.")
    torch.compiler.reset()
    return [_compiled(model) for model in models]


def _compiled(model: nn.Module) -> nn.Module:
    freezing: dict[str, Any] | None = {"freezing": True} if device_of(model).type == "cpu" else None
    made = torch.compile(model, dynamic=False, options=freezing)
    assert isinstance(made, nn.Module)
    return made
