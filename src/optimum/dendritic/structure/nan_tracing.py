"""NaN tracing: which output channel of which layer reaches which input of which other layer, found by running a model.

Channels of a layer (the producer) are marked with NaN in one forward pass in evaluation mode. A layer that multiplies
by a weight notes which of its inputs are NaN, in which sample, and answers with fixed numbers instead of its product:
where the mark arrives is all that matters, so a traced pass multiplies by no weight, and its cost is that of the
activations. A norm hands the mark on channel by channel, although it mixes the channels to take its statistics.
Everything else computes as always, and NaN passes through it.

Producers are also the columns of embeddings and the axes of parameters that stand alone (class tokens, positions, layer
scales). What begins with a batch of one is spread over the samples of a pass; what has no batch at all (`lone`) is
marked alike in all of them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence
from transformers.pytorch_utils import Conv1D

from ..nn import RecurrentLayer, WeightLayer, directions, follower_channels, is_weight_layer, widths
from ..unofficial import answering, tensors_in
from .example_inputs import repeat_first, tensors_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
READERS = (nn.Linear, Conv1D, nn.RNNBase, nn.Bilinear, nn.MultiheadAttention, *CONVOLUTIONS)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
OUTPUTS = ""  # stands for the model's outputs among those that a channel reaches

Words = Mapping[str, Bool[Tensor, "samples channels"]]
Seen = dict[str, Bool[Tensor, "samples inputs"]]


class Tangled(Exception):
    """The marks cannot be read: the batch axis was mixed, or the model makes NaN by itself."""


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter that stands alone.

    Attributes:
        name: The full name of the parameter.
        axis: Which of its axes.
        length: Its entries.
    """

    name: str
    axis: int
    length: int

    @property
    def key(self) -> str:
        """What it is called among the producers."""
        return f"{self.name}@{self.axis}"


