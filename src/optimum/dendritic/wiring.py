"""Dye tracing: which output channel of which layer reaches which input of which layer, found by running the model.

Channels of one layer (the producer) are dyed with NaN in one tiny forward pass in eval mode. Layers that multiply by a
weight matrix (readers) note which of their inputs turned NaN and wash the dye out; everything else lets it through.
Each channel is dyed in its own subset of samples, the binary code of its number and the complement, so that
`2 * ceil(log2(channels))` samples tell all channels apart. Where several channels flow together (all channels of a
query reach a whole head) a second pass dyes blocks of channels, one block in each sample.

A producer whose every channel ends in one reader belongs to that reader's exclusive bundle. Each bundle is proved by a
trial: the first block is cut out, and the outputs must equal those of the same model with a gather instead.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .inputs import as_mapping, repeat_first, tensors_of
from .layout import Bundle, Run, Wire
from .nn import INJECTED, follower_channels
from .packing import last_readers, outputs_differ, pack_modules, probe, tolerance, widths
from .surgery import swap

logger = logging.get_logger(__name__)

OPAQUE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.conv._ConvTransposeNd, nn.RNNBase, nn.Bilinear, nn.MultiheadAttention)
EXACT = 256  # up to so many channels the second pass dyes each alone
BLOCK = 8  # beyond, so many together: the heads of wide layers are multiples of it
SAMPLES = 64  # largest batch of one tracing pass


@dataclass(frozen=True)
class Wiring:
    """What `trace_wiring` found.

    Attributes:
        bundles: the exclusive bundles, in order of their readers.
        positions: for each called layer the products per sample of each of its weights (1 for a vector, tokens or
            pixels otherwise), hence `macs = positions * weight.numel()`.
    """

    bundles: tuple[Bundle, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)


class _Tangled(Exception):
    """The dye cannot be read: a producer or reader is called several times, or mixes the batch axis."""


@torch.no_grad()
def trace_wiring(model: nn.Module, example_inputs: Any, *, targets: Sequence[str] | None = None) -> Wiring:
    """Find the exclusive bundles among `targets` (names of Linear, Conv2d, Conv1D; default: all that the model calls).

    Args:
        example_inputs: keyword arguments of `model.forward`, tensors with the batch first; one sample is enough.

    Returns:
        The wiring. Where the model's forward cannot be traced, a wiring without bundles, and a logged warning.

    Raises:
        DendriticError: `example_inputs` is no mapping of tensors.
    """
    inputs = as_mapping(model, example_inputs)
    modules = dict(model.named_modules())
    names = list(modules) if targets is None else list(targets)
    layers = {name: modules[name] for name in names if name and _is_layer(modules[name])}
    with quiet(model):
        tracer = _Tracer(model, inputs, layers)
        try:
            positions = tracer.positions()
        except Exception as error:  # any model may fail in any way; without a trace nothing is cut
            logger.warning(f"The wiring could not be traced, so no channels are cut: {type(error).__name__}: {error}")
            return Wiring()
        bundles = _bundles(tracer, {name: layer for name, layer in layers.items() if name in positions})
        return Wiring(tuple(_proved(model, repeat_first(inputs, 2), bundles, layers)), positions)


def _is_layer(module: nn.Module) -> bool:
    stock = type(module) in INJECTED or type(module) in INJECTED.values()
    return stock and not (isinstance(module, nn.Conv2d) and module.groups > 1)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode, an untouched random state, and attention by plain products (fused kernels swallow NaN)."""
    flags = {module: module.training for module in model.modules()}
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None})
    with torch.random.fork_rng(devices), sdpa_kernel(SDPBackend.MATH):
        try:
            model.eval()
            yield
        finally:
            for module, training in flags.items():
                module.training = training


