"""Replacing modules disturbs nothing: hooks, flags, devices and shared modules stay."""

import pytest
import torch
from torch import nn

from optimum.dendritic.nn import DendriticLayer, DendriticLinear, inject_layer
from optimum.dendritic.nn.surgery import shallow_copy, swap


def stock() -> nn.Linear:
    layer = nn.Linear(4, 4).eval()
    layer.bias.requires_grad_(False)
    return layer


def test_a_copy_shares_tensors_and_has_registries_of_its_own():
    layer = stock()
    copy = shallow_copy(layer, DendriticLinear)
    assert copy.weight is layer.weight and copy.bias is layer.bias
    copy.register_buffer("more", torch.zeros(1))
    copy.weight = nn.Parameter(torch.zeros(1, 1))
    assert list(layer.state_dict()) == ["weight", "bias"] and layer.weight.shape == (4, 4)


def test_nothing_becomes_an_abstract_layer():
    class Half(DendriticLayer, nn.Linear):
        def kept(self) -> list[torch.Tensor]:
            return []

    for abstract in (DendriticLayer, Half):
        with pytest.raises(TypeError, match="abstract"):
            shallow_copy(stock(), abstract)
        with pytest.raises(TypeError, match="abstract"):
            abstract(4, 4)


def test_an_injected_layer_keeps_flags_and_device():
    for training in (True, False):
        layer = nn.Linear(4, 4, device="meta").train(training)
        layer.bias.requires_grad_(False)
        injected = inject_layer(layer, 2, 2)
        assert injected.training is training and not injected.bias.requires_grad
        assert {t.device.type for t in injected.state_dict().values()} == {"meta"}
        assert type(layer) is nn.Linear and list(layer.state_dict()) == ["weight", "bias"]


def test_hooks_come_along_and_their_handles_still_remove_them():
    layer, calls = stock(), []
    handles = [
        layer.register_forward_hook(lambda m, args, output: calls.append("after")),
        layer.register_forward_pre_hook(lambda m, args, kwargs: calls.append("before"), with_kwargs=True),
        layer.register_full_backward_hook(lambda m, g_in, g_out: calls.append("backward")),
    ]
    model = nn.Sequential(layer)
    swap(model, {"0": inject_layer(layer, 1, 2)})
    model(torch.ones(1, 4, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    model(torch.ones(1, 4, requires_grad=True)).sum().backward()
    assert len(calls) == 3


def test_a_shared_module_is_replaced_wherever_it_stands():
    shared = stock()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared), "c": stock()})
    other, new = model["c"], inject_layer(shared, 1, 2)
    old = swap(model, {"a": new})
    assert model["a"] is new and model["b"][1] is new and model["c"] is other
    assert old == {"a": shared}
    swap(model, old)
    assert model["a"] is shared and model["b"][1] is shared


def test_swapping_there_and_back_restores_order_and_objects():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    before = list(model.named_modules())
    swap(model, swap(model, {"0": nn.Identity(), "2": nn.Tanh()}))
    assert list(model.named_modules()) == before
