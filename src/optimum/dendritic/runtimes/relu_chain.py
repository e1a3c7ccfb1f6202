"""A model as the chain of layers that a spiking network is made of, read from what its forward pass computes.

Convolutions, linear layers, ReLU, average pooling and flattening have a spiking form; a BatchNorm right behind a layer
becomes part of it. All else is refused by its name and place.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..errors import DendriticError, invalid
from ..nn import PackedLayer

WHOLE = "Prune whole units: units='structured', arbors=1, sprout_rank=0."
REMEDIES = {  # part of the name of an operation -> what to do instead
    "max_pool": "Train it with average pooling.",
    "batch_norm": "Put it right behind a convolution or a linear layer, of which it then becomes part.",
    "layer_norm": "Train it without, or with BatchNorm right behind its layers.",
    "add.": "Export a network without residual connections.",
    **dict.fromkeys(("gelu", "silu", "tanh", "sigmoid", "elu", "hardswish"), "Train it with ReLU."),
}
ELSE = "Export a network of Conv2d, Linear, ReLU, AvgPool2d and Flatten."


class _Unfit(Exception):
    """An operation that has a spiking form, in one that has none."""


@dataclass
class _Reading:
    """The layers so far, by name, and the operation that comes next."""

    node: Node
    layers: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def shape(self) -> Sequence[Any]:
        """What the operation reads, `(batch, ...)`."""
        before = self.node.args[0]
        assert isinstance(before, Node)
        return before.meta["val"].shape

    def weigh(self, layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        """Add a layer with a weight and a bias of its own, under the name of its module."""
        layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        zeros = torch.zeros(len(weight), dtype=weight.dtype)
        layer.bias = nn.Parameter(zeros if bias is None else bias.detach().clone(), requires_grad=False)
        self._add(place_of(self.node).replace(".", "_") or "layer", layer)

    def follow(self, kind: str, layer: nn.Module) -> None:
        """Add a layer without weights, under the name of the one that it follows."""
        weights = [name for name, each in self.layers.items() if isinstance(each, nn.Conv2d | nn.Linear)]
        self._add(f"{weights[-1]}_{kind}" if weights else kind, layer)

    def _add(self, name: str, layer: nn.Module) -> None:
        while name in self.layers:
            name += "_"
        self.layers[name] = layer


def relu_chain(model: nn.Module, inputs: Mapping[str, Any]) -> nn.Sequential:
    """The model as plain layers one behind the other, which share no tensor with it.

    Args:
        model: packed, loaded or stock, in evaluation mode.
        inputs: keyword arguments of `model.forward`: one tensor `(batch, ...)` of at least two samples.

    Raises:
        DendriticError: the model has a gather, several inputs or outputs, a branch, or an operation that has no spiking
            form.
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer):
            raise invalid(name, str(module.form), "gathers or scatters, which has no spiking form", WHOLE)
    if len(inputs) != 1:
        raise invalid("example_inputs", sorted(inputs), "must be one tensor", "Export a model of one input.")
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (), dict(inputs), dynamic_shapes={name: {0: free} for name in inputs})
    signature = program.graph_signature
    places = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    held = {name: program.state_dict[place] for name, place in places.items() if place in program.state_dict}
    value, *nodes = [node for node in program.graph.nodes if node.name in signature.user_inputs or _computes(node)]
    layers: dict[str, nn.Module] = {}
    for node in nodes:
        make = LAYERS.get(node.target)
        if make is None:
            raise _refused(node, "has no spiking form")
        before, *others = node.args
        if before is not value:
            raise _refused(node, "reads another layer than the one before it, and a chain has no branches")
        try:
            make(
                _Reading(node, layers), *(held[a.name] if isinstance(a, Node) and a.name in held else a for a in others)
            )
        except _Unfit as error:
            raise _refused(node, str(error)) from error
        value = node
    if not _spikes(layers):
        rule = "must have a ReLU, and a layer with weights behind the last one"
        raise invalid("model", type(model).__name__, rule, ELSE)
    if tuple(signature.user_outputs) != (value.name,):
        raise invalid("model", type(model).__name__, "returns more than one tensor", "Let it return its logits alone.")
    return nn.Sequential(OrderedDict(layers)).eval()


def _spikes(layers: Mapping[str, nn.Module]) -> bool:
    """Whether there is a ReLU, with a layer with weights somewhere behind it."""
    kinds = [
        isinstance(layer, nn.ReLU) for layer in layers.values() if isinstance(layer, nn.ReLU | nn.Conv2d | nn.Linear)
    ]
    return any(kinds) and not kinds[-1]