class _Tracer:
    """Runs the model with dye. `layers` may be producers and readers; other weight multipliers are opaque readers."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any], layers: dict[str, nn.Module]) -> None:
        self.model, self.inputs, self.layers = model, inputs, layers
        self.names = {module: name for name, module in reversed(list(model.named_modules()))}
        everything = list(self.names)
        self.followers = {m: n for m, n in self.names.items() if follower_channels(m) is not None}
        self.readers = [m for m in everything if _multiplies(m) and m not in self.followers]
        self.calls: dict[str, int] = {}

    def positions(self) -> dict[str, int]:
        """One clean pass: how often each layer multiplies; raises when the model itself makes NaN."""
        found: dict[str, int] = {}

        def note(module: nn.Module, args: Any, output: Any) -> None:
            name = self.names[module]
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in self.layers:
                found[name] = found.get(name, 0) + output.numel() // (2 * widths(module)[1])

        hooks = [m.register_forward_hook(note) for m in [*self.readers, *self.followers]]
        try:
            outputs = self.model(**repeat_first(self.inputs, 2))
        finally:
            for hook in hooks:
                hook.remove()
        if any(t.isnan().any() for t in tensors_of(outputs) if t.is_floating_point()):
            raise _Tangled("the outputs of the undyed model contain NaN")
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


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D, *OPAQUE))


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
        raise _Tangled(f"an input of shape {tuple(nan.shape)} does not begin with the batch")
    nan = nan.movedim(channel_axis, -1)
    return nan.reshape(samples, -1, nan.shape[-1]).any(1).cpu()


def _dyed(output: Tensor, pattern: Bool[Tensor, "samples out"], convolution: bool) -> Tensor:
    if output.shape[0] % len(pattern):
        raise _Tangled(f"an output of shape {tuple(output.shape)} does not begin with the batch")
    axis = 1 if convolution else output.dim() - 1
    pattern = pattern.to(output.device).repeat_interleave(output.shape[0] // len(pattern), 0)
    shape = [len(pattern)] + [pattern.shape[1] if a == axis else 1 for a in range(1, output.dim())]
    return output.masked_fill(pattern.view(shape), math.nan)


def _map(output: Any, function: Any) -> Any:
    if isinstance(output, Tensor):
        return function(output) if output.is_floating_point() else output
    if isinstance(output, tuple | list):
        return type(output)(_map(item, function) for item in output)
    return output


def _runs(reach: Bool[Tensor, "out in"], block: int = 1) -> tuple[Run, ...] | None:
    """Reach as runs of blocks; None when some channel reaches no input, or scattered ones.

    With `block > 1` a channel counts as reaching the whole blocks from its first to its last input (a value head that is
    repeated for several query heads reaches scattered inputs of one block).
    """
    count, inputs = reach.sum(1), reach.shape[1]
    low = reach.int().argmax(1) // block * block
    high = inputs - reach.flip(1).int().argmax(1)
    high = (high + block - 1) // block * block
    if not bool((count > 0).all()) or (block == 1 and not bool((high - low == count).all())):
        return None
    blocks: list[list[int]] = []  # start, size, reach, width
    for channel, (lo, hi) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if blocks and blocks[-1][2:] == [lo, hi - lo]:
            blocks[-1][1] += 1
        else:
            blocks.append([channel, 1, lo, hi - lo])
    runs: list[Run] = []
    for start, size, lo, width in blocks:
        last = runs[-1] if runs else None
        if last and (last.size, last.width) == (size, width) and last.reach + last.count * width == lo:
            runs[-1] = Run(last.start, size, last.reach, width, last.count + 1)
        else:
            runs.append(Run(start, size, lo, width, 1))
    return tuple(runs)


def _bundles(tracer: _Tracer, layers: dict[str, nn.Module]) -> list[Bundle]:
    """Collect what leads to each reader; keep the bundles whose blocks line up and leave something to choose."""
    found: dict[str, dict[str, Tensor]] = {}  # reader -> producer -> [out, in]
    onward: dict[str, dict[str, Tensor]] = {}  # reader -> follower -> [channels, in]
    for name in layers:
        try:
            exclusive = tracer.exclusive(name)
        except Exception as error:  # any model may fail in any way; this producer is left alone
            logger.info(f"{name} stays uncut, its dye could not be read: {error}")
            continue
        if exclusive is None or exclusive[0] == name:
            continue
        reader, reach = exclusive
        found.setdefault(reader, {})[name] = reach[reader]
        for follower in reach.keys() - {reader}:
            leads = reach[follower].t().float() @ reach[reader].float() > 0
            known = onward.setdefault(reader, {})
            known[follower] = leads | known.get(follower, torch.zeros_like(leads))
    bundles = [_bundle(name, found[name], onward.get(name, {})) for name in layers if name in found]
    return [bundle for bundle in bundles if bundle is not None]


def _bundle(reader: str, producers: dict[str, Tensor], followers: dict[str, Tensor]) -> Bundle | None:
    inputs = next(iter(producers.values())).shape[1]
    contiguous = [runs for reach in producers.values() if (runs := _runs(reach))]
    block = math.lcm(*(run.width for runs in contiguous for run in runs))
    wires = {name: _runs(reach) or _runs(reach, block) for name, reach in (producers | dict(sorted(followers.items()))).items()}
    runs = [run for found in wires.values() for run in found or ()]
    block = math.lcm(block, *(run.width for run in runs))
    if None in wires.values() or any(run.reach % run.width for run in runs) or inputs % block or block == inputs:
        return None
    as_wires = {name: Wire(name, found or ()) for name, found in wires.items()}
    return Bundle(reader, tuple(as_wires[n] for n in producers), tuple(as_wires[n] for n in sorted(followers)), block, cut=True)


def _proved(model: nn.Module, inputs: dict[str, Any], bundles: list[Bundle], layers: dict[str, nn.Module]) -> list[Bundle]:
    """The bundles with `cut` set to whether a trial cut leaves the outputs alone; all at once first, then each alone."""
    if not bundles or _cut_holds(model, inputs, bundles, layers):
        return bundles
    proved = []
    for bundle in bundles:
        cut = len(bundles) > 1 and _cut_holds(model, inputs, [bundle], layers)
        if not cut:
            logger.info(f"{bundle.reader} keeps a gather: the tensor that it reads cannot shrink")
        proved.append(Bundle(bundle.reader, bundle.producers, bundle.followers, bundle.block, cut))
    return proved


def _cut_holds(model: nn.Module, inputs: dict[str, Any], bundles: list[Bundle], layers: dict[str, nn.Module]) -> bool:
    touched = {name for b in bundles for name in [b.reader, *(p.name for p in b.producers)]}
    first = {b.reader: b.block for b in bundles}
    kept = {name: [torch.arange(first.get(name, 0), widths(layers[name])[0])] for name in touched}
    outputs = []
    for chosen in ([], bundles):
        stock = swap(model, pack_modules(model, kept, chosen))
        try:
            outputs.append(probe(model, inputs, last_readers(bundles)))
        except Exception:  # whatever a model raises on a shrunken tensor, it cannot be cut there
            return False
        finally:
            swap(model, stock)
    return outputs_differ(*outputs) <= tolerance(next(model.parameters()).dtype)
