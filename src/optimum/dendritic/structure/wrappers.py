"""The model of transformers inside another module, which calls it and saves it: the one that is compressed."""

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel

from ..unofficial import is_compiled


def inner_model(model: Any) -> nn.Module:
    """The `PreTrainedModel` that `model` is, or that it holds if it holds one alone; else `model` itself.

    What runs a model on several devices or compiles it is not such a holder, and is not looked into.
    """
    if isinstance(model, PreTrainedModel | DataParallel | DistributedDataParallel) or is_compiled(model):
        return model
    outermost = _outermost(model)
    return outermost[0] if len(outermost) == 1 else model


def _outermost(module: nn.Module) -> list[PreTrainedModel]:
    if isinstance(module, PreTrainedModel):
        return [module]
    found = {id(inner): inner for child in module.children() for inner in _outermost(child)}
    return list(found.values())
