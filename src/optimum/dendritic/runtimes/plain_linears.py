"""Packed layers with their product in a plain `nn.Linear`, for quantizers, which look for that class and no other."""

import copy

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..nn import PackedConv1D, PackedLayer, PackedLinear
from ..nn.surgery import swap


class AroundLinears(PackedLayer):
    """Gather -> one `nn.Linear` for each arbor -> scatter: what a packed linear layer computes.

    Attributes:
        present: The arbors that have rows.
        products: The product of each of them.
    """

    def __init__(self, packed: PackedLayer) -> None:
        nn.Module.__init__(self)
        self.form = packed.form
        self.register_buffer("inputs", packed.inputs)
        self.register_buffer("outputs", packed.outputs)
        self.register_module("sprout", packed.sprout)
        rows, arbors = packed.form.arbors, range(len(packed.form.arbors))
        weights = (packed.weight.t() if isinstance(packed, PackedConv1D) else packed.weight).split(rows)
        biases = [None for _ in arbors] if packed.bias is None else packed.bias.split(rows)
        self.present = [arbor for arbor in arbors if rows[arbor]]
        self.products = nn.ModuleList(_linear(weights[arbor], biases[arbor]) for arbor in self.present)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.gather(x).split(self.form.kept, -1)
        y = torch.cat([product(parts[arbor]) for arbor, product in zip(self.present, self.products, strict=True)], -1)
        return self.scatter(self.grow(y, x))


def with_plain_linears(model: nn.Module) -> nn.Module:
    """A copy of the model in which every linear product is made by a plain `nn.Linear`.

    Packed layers that gather or scatter do so around it, and `Conv1D` layers become linear ones. Layers of which
    nothing is left stay as they are. The copy answers as the model does; it has other keys in its state dict, and is
    meant to be quantized or exported and not to be saved.
    """
    copied = copy.deepcopy(model)
    swap(copied, {name: _plain(module) for name, module in copied.named_modules() if _has_product(module)})
    return copied


def _has_product(module: nn.Module) -> bool:
    """Whether a module is a linear layer of another class than `nn.Linear`, with a weight that is not empty."""
    return isinstance(module, PackedLinear | Conv1D) and module.weight.numel() > 0


def _plain(module: nn.Module) -> nn.Module:
    if isinstance(module, PackedLinear | PackedConv1D):
        return AroundLinears(module)
    assert isinstance(module, Conv1D)
    return _linear(module.weight.t(), module.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear.eval()
