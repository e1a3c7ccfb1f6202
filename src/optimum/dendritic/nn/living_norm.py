"""Norms over a stream that has lost channels: their statistics are those of the channels that are left.

With all channels alive a norm computes the stock operation on the stock parameters, bit for bit. After that it is what
the packed norm will be: the stock operation on the channels that are left; the others become zero.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.func import functional_call

from ..distributed.dtensor import unwrapped
from ..errors import invalid
from ..functional.channels import gather_channels, scatter_channels
from ..functional.units import living
from ..unofficial import version_of
from .base import DendriticLayer
from .per_channel import shrink_channels
from .surgery import shallow_copy


class Living:
    """Which channels of a norm are left, as the mask of its group says at present."""

    def __init__(self, host: DendriticLayer, units: Int[Tensor, " channels"]) -> None:
        """
        Args:
            host: the layer that holds the mask of the group.
            units: the unit of each channel, -1 where it has none.
        """
        self.host, self.units = host, units
        self.read: tuple[int, int] | None = None
        self.keep: Tensor | None = None

    def channels(self) -> Int[Tensor, " left"] | None:
        """Ascending channels that are left; None while all are."""
        mask = self.host.dendrite_mask
        now = (id(mask), version_of(mask))
        if self.read != now:  # so the device is asked once for every change of the mask
            left = living(self.units, mask[0].cpu())
            self.keep, self.read = None if bool(left.all()) else left.nonzero().flatten().to(mask.device), now
        return self.keep


class LivingNorm(nn.Module):
    """A norm of any class whose statistics are those of the channels that are left."""

    living: Living
    channel_axis: int

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        keep = self.living.channels()
        if keep is None:
            return super().forward(*args, **kwargs)
        (x,) = [*args, *kwargs.values()]
        if x.dim() < -self.channel_axis or x.shape[self.channel_axis] != len(self.living.units):
            rule = f"has no {len(self.living.units)} channels at its axis {self.channel_axis}, which the layout records"
            raise invalid("input", tuple(x.shape), rule, "The checkpoint is damaged; save the model again.")
        own = dict(self.named_parameters(recurse=False))
        with torch.no_grad():
            small = shrink_channels(self.stock(), keep)
        parts = {name: parameter.index_select(0, keep) for name, parameter in own.items()}
        y = functional_call(small, parts, (gather_channels(x, keep, self.channel_axis),))
        return scatter_channels(y, keep, len(self.living.units), self.channel_axis)

    def stock(self) -> nn.Module:
        """The stock norm on the same parameters."""
        stock = shallow_copy(self, stock_norm(self))
        del stock.__dict__["living"], stock.__dict__["channel_axis"]
        return stock


def stock_norm(norm: nn.Module) -> type[nn.Module]:
    """The stock class of a norm."""
    return next(kind for kind in unwrapped(norm).__mro__ if not issubclass(kind, LivingNorm))


def living_norm(norm: nn.Module, living: Living, channel_axis: int) -> LivingNorm:
    """A living norm on the *same* parameters, hooks and flags as `norm`, which is left as it was.

    Args:
        channel_axis: where its input has the channels, counted from the end.
    """
    made = shallow_copy(norm, _living_class(unwrapped(norm)))
    made.living, made.channel_axis = living, channel_axis
    return made


@cache
def _living_class(stock: type[nn.Module]) -> type[LivingNorm]:
    return type(f"Dendritic{stock.__name__}", (LivingNorm, stock), {})