class Tracer:
    """Runs the model with marks.

    Every layer of one weight is a producer and a consumer. Other modules that multiply by a weight are consumers only.

    Attributes:
        layers: The layers of one weight, by name.
        tables: The embeddings, by name.
        axes: The axes of parameters that stand alone, by key.
        followers: The names of modules with something for each channel.
        norms: The names of norms; `positions` finds them.
        widths: The channels of every producer.
        lone: The producers whose marks are alike in all samples.
        largest_activation: The bytes of the largest tensor that a layer reads or makes of one sample; `positions` finds
            it.
    """

    def __init__(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        self.model, self.inputs = model, inputs
        self.names = {module: name for name, module in reversed(list(model.named_modules()))}
        self.followers = {m: n for m, n in self.names.items() if follower_channels(m) is not None}
        readers = [m for m in self.names if isinstance(m, READERS) and m not in self.followers]
        self.layers = {self.names[m]: m for m in reversed(readers) if isinstance(m, WeightLayer) and _is_wide(m)}
        self.tables = {n: m for m, n in reversed(self.names.items()) if isinstance(m, nn.Embedding)}
        self.opaque = [m for m in readers if not _is_wide(m)]
        self.norms: dict[nn.Module, str] = {}
        self.axes: dict[str, Axis] = {}
        self.widths = {name: widths(layer)[1] for name, layer in self.layers.items()}
        self.widths |= {name: table.embedding_dim for name, table in self.tables.items()}
        self.lone: set[str] = set()
        self.largest_activation = 0
        self._norm_axes: dict[nn.Module, int] = {}
        self._rows: dict[int, Tensor] = {}

    def positions(self) -> dict[str, int]:
        """One pass without marks, in which layers answer with random numbers: how often each layer and each recurrent
        layer multiplies. Finds the norms, the parameters that stand alone and what is `lone`, too.

        Raises:
            Tangled: the outputs hold no tensors, or the model itself makes NaN.
        """
        found: dict[str, int] = {}
        read: dict[nn.Module, Tensor] = {}
        other: set[nn.Module] = set()

        def note(module: nn.Module, args: Any, output: Any) -> None:
            made = directions(module) * module.hidden_size if isinstance(module, RecurrentLayer) else 0
            name = self.names[module]
            width = made or self.widths[name]
            found[name] = found.get(name, 0) + tensors_of(output)[0].numel() // (2 * width)
            largest = max((t.nbytes // 2 for t in tensors_of([args, output])), default=0)
            self.largest_activation = max(self.largest_activation, largest)

        def compare(module: nn.Module, args: Any, output: Any) -> None:
            before, after = tensors_of(args), tensors_of(output)
            if len(before) == len(after) == 1 and before[0].shape == after[0].shape:
                read.setdefault(module, before[0])
            else:
                other.add(module)

        norms = [m for m in self.names if _may_be_norm(m) and m not in self.followers]
        recurrent = [m for m in self.opaque if isinstance(m, RecurrentLayer)]
        hooks = [m.register_forward_hook(note) for m in [*self.layers.values(), *recurrent]]
        hooks += [m.register_forward_hook(compare) for m in norms]
        random = torch.Generator().manual_seed(0)

        def answer(module: WeightLayer, *args: Any, **kwargs: Any) -> Tensor:
            x = tensors_of([args, kwargs])[0]
            numbers = torch.randn(answer_shape(module, x, widths(module)[1]), generator=random)
            return numbers.to(x.device, x.dtype if x.is_floating_point() else module.weight.dtype)

        try:
            with answering(self.layers.values(), answer):
                outputs = self.model(**repeat_first(self.inputs, 2))
        finally:
            for hook in hooks:
                hook.remove()
        if not tensors_of(outputs):
            raise Tangled("the model's outputs hold no tensors that could be watched")
        if any(t.isnan().any() for t in tensors_of(outputs) if t.is_floating_point()):
            raise Tangled("the outputs of the unmarked model contain NaN")
        axes = {m: _norm_axis(m, x) % x.dim() - x.dim() for m, x in read.items() if m not in other}
        self._norm_axes = {m: axis for m, axis in axes.items() if _mixes(m, read[m], axis)}
        self.norms = {m: self.names[m] for m in self._norm_axes}
        self._find_alone()
        return found

    def _find_alone(self) -> None:
        """Find the parameters that stand alone, and which tables and parameters are `lone`."""
        owners = {*self.layers.values(), *self.tables.values(), *self.opaque, *self.followers, *self.norms}
        owned = {id(p) for module in owners for p in module.parameters()}
        for name, parameter in self.model.named_parameters():
            long = [axis for axis, length in enumerate(parameter.shape) if length > 1]
            if id(parameter) not in owned and parameter.is_floating_point() and len(long) <= 2:
                self.axes |= {a.key: a for a in (Axis(name, axis, parameter.shape[axis]) for axis in long)}
                if parameter.dim() < 2 or parameter.shape[0] > 1:
                    self.lone |= {f"{name}@{axis}" for axis in long}
        self.widths |= {key: axis.length for key, axis in self.axes.items()}
        begins: dict[str, list[int]] = {name: [] for name in self.tables}

        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            begins[self.names[module]].append(len(output))

        hooks = [table.register_forward_hook(note) for table in self.tables.values()]
        try:
            for samples in (1, 3):
                self.mark({}, samples)
        finally:
            for hook in hooks:
                hook.remove()
        for name, found in begins.items():
            once, thrice = found[: len(found) // 2], found[len(found) // 2 :]
            if any(b not in (3 * a, a if a == 1 else 0) for a, b in zip(once, thrice, strict=True)):
                self.lone.add(name)

    def mark(self, patterns: Words, samples: int) -> Seen:
        """One pass in which channels are NaN as `patterns` say. Returns which inputs of which module were NaN, in which
        sample; modules that no mark reached are left out."""
        reached: Seen = {}
        marked = {self.layers[name]: pattern for name, pattern in patterns.items() if name in self.layers}
        tables = {self.tables[name]: pattern for name, pattern in patterns.items() if name in self.tables}
        alone = {self.axes[key]: pattern for key, pattern in patterns.items() if key in self.axes}

        def read(module: nn.Module, args: Any, kwargs: Any) -> None:
            nans = [t.isnan() for t in tensors_of([args, kwargs]) if t.is_floating_point()]
            if not any(nan.any() for nan in nans):
                return
            name = self.names[module]
            known = module in self.followers or module in self.norms or _is_wide(module)
            columns = _by_channel(nans[0], samples, self._axis(module)) if known else _any(nans, samples)
            reached[name] = columns | reached.get(name, torch.zeros_like(columns))

        def answer(module: WeightLayer, *args: Any, **kwargs: Any) -> Tensor:
            read(module, args, kwargs)
            (x,) = tensors_of([args, kwargs])[:1]
            output = self._answer(module, x)
            pattern = marked.get(module)
            return output if pattern is None else _marked(output, pattern, channel_axis(module))

        def hand_on(module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            read(module, args, kwargs)
            x = tensors_of([args, kwargs])[0]
            return _spread(x, module.num_groups) if isinstance(module, nn.GroupNorm) else x.clone()

        def clear(module: nn.Module, args: Any, output: Any) -> Any:
            return _map(output, torch.nan_to_num)

        def look_up(module: Any, args: Any, output: Tensor) -> Tensor:
            return _marked(_spread_over(output, samples), tables[module], -1)

        hooks = [m.register_forward_pre_hook(read, with_kwargs=True) for m in [*self.opaque, *self.followers]]
        hooks += [m.register_forward_hook(clear) for m in self.opaque]
        hooks += [table.register_forward_hook(look_up) for table in tables]
        layers = self.layers.values()
        try:
            with answering(layers, answer), answering(self.norms, hand_on), _marked_parameters(self.model, alone):
                outputs = self.model(**repeat_first(self.inputs, samples))
        finally:
            for hook in hooks:
                hook.remove()
        nans = [t.isnan() for t in tensors_of(outputs) if t.is_floating_point()]
        if any(nan.any() for nan in nans):
            reached[OUTPUTS] = _any(nans, samples)
        return reached

    def _axis(self, module: nn.Module) -> int:
        return self._norm_axes[module] if module in self.norms else channel_axis(module)

    def norm_axis(self, norm: nn.Module) -> int:
        """Where the input of a norm has its channels, counted from the end: -1 is the last axis."""
        return self._norm_axes[norm]

    def _answer(self, layer: WeightLayer, x: Tensor) -> Tensor:
        """A tensor of the shape of the layer's product, with a number of its own in each channel."""
        dtype = x.dtype if x.is_floating_point() else layer.weight.dtype
        outputs = widths(layer)[1]
        if outputs not in self._rows:
            self._rows[outputs] = torch.randn(outputs, generator=torch.Generator().manual_seed(outputs))
        row = self._rows[outputs].to(x.device, dtype)
        row = row.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else row
        return row.expand(answer_shape(layer, x, outputs)).clone()


def _is_wide(module: nn.Module) -> bool:
    """Whether a module is a layer of one weight that has inputs and outputs."""
    return is_weight_layer(module) and min(widths(module)) > 0


def answer_shape(layer: nn.Module, x: Tensor, outputs: int) -> torch.Size:
    """The shape of what a layer of one weight makes of `x`, with so many outputs."""
    if not isinstance(layer, nn.Conv2d):
        return torch.Size((*x.shape[:-1], outputs))
    return torch.Size((*x.shape[:-3], outputs, *_convolved(layer, x.shape[-2:])))


def _convolved(layer: nn.Conv2d, size: Sequence[int]) -> list[int]:
    """Height and width of what a convolution makes of a picture of height and width `size`."""
    if layer.padding == "same":
        return list(size)
    padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
    parts = zip(size, padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    return [
        (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for length, pad, dilation, kernel, stride in parts
    ]


def _may_be_norm(module: nn.Module) -> bool:
    """Whether a module has parameters of one length only and no modules inside, or is a norm by its class."""
    if isinstance(module, NORMS):
        return True
    shapes = {parameter.shape for parameter in module.parameters(recurse=False)}
    leaf = not isinstance(module, READERS) and next(module.children(), None) is None
    return leaf and len(shapes) == 1 and len(next(iter(shapes))) == 1


def channel_axis(module: nn.Module) -> int:
    """Where a module that is not a norm has the channels of the tensor that it reads or makes."""
    return 1 if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.PReLU | nn.BatchNorm1d) else -1


def _norm_axis(norm: nn.Module, x: Tensor) -> int:
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


def _mixes(module: nn.Module, x: Tensor, axis: int) -> bool:
    """Whether one channel of `x` has a share in the others; a scale or a bias for each channel has not."""
    marked = x.clone()
    marked.select(axis, 0).fill_(math.nan)
    output = module.forward(marked)
    return bool(output.narrow(axis, 1, output.shape[axis] - 1).isnan().any())


def _by_channel(nan: Tensor, samples: int, channel_axis: int) -> Bool[Tensor, "samples channels"]:
    """Any NaN per sample and channel, on the CPU. The batch axis may have grown (windows) but not been reordered."""
    if nan.shape[0] % samples or nan.dim() < 2:
        raise Tangled(f"an input of shape {tuple(nan.shape)} does not begin with the batch")
    nan = nan.movedim(channel_axis, -1)
    return nan.reshape(samples, -1, nan.shape[-1]).any(1).cpu()


def _any(nans: Sequence[Tensor], samples: int) -> Bool[Tensor, "samples 1"]:
    """Any NaN per sample, in one column; in all samples where a tensor does not begin with the batch."""
    found = torch.zeros(samples, 1, dtype=torch.bool)
    for nan in nans:
        begins = nan.dim() > 0 and nan.shape[0] and nan.shape[0] % samples == 0
        found |= nan.reshape(samples, -1).any(1, keepdim=True).cpu() if begins else bool(nan.any())
    return found


def _marked(output: Tensor, pattern: Bool[Tensor, "samples channels"], axis: int) -> Tensor:
    if output.shape[0] % len(pattern):
        raise Tangled(f"an output of shape {tuple(output.shape)} does not begin with the batch")
    axis %= output.dim()
    pattern = pattern.to(output.device).repeat_interleave(output.shape[0] // len(pattern), 0)
    shape = [len(pattern)] + [pattern.shape[1] if a == axis else 1 for a in range(1, output.dim())]
    return output.masked_fill(pattern.view(shape), math.nan)


def _spread_over(output: Tensor, samples: int) -> Tensor:
    """What begins with a batch of one, once for every sample."""
    return output.expand(samples, *output.shape[1:]) if output.dim() > 1 and len(output) == 1 else output


@contextmanager
def _marked_parameters(model: nn.Module, patterns: Mapping[Axis, Bool[Tensor, "..."]]) -> Iterator[None]:
    """While it lasts, parameters that stand alone are NaN as `patterns` say, each with the batch of its pattern."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for axis, pattern in patterns.items():
            owner, _, name = axis.name.rpartition(".")
            registry = tensors_in(model.get_submodule(owner))[0]
            value = registry[name].detach()
            before.append((registry, name, registry[name]))
            marks = pattern if len(pattern) > 1 else pattern[0]
            shape = [axis.length if a == axis.axis else 1 for a in range(value.dim())]
            if marks.dim() == 2:
                shape[0] = len(marks)
            marked = value.masked_fill(marks.view(shape).to(value.device), math.nan)
            registry[name] = nn.Parameter(marked, requires_grad=False)
        yield
    finally:
        for registry, name, parameter in reversed(before):
            registry[name] = parameter


def _spread(x: Tensor, groups: int) -> Tensor:
    """A mark in one channel of a group of channels marks the whole group."""
    parts = x.unflatten(1, (groups, -1))
    return parts.masked_fill(parts.isnan().flatten(2).any(2)[(...,) + (None,) * (parts.dim() - 2)], math.nan).flatten(
        1, 2
    )


def _map(output: Any, function: Any) -> Any:
    if isinstance(output, Tensor):
        return function(output) if output.is_floating_point() else output
    if isinstance(output, PackedSequence):
        return PackedSequence(_map(output.data, function), *output[1:])
    if isinstance(output, tuple | list):
        return type(output)(_map(item, function) for item in output)
    return output
