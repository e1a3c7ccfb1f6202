"""What a model must be before a verb touches it: all of it has values, and they can be changed and trained."""

import torch
from torch import nn

from ..errors import invalid


def refuse_unready(model: nn.Module) -> None:
    """Refuse a model of which nothing could be traced, packed or trained.

    Raises:
        DendriticError: a tensor is on the meta device or was made under `torch.inference_mode`, or that mode is on.
    """
    if torch.is_inference_mode_enabled():
        rule = "what is made under it can never be trained"
        raise invalid("torch.inference_mode", True, rule, "Call this under torch.no_grad() instead.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            rule = f"{name} is on the meta device and has no values"
            raise invalid("model", type(model).__name__, rule, "Load all of the model, without offloading.")
        if tensor.is_inference():
            rule = f"{name} was made under torch.inference_mode, so that it can be neither changed nor trained"
            raise invalid("model", type(model).__name__, rule, "Build or load the model outside of it.")
