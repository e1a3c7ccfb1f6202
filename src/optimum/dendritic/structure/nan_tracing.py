"""Dye tracing: which output channel of which layer reaches which input of which layer, found by running the model.

Channels of one layer (the producer) are dyed with NaN in one tiny forward pass in eval mode. Layers that multiply by a
weight matrix (readers) note which of their inputs turned NaN and wash the dye out; everything else lets it through.
Each channel is dyed in its own subset of samples, the binary code of its number and the complement, so that
`2 * ceil(log2(channels))` samples tell all channels apart. Where several channels flow together (all channels of a
query reach a whole head) a second pass dyes blocks of channels, one block in each sample.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from transformers.pytorch_utils import Conv1D

from ..nn import RecurrentLayer, WeightLayer, directions, follower_channels, widths
from .example_inputs import repeat_first, tensors_of

CONVOLUTIONS = (nn.modules.conv._ConvNd,)
READERS = (nn.Linear, Conv1D, nn.RNNBase, nn.Bilinear, nn.MultiheadAttention, *CONVOLUTIONS)
EXACT = 256  # up to so many channels the second pass dyes each alone
BLOCK = 8  # beyond, so many together: the heads of wide layers are multiples of it
SAMPLES = 64  # largest batch of one tracing pass


class Tangled(Exception):
    """The dye cannot be read: the batch axis was mixed, or the model makes NaN by itself."""


class Tracer:
    """Runs the model with dye. `layers` may be producers and readers; other weight multipliers are opaque readers, and
    of those the products of the `recurrent` ones are counted."""

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
        self.readers = [m for m in self.names if isinstance(m, READERS) and m not in self.followers]
        self.calls: dict[str, int] = {}

    def positions(self) -> dict[str, int]:
        """One clean pass: how often each layer multiplies; raises when the model itself makes NaN."""
        found: dict[str, int] = {}

        def note(module: nn.Module, args: Any, output: Any) -> None:
            name = self.names[module]
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in self.widths:
                found[name] = found.get(name, 0) + tensors_of(output)[0].numel() // (2 * self.widths[name])

        hooks = [m.register_forward_hook(note) for m in [*self.readers, *self.followers]]
        try:
            outputs = self.model(**repeat_first(self.inputs, 2))
        finally:
            for hook in hooks:
                hook.remove()
        if not tensors_of(outputs):
            raise Tangled("the model's outputs hold no tensors that could be watched")
        if any(t.isnan().any() for t in tensors_of(outputs) if t.is_floating_point()):
            raise Tangled("the outputs of the undyed model contain NaN")
        return found

    def dye(self, producer: nn.Module, pattern: Bool[Tensor, "samples out"]) -> dict[str, Tensor]:
        """Reader or follower name -> bool `[samples, in]`: which inputs are dyed in which sample.

        The empty name stands for the model's outputs; an opaque reader has one column.
        """
        samples, reached = len(pattern), {}

        def read(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen = [t.isnan() for t in tensors_of([args, kwargs]) if t.is_floating_point()]
            if not any(s.any() for s in seen):
                return
            name = self.names[module]
            channel_axis = 1 if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.PReLU | nn.BatchNorm1d) else -1
            known = module in self.followers or name in self.layers
            columns = _by_channel(seen[0], samples, channel_axis) if known else torch.ones(samples, 1, dtype=torch.bool)
            reached[name] = columns | reached.get(name, torch.zeros_like(columns))

        def wash(module: nn.Module, args: Any, output: Any) -> Any:
            clean = _map(output, torch.nan_to_num)
            return _dyed(clean, pattern, isinstance(module, nn.Conv2d)) if module is producer else clean

        hooks = [m.register_forward_pre_hook(read, with_kwargs=True) for m in [*self.readers, *self.followers]]
        hooks += [m.register_forward_hook(wash) for m in self.readers]
        try:
            outputs = self.model(**repeat_first(self.inputs, samples))
        finally:
            for hook in hooks:
                hook.remove()
        if any(t.isnan().any() for t in tensors_of(outputs) if t.is_floating_point()):
            reached[""] = torch.ones(samples, 1, dtype=torch.bool)
        return reached

    def exclusive(self, name: str) -> tuple[str, dict[str, Tensor]] | None:
        """The one reader of a producer, and for it and each follower on the way bool `[out, in]`: who reaches what."""
        producer = self.layers[name]
        outputs = widths(producer)[1]
        bits = _bits(outputs)
        seen = self.dye(producer, bits)
        readers = [key for key in seen if key == "" or self.model.get_submodule(key) not in self.followers]
        if len(readers) != 1 or readers[0] not in self.layers or any(self.calls[n] != 1 for n in [name, *seen]):
            return None
        reach = {key: _decode(bits, columns) for key, columns in seen.items()}
        if any((matrix.sum(0) > 1).any() for matrix in reach.values()):
            size = 1 if outputs <= EXACT else math.gcd(outputs, BLOCK)
            blocks = torch.eye(outputs // size, dtype=torch.bool).repeat_interleave(size, 1)
            for first in range(0, len(blocks), SAMPLES):
                chunk = blocks[first : first + SAMPLES]
                found = self.dye(producer, chunk)
                for key, matrix in reach.items():
                    columns = found.get(key, torch.zeros(len(chunk), matrix.shape[1], dtype=torch.bool))
                    covered = chunk.any(0)
                    matrix[covered] &= columns.repeat_interleave(size, 0)
        return readers[0], reach


def _bits(channels: int) -> Bool[Tensor, "samples channels"]:
    """Binary code of each channel's number, and its complement, along the samples."""
    length = max(1, (channels - 1).bit_length())
    code = (torch.arange(channels)[None] >> torch.arange(length)[:, None]) & 1 == 1
    return torch.cat([code, ~code])


def _decode(bits: Bool[Tensor, "samples out"], columns: Bool[Tensor, "samples in"]) -> Bool[Tensor, "out in"]:
    """Channel `c` may reach input `j` when `j` is dyed wherever `c` was; exact where a single channel fits."""
    missed = bits.t().float() @ (~columns).float()
    return missed == 0


def _by_channel(nan: Tensor, samples: int, channel_axis: int) -> Bool[Tensor, "samples channels"]:
    """Any NaN per sample and channel, on the CPU. The batch axis may have grown (windows) but not been reordered."""
    if nan.shape[0] % samples or nan.dim() < 2:
        raise Tangled(f"an input of shape {tuple(nan.shape)} does not begin with the batch")
    nan = nan.movedim(channel_axis, -1)
    return nan.reshape(samples, -1, nan.shape[-1]).any(1).cpu()


def _dyed(output: Tensor, pattern: Bool[Tensor, "samples out"], convolution: bool) -> Tensor:
    if output.shape[0] % len(pattern):
        raise Tangled(f"an output of shape {tuple(output.shape)} does not begin with the batch")
    axis = 1 if convolution else output.dim() - 1
    pattern = pattern.to(output.device).repeat_interleave(output.shape[0] // len(pattern), 0)
    shape = [len(pattern)] + [pattern.shape[1] if a == axis else 1 for a in range(1, output.dim())]
    return output.masked_fill(pattern.view(shape), math.nan)


def _map(output: Any, function: Any) -> Any:
    if isinstance(output, Tensor):
        return function(output) if output.is_floating_point() else output
    if isinstance(output, PackedSequence):
        return PackedSequence(_map(output.data, function), *output[1:])
    if isinstance(output, tuple | list):
        return type(output)(_map(item, function) for item in output)
    return output
