"""Followers: modules between two layers that treat each channel on its own, and shrink with the channels that die."""

from jaxtyping import Int
from torch import Tensor, nn

from ..distributed.dtensor import unwrapped, whole
from ..unofficial import tensors_in
from .surgery import shallow_copy


def shrink_follower(module: nn.Module, keep: Int[Tensor, " channels"]) -> nn.Module:
    """A per-channel module (BatchNorm, PReLU, depthwise convolution) with only the channels `keep`."""
    small, channels = shallow_copy(module, unwrapped(module)), follower_channels(module)
    for registry in tensors_in(small):
        for name, tensor in registry.items():
            if tensor is not None and tensor.dim() and tensor.shape[0] == channels:
                part = whole(tensor).index_select(0, keep.to(tensor.device))
                registry[name] = nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part
    for attribute in ("num_features", "num_parameters", "groups", "in_channels", "out_channels"):
        if attribute in small.__dict__:
            setattr(small, attribute, len(keep))
    return small


def follower_channels(module: nn.Module) -> int | None:
    """Channels of a module that treats each channel on its own and has parameters for it; None for any other module."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return module.num_features
    if (
        unwrapped(module) is nn.Conv2d
        and isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels > 1
    ):
        return module.groups
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return module.num_parameters
    return None
