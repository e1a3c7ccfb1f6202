"""Modules that have something for each channel, and shrink with the channels that die: followers, norms, embeddings."""

from collections.abc import Mapping

from jaxtyping import Int
from torch import Tensor, nn

from ..distributed.dtensor import unwrapped, whole
from ..unofficial import tensors_in
from .surgery import shallow_copy

SIZES = ("num_features", "num_parameters", "num_channels", "groups", "in_channels", "out_channels", "embedding_dim")


def shrink_channels(
    module: nn.Module, keep: Int[Tensor, " channels"], gathered: Mapping[int, Tensor] | None = None
) -> nn.Module:
    """A module with something for each channel, such as a norm or an embedding, with only the channels `keep`.

    Args:
        keep: ascending.
        gathered: parameters of a sharded model that are whole already, by identity.
    """
    small, channels = shallow_copy(module, unwrapped(module)), channels_of(module)
    axis = 1 if isinstance(module, nn.Embedding) else 0
    for registry in tensors_in(small):
        for name, tensor in registry.items():
            if tensor is not None and tensor.dim() > axis and tensor.shape[axis] == channels:
                known = (gathered or {}).get(id(tensor))
                source = whole(tensor) if known is None else known
                part = source.index_select(axis, keep.to(source.device))
                registry[name] = nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part
    own = vars(small)
    if isinstance(module, nn.GroupNorm):
        own["num_groups"] = module.num_groups * len(keep) // module.num_channels
    if "normalized_shape" in own:
        own["normalized_shape"] = (len(keep),)
    own.update({size: len(keep) for size in SIZES if size in own})
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


def channels_of(module: nn.Module) -> int | None:
    """Channels of a follower, a norm or an embedding; None for any other module."""
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return module.normalized_shape[-1]
    return follower_channels(module) or _length(module)


def _length(module: nn.Module) -> int | None:
    """The one length of the parameters of a module without modules inside, as norms of any class have them."""
    shapes = {parameter.shape for parameter in module.parameters(recurse=False)}
    leaf = next(module.children(), None) is None
    return next(iter(shapes))[0] if leaf and len(shapes) == 1 and len(next(iter(shapes))) == 1 else None