def place_of(node: Node) -> str:
    """The module that an operation belongs to, by its name in the model."""
    return list(node.meta["nn_module_stack"].values())[-1][0]


def _computes(node: Node) -> bool:
    """Whether a node makes a tensor; others read or check shapes."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), Tensor | Sequence)


def _refused(node: Node, rule: str) -> DendriticError:
    name = str(node.target).removeprefix("aten.")
    remedy = next((remedy for part, remedy in REMEDIES.items() if part in name), ELSE)
    return invalid(place_of(node) or "model", name, rule, remedy)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return first, second


def _convolution(
    to: _Reading,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    if groups != 1:
        raise _Unfit("has groups of channels, which NIR does not tell")
    rows, inputs, *kernel = weight.shape
    stride, dilation = _pair(stride), _pair(dilation)
    if padding == "same":
        reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        if any(each % 2 for each in reach):
            raise _Unfit("pads one side more than the other")
        padding = [each // 2 for each in reach]
    elif padding == "valid":
        padding = 0
    size = (kernel[0], kernel[1])
    to.weigh(nn.Conv2d(inputs, rows, size, stride, _pair(padding), dilation, device="meta"), weight, bias)


def _linear(to: _Reading, weight: Tensor, bias: Tensor | None = None) -> None:
    to.weigh(nn.Linear(weight.shape[1], len(weight), device="meta"), weight, bias)


def _batch_norm(to: _Reading, weight: Any, bias: Any, mean: Any, variance: Any, *others: Any) -> None:
    name, layer = list(to.layers.items())[-1] if to.layers else ("", None)
    epsilon, statistics = others[2], (mean, variance)
    if not isinstance(layer, nn.Conv2d | nn.Linear) or any(each is None for each in statistics):
        raise _Unfit("stands behind no layer with weights, or keeps no statistics")
    fuse = fuse_conv_bn_weights if isinstance(layer, nn.Conv2d) else fuse_linear_bn_weights
    layer.weight, layer.bias = fuse(layer.weight, layer.bias, mean, variance, epsilon, weight, bias)
    to.layers[name] = layer.requires_grad_(False)


def _average_pool(
    to: _Reading, size: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, count: bool = True, by: Any = None
) -> None:
    if any(_pair(padding)) or ceil or by is not None:
        raise _Unfit("averages over fewer pixels at the edges")
    to.follow("pool", nn.AvgPool2d(_pair(size), _pair(stride or size)))


def _adaptive_pool(to: _Reading, size: Any) -> None:
    height, width = to.shape[-2:]
    if _pair(size) != (1, 1):
        raise _Unfit("averages over windows that may overlap")
    to.follow("pool", nn.AvgPool2d((int(height), int(width))))


def _relu(to: _Reading) -> None:
    weights = [name for name, each in to.layers.items() if isinstance(each, nn.Conv2d | nn.Linear)]
    if not weights:
        raise _Unfit("stands before all layers with weights")
    if f"{weights[-1]}_spikes" not in to.layers:  # a second one changes nothing
        to.follow("spikes", nn.ReLU())


def _flat(to: _Reading, *others: Any) -> None:
    if to.node.meta["val"].dim() != 2 or to.node.meta["val"].shape[0] != to.shape[0]:
        raise _Unfit("gives the tensor another shape than that of one vector for each sample")
    if len(to.shape) > 2:
        to.follow("flat", nn.Flatten())


def _as_it_is(to: _Reading, *others: Any) -> None:
    """Dropout, which does nothing in evaluation mode, and copies."""


OPS = torch.ops.aten
LAYERS: dict[Any, Callable[..., None]] = {
    OPS.conv2d.default: _convolution,
    OPS.conv2d.padding: _convolution,
    OPS.linear.default: _linear,
    OPS.batch_norm.default: _batch_norm,
    OPS.avg_pool2d.default: _average_pool,
    OPS.adaptive_avg_pool2d.default: _adaptive_pool,
    OPS.relu.default: _relu,
    OPS.relu_.default: _relu,
    OPS.flatten.using_ints: _flat,
    OPS.view.default: _flat,
    OPS.reshape.default: _flat,
    OPS.dropout.default: _as_it_is,
    OPS.feature_dropout.default: _as_it_is,
    OPS.contiguous.default: _as_it_is,
    OPS.clone.default: _as_it_is,
}
