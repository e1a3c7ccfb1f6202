"""Norms over living channels: the stock norm while all live, after that the stock norm of those that are left."""

import pytest
import torch
from helpers.models import roughen
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from optimum.dendritic import DendriticError
from optimum.dendritic.nn import DendriticLayer, inject_layer
from optimum.dendritic.nn.living_norm import Living, LivingNorm, living_norm, stock_norm

WIDTH, GROUPS = 8, 4
NORMS = {
    "LayerNorm": (lambda width: nn.LayerNorm(width), -1),
    "LayerNorm without bias": (lambda width: nn.LayerNorm(width, bias=False), -1),
    "RMSNorm": (lambda width: nn.RMSNorm(width), -1),
    "LlamaRMSNorm": (lambda width: LlamaRMSNorm(width), -1),
    "T5LayerNorm": (lambda width: T5LayerNorm(width), -1),
    "GroupNorm": (lambda width: nn.GroupNorm(width * GROUPS // WIDTH, width), -3),
    "ConvNextLayerNorm": (lambda width: ConvNextLayerNorm(width, data_format="channels_first"), -3),
}


def host(units: int) -> DendriticLayer:
    return inject_layer(nn.Linear(units, 2), 1, units, False, 0)


def norms(name: str) -> tuple[nn.Module, LivingNorm, DendriticLayer, Tensor, int]:
    """A stock norm, its living twin, the layer that holds the mask, an input, and where that has its channels."""
    make, axis = NORMS[name]
    stock = roughen(make(WIDTH))
    units = torch.arange(WIDTH) // (WIDTH // GROUPS if name == "GroupNorm" else 1)
    holder = host(int(units.max()) + 1)
    shape = (2, 3, WIDTH) if axis == -1 else (2, WIDTH, 3, 3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    return stock, living_norm(stock, Living(holder, units), axis), holder, x, axis


every_norm = pytest.mark.parametrize("name", NORMS)


@every_norm
def test_while_all_live_it_is_the_stock_norm_bit_for_bit(name):
    stock, living, _, x, _ = norms(name)
    assert torch.equal(living(x), stock(x))
    assert isinstance(living, type(stock)) and stock_norm(living) is type(stock)
    assert dict(living.named_parameters()).keys() == dict(stock.named_parameters()).keys()
    assert all(p is q for p, q in zip(living.parameters(), stock.parameters(), strict=True))


@every_norm
@given(seed=st.integers(0, 99), gone=st.integers(1, 3))
def test_with_dead_channels_it_is_the_stock_norm_of_those_that_live(name, seed, gone):
    stock, living, holder, x, axis = norms(name)
    order = torch.randperm(holder.dendrite_mask.shape[1], generator=torch.Generator().manual_seed(seed))
    holder.dendrite_mask[0, order[:gone]] = False
    keep = holder.dendrite_mask[0][living.living.units].nonzero().flatten()
    small = NORMS[name][0](len(keep))
    with torch.no_grad():
        for own, whole in zip(small.parameters(), stock.parameters(), strict=True):
            own.copy_(whole[keep])
    found = living(x)
    expected = small(x.index_select(axis, keep))
    assert torch.equal(found.index_select(axis, keep), expected)
    dead = torch.ones(WIDTH, dtype=torch.bool).index_fill(0, keep, False).nonzero().flatten()
    assert len(dead) and not found.index_select(axis, dead).any()
    x.requires_grad_(True)
    living(x).square().sum().backward()
    assert x.grad is not None and not x.grad.index_select(axis, dead).any() and x.grad.any()
    for parameter in living.parameters():
        assert parameter.grad is not None and not parameter.grad[dead].any() and parameter.grad[keep].any()


@every_norm
def test_it_follows_every_change_of_the_mask(name):
    stock, living, holder, x, _ = norms(name)
    expected = stock(x)
    for _ in range(2):
        holder.dendrite_mask[0, 0] = False
        assert not torch.equal(living(x), expected)
        holder.dendrite_mask.fill_(True)
        assert torch.equal(living(x), expected)
    holder.register_buffer("dendrite_mask", holder.dendrite_mask.clone())
    holder.dendrite_mask[0, 1] = False
    assert not torch.equal(living(x), expected)


@pytest.mark.parametrize("axis", [-2, -4])
def test_channels_elsewhere_are_refused_in_words(axis):
    norm, holder = nn.LayerNorm(WIDTH), host(WIDTH)
    holder.dendrite_mask[0, 0] = False
    with pytest.raises(DendriticError, match=f"no 8 channels at its axis {axis}"):
        living_norm(norm, Living(holder, torch.arange(WIDTH)), axis)(torch.randn(2, 3, WIDTH))
