"""Stock modules on the tensors of injected ones: the dense model again, without a copy of anything."""

from torch import nn

from ..unofficial import children_of
from .base import DendriticLayer, drop_own_buffers
from .injected import own_type
from .living_norm import LivingNorm
from .surgery import shallow_copy


def stock_modules(model: nn.Module) -> dict[str, nn.Module]:
    """For each module that injection has exchanged, by its name, the stock one on the same parameters."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, LivingNorm):
            found[name] = module.stock()
        elif isinstance(module, DendriticLayer) and not isinstance(module, nn.ModuleList):
            found[name] = _stock(module)
    return found


def _stock(layer: DendriticLayer) -> nn.Module:
    stock = shallow_copy(layer, own_type(layer))
    drop_own_buffers(stock)
    children_of(stock).pop("sprout", None)
    return stock
