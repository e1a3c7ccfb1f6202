"""Which modules are norms, and where they have their channels, found by trying them."""

import math

from torch import Tensor, nn
from torch.func import functional_call

from .readers import READERS

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def may_be_norm(module: nn.Module) -> bool:
    """Whether a module has parameters of one length only and no modules inside, or is a norm by its class."""
    if isinstance(module, NORMS):
        return True
    shapes = {parameter.shape for parameter in module.parameters(recurse=False)}
    leaf = not isinstance(module, READERS) and next(module.children(), None) is None
    return leaf and len(shapes) == 1 and len(next(iter(shapes))) == 1


def norm_axis_of(norm: nn.Module, x: Tensor) -> int:
    """Where a norm has its channels: the axis of `x` along which changing one entry of a parameter changes one index.
    A norm without parameters has them where its class says."""
    parameters = dict(norm.named_parameters(recurse=False))
    if not parameters:
        return 1 if isinstance(norm, nn.GroupNorm) else -1
    name, parameter = next(iter(parameters.items()))
    moved = parameter.detach().clone()
    moved[0] += 1
    changed = functional_call(norm, {name: moved}, (x,)) != functional_call(norm, {name: parameter.detach()}, (x,))
    indices = changed.nonzero().unbind(1)
    axes = [a for a in range(x.dim()) if x.shape[a] == len(parameter) and len(indices[a]) and not indices[a].any()]
    return axes[-1] if axes else -1


def mixes_channels(module: nn.Module, x: Tensor, axis: int) -> bool:
    """Whether one channel of `x` has a share in the others; a scale or a bias for each channel has not."""
    marked = x.clone()
    marked.select(axis, 0).fill_(math.nan)
    output = module.forward(marked)
    return bool(output.narrow(axis, 1, output.shape[axis] - 1).isnan().any())
