"""NaN tracing: which output channel of which layer reaches which input of which other layer, found by running a model.

Channels of a layer (the producer) are marked with NaN in one forward pass in evaluation mode. A layer that multiplies
by a weight notes which of its inputs are NaN, in which sample, and answers with fixed numbers instead of its product:
where the mark arrives is all that matters, so a traced pass multiplies by no weight, and its cost is that of the
activations. A norm hands the mark on channel by channel, although it mixes the channels to take its statistics.
Everything else computes as always, and NaN passes through it.

The samples of one pass serve several producers at once. In the first passes sample `p` marks all channels of producer
`p`, which tells who reaches whom; producers that reach no common module then share the samples that mark their code
words (`functional.codes`). Where several channels arrive together (all channels of a query reach a whole head), further
samples mark each channel, or each small block of channels, alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence
from transformers.pytorch_utils import Conv1D

from ..functional.codes import Reach, candidates, code, decode, reach_of
from ..nn import RecurrentLayer, WeightLayer, directions, follower_channels, is_weight_layer, widths
from ..unofficial import answering
from .example_inputs import repeat_first, tensors_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
READERS = (nn.Linear, Conv1D, nn.RNNBase, nn.Bilinear, nn.MultiheadAttention, *CONVOLUTIONS)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
OUTPUTS = ""  # stands for the model's outputs among those that a channel reaches
EXACT = 256  # up to so many channels each is marked alone, where several arrive together
BLOCK = 8  # beyond, so many together: the heads of wide layers are multiples of it
SAMPLES = 64  # largest batch of one tracing pass

Words = Mapping[str, Bool[Tensor, "samples channels"]]
Seen = dict[str, Bool[Tensor, "samples inputs"]]
Touched = Mapping[str, set[str]]


class Tangled(Exception):
    """The marks cannot be read: the batch axis was mixed, or the model makes NaN by itself."""


class Tracer:
    """Runs the model with marks.

    `layers` may be producers and consumers. Other modules that multiply by a weight are consumers only, and of those
    the products of the `recurrent` ones are counted.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        layers: dict[str, WeightLayer],
        recurrent: dict[str, RecurrentLayer],
    ) -> None:
        self.model, self.inputs, self.layers = model, inputs, layers
        self.widths = {name: widths(layer)[1] for name, layer in layers.items()}
        self.widths |= {name: directions(layer) * layer.hidden_size for name, layer in recurrent.items()}
        self.names = {module: name for name, module in reversed(list(model.named_modules()))}
        self.followers = {m: n for m, n in self.names.items() if follower_channels(m) is not None}
        readers = [m for m in self.names if isinstance(m, READERS) and m not in self.followers]
        self.answering = [m for m in readers if is_weight_layer(m)]
        self.opaque = [m for m in readers if not is_weight_layer(m)]
        self.norms: dict[nn.Module, str] = {}
        self.axes: dict[nn.Module, int] = {}
        self.calls: dict[str, int] = {}
        self._rows: dict[int, Tensor] = {}

    def positions(self) -> dict[str, int]:
        """One clean pass: how often each layer multiplies. Finds the norms, too.

        Raises:
            Tangled: the outputs hold no tensors, or the model itself makes NaN.
        """
        found: dict[str, int] = {}
        read: dict[nn.Module, Tensor] = {}
        other: set[nn.Module] = set()

        def note(module: nn.Module, args: Any, output: Any) -> None:
            name = self.names[module]
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in self.widths:
                found[name] = found.get(name, 0) + tensors_of(output)[0].numel() // (2 * self.widths[name])

        def compare(module: nn.Module, args: Any, output: Any) -> None:
            before, after = tensors_of(args), tensors_of(output)
            if len(before) == len(after) == 1 and before[0].shape == after[0].shape:
                read.setdefault(module, before[0])
            else:
                other.add(module)

        norms = [m for m in self.names if _may_be_norm(m) and m not in self.followers]
        hooks = [m.register_forward_hook(note) for m in [*self.answering, *self.opaque, *self.followers]]
        hooks += [m.register_forward_hook(compare) for m in norms]
        try:
            outputs = self.model(**repeat_first(self.inputs, 2))
        finally:
            for hook in hooks:
                hook.remove()
        if not tensors_of(outputs):
            raise Tangled("the model's outputs hold no tensors that could be watched")
        if any(t.isnan().any() for t in tensors_of(outputs) if t.is_floating_point()):
            raise Tangled("the outputs of the unmarked model contain NaN")
        axes = {m: _norm_axis(m, x) for m, x in read.items() if m not in other}
        self.axes = {m: axis for m, axis in axes.items() if _mixes(m, read[m], axis)}
        self.norms = {m: self.names[m] for m in self.axes}
        return found

    def reach(self, producers: Sequence[str]) -> tuple[dict[str, dict[str, Reach]], dict[str, Exception]]:
        """Who reaches what.

        Args:
            producers: names of layers.

        Returns:
            For each producer what each module is reached by, by its name (`OUTPUTS` for the model's outputs, a module
            of unknown inputs has one); and the error of each producer whose marks could not be read.
        """
        everything = {name: torch.ones(1, self.widths[name], dtype=torch.bool) for name in producers}
        census, failed = self._read(everything, None)
        touched = {name: set(seen) for name, seen in census.items()}
        words = {name: code(self.widths[name]) for name in touched}
        seen, unread = self._read(words, touched)
        found: dict[str, dict[str, Reach]] = {}
        unclear: dict[str, dict[str, Tensor]] = {}  # producer -> module -> its inputs that several channels reach
        for name, marks in seen.items():
            found[name] = {}
            for module, columns in marks.items():
                channel, several = decode(columns, self.widths[name])
                single = (channel >= 0).nonzero().flatten()
                found[name][module] = reach_of(channel[single], single, columns.shape[1])
                if several.any():
                    unclear.setdefault(name, {})[module] = several.nonzero().flatten()
        blocks = {name: _blocks(self.widths[name]) for name in unclear}
        alone, unresolved = self._read(blocks, touched)
        for name, marks in alone.items():
            size = self.widths[name] // len(blocks[name])
            for module, several in unclear[name].items():
                pairs = candidates(seen[name][module][:, several], words[name])
                if module in marks:
                    pairs &= marks[module][:, several].repeat_interleave(size, 0)
                channels, columns = pairs.nonzero().unbind(1)
                found[name][module] |= reach_of(channels, several[columns], found[name][module].width)
        failed |= unread | unresolved
        return {name: found[name] for name in producers if name not in failed}, failed

    def exclusive(self, name: str, reach: Mapping[str, Reach]) -> str | None:
        """The one layer that a producer reaches, and no norm on the way whose channels are the producer's own; None
        where there are others, or where a layer is called more than once."""
        readers = reach.keys() - {*self.followers.values(), *self.norms.values()}
        norms = [reach[norm] for norm in reach.keys() & self.norms.values()]
        streams = [norm for norm in norms if len(norm.inputs) == len(norm.inputs.unique())]
        once = all(self.calls.get(module, 1) == 1 for module in [name, *reach])
        if len(readers) != 1 or streams or not once:
            return None
        (reader,) = readers
        return reader if reader in self.layers and reader != name else None

    def channels(self, name: str) -> int:
        """Output channels of a producer, or those of a module that treats each channel on its own."""
        return self.widths[name] if name in self.widths else follower_channels(self.model.get_submodule(name)) or 0

    def _read(self, words: Words, touched: Touched | None) -> tuple[dict[str, Seen], dict[str, Exception]]:
        """What each producer's samples show at the modules that it reaches, and the errors of those that cannot run.

        A model may fail in any way on NaN, so producers that fail together are tried in halves.

        Args:
            words: the samples of each producer.
            touched: the modules that each producer reaches; None where that is what is asked.
        """
        if not words:
            return {}, {}
        try:
            return self._shared(words, touched), {}
        except Exception as error:
            names = list(words)
            if len(names) == 1:
                return {}, {names[0]: error}
            halves = [{name: words[name] for name in part} for part in (names[::2], names[1::2])]
            (first, errors), (second, more) = (self._read(half, touched) for half in halves)
            return first | second, errors | more

    def _shared(self, words: Words, touched: Touched | None) -> dict[str, Seen]:
        """The same, where nothing fails: producers that reach no common module have samples in common."""
        first, samples = _placed(words, touched)
        found: dict[str, Seen] = {name: {} for name in words}
        for start in range(0, samples, SAMPLES):
            length, patterns, own = min(SAMPLES, samples - start), {}, {}
            for name, word in words.items():
                low, high = max(first[name], start), min(first[name] + len(word), start + length)
                if low < high:
                    here, there = slice(low - start, high - start), slice(low - first[name], high - first[name])
                    patterns[name] = torch.zeros(length, word.shape[1], dtype=torch.bool)
                    patterns[name][here] = word[there]
                    own[name] = (here, there)
            seen = self.mark(patterns, length)
            for name, (here, there) in own.items():
                for module, columns in seen.items():
                    if columns[here].any() if touched is None else module in touched[name]:
                        empty = torch.zeros(len(words[name]), columns.shape[1], dtype=torch.bool)
                        found[name].setdefault(module, empty)[there] = columns[here]
        return found

    def mark(self, patterns: Words, samples: int) -> Seen:
        """One pass in which channels are NaN as `patterns` say. Returns which inputs of which module were NaN, in which
        sample; modules that no mark reached are left out."""
        reached: Seen = {}
        marked = {self.layers[name]: pattern for name, pattern in patterns.items()}

        def read(module: nn.Module, args: Any, kwargs: Any) -> None:
            nans = [t.isnan() for t in tensors_of([args, kwargs]) if t.is_floating_point()]
            if not any(nan.any() for nan in nans):
                return
            name = self.names[module]
            known = module in self.followers or module in self.norms or is_weight_layer(module)
            columns = _by_channel(nans[0], samples, self._axis(module)) if known else _any(nans, samples)
            reached[name] = columns | reached.get(name, torch.zeros_like(columns))

        def answer(module: WeightLayer, *args: Any, **kwargs: Any) -> Tensor:
            read(module, args, kwargs)
            (x,) = tensors_of([args, kwargs])[:1]
            output = self._answer(module, x)
            pattern = marked.get(module)
            return output if pattern is None else _marked(output, pattern, _channel_axis(module))

        def hand_on(module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            read(module, args, kwargs)
            x = tensors_of([args, kwargs])[0]
            return _spread(x, module.num_groups) if isinstance(module, nn.GroupNorm) else x.clone()

        def clear(module: nn.Module, args: Any, output: Any) -> Any:
            return _map(output, torch.nan_to_num)

        hooks = [m.register_forward_pre_hook(read, with_kwargs=True) for m in [*self.opaque, *self.followers]]
        hooks += [m.register_forward_hook(clear) for m in self.opaque]
        try:
            with answering(self.answering, answer), answering(self.norms, hand_on):
                outputs = self.model(**repeat_first(self.inputs, samples))
        finally:
            for hook in hooks:
                hook.remove()
        nans = [t.isnan() for t in tensors_of(outputs) if t.is_floating_point()]
        if any(nan.any() for nan in nans):
            reached[OUTPUTS] = _any(nans, samples)
        return reached

    def _axis(self, module: nn.Module) -> int:
        return self.axes[module] if module in self.norms else _channel_axis(module)

    def _answer(self, layer: WeightLayer, x: Tensor) -> Tensor:
        """A tensor of the shape of the layer's product, with a number of its own in each channel."""
        dtype = x.dtype if x.is_floating_point() else layer.weight.dtype
        outputs = widths(layer)[1]
        if outputs not in self._rows:
            self._rows[outputs] = torch.randn(outputs, generator=torch.Generator().manual_seed(outputs))
        row = self._rows[outputs].to(x.device, dtype)
        if not isinstance(layer, nn.Conv2d):
            return row.expand(*x.shape[:-1], outputs).clone()
        return row.view(-1, 1, 1).expand(*x.shape[:-3], -1, *_convolved(layer, x.shape[-2:])).clone()


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


def _placed(words: Words, touched: Touched | None) -> tuple[dict[str, int], int]:
    """The first of the samples of each producer, and how many there are in all."""
    lanes: list[tuple[set[str], list[str]]] = []
    for name in words:
        modules = {name} if touched is None else touched[name]
        lane = next((lane for lane in lanes if touched is not None and lane[0].isdisjoint(modules)), None)
        if lane is None:
            lanes.append(lane := (set(), []))
        lane[0].update(modules)
        lane[1].append(name)
    first, samples = {}, 0
    for _, names in lanes:
        first |= dict.fromkeys(names, samples)
        samples += max(len(words[name]) for name in names)
    return first, samples


def _may_be_norm(module: nn.Module) -> bool:
    """Whether a module has parameters of one length only and no modules inside, or is a norm by its class."""
    if isinstance(module, NORMS):
        return True
    shapes = {parameter.shape for parameter in module.parameters(recurse=False)}
    leaf = not isinstance(module, READERS) and next(module.children(), None) is None
    return leaf and len(shapes) == 1 and len(next(iter(shapes))) == 1


def _channel_axis(module: nn.Module) -> int:
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


def _blocks(channels: int) -> Bool[Tensor, "blocks channels"]:
    """Each channel alone, or of a wide layer each small block."""
    size = 1 if channels <= EXACT else math.gcd(channels, BLOCK)
    return torch.eye(channels // size, dtype=torch.bool).repeat_interleave(size, 1)


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
