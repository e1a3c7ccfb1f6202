"""Wiring: the exclusive bundles of a model, traced by NaN and proved by trial cuts.

A producer whose every channel ends in one reader belongs to that reader's exclusive bundle. Each bundle is proved: its
first block is cut out, and the outputs must equal those of the same model with a gather instead.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.utils import logging

from ..errors import invalid
from ..functional.codes import Reach
from ..layout.records import Bundle, Run, Wire
from ..nn import WeightLayer, is_recurrent_layer, is_weight_layer, recurrent_layer, weight_layer, widths
from ..nn.pack_model import inputs_fed, last_readers, pack_modules
from .example_inputs import as_mapping, repeat_first
from .nan_tracing import Tangled, Tracer
from .probing import quiet
from .verification import answers, answers_alike, exchanged

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Wiring:
    """What `trace_wiring` found.

    Attributes:
        bundles: The exclusive bundles, in order of their readers.
        positions: For each layer that is called, the products per sample of each of its weights (1 for a vector,
            tokens, time steps or pixels otherwise), hence `macs = positions * weight.numel()`.
        fault: Why the forward pass could not be traced; empty where it could.
    """

    bundles: tuple[Bundle, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    fault: str = ""


@torch.no_grad()
def trace_wiring(model: nn.Module, example_inputs: Any, *, targets: Sequence[str] | None = None) -> Wiring:
    """Find the exclusive bundles among `targets` (names of prunable layers; default: all that the model calls).

    Args:
        example_inputs: keyword arguments of `model.forward`, tensors with the batch first; one sample is enough.

    Returns:
        The wiring. Where the model's forward cannot be traced, a wiring without bundles, and a logged warning.

    Raises:
        DendriticError: `example_inputs` is not a mapping of tensors, or a target is not a module of the model.
    """
    inputs = as_mapping(model, example_inputs)
    modules = dict(model.named_modules())
    names = list(modules) if targets is None else list(targets)
    for name in names:
        if name not in modules:
            raise invalid(
                "targets", name, f"is not a module of {type(model).__name__}", "Pass names of named_modules()."
            )
    layers = {name: weight_layer(model, name) for name in names if name and is_weight_layer(modules[name])}
    recurrent = {name: recurrent_layer(model, name) for name in names if name and is_recurrent_layer(modules[name])}
    with quiet(model):
        tracer = Tracer(model, inputs, layers, recurrent)
        try:
            positions = tracer.positions()
        except Exception as error:  # any model may fail in any way; without a trace nothing is cut
            logger.warning(f"The wiring could not be traced, so no channels are cut: {type(error).__name__}: {error}")
            return Wiring(fault=f"{type(error).__name__}: {error}")
        bundles = _bundles(tracer, {name: layer for name, layer in layers.items() if name in positions})
        return Wiring(tuple(_proved(model, repeat_first(inputs, 2), bundles, layers)), positions)


@dataclass(frozen=True)
class Spans:
    """Which inputs each channel reaches.

    Attributes:
        count: The number of inputs that each channel reaches.
        low: The first input that each channel reaches.
        high: The end of the inputs that each channel reaches, one above the last.
    """

    count: Int[Tensor, " channels"]
    low: Int[Tensor, " channels"]
    high: Int[Tensor, " channels"]

    @classmethod
    def of(cls, reach: Reach, channels: int) -> "Spans":
        """The spans of a relation that starts from so many channels."""
        zeros = torch.zeros(channels, dtype=torch.int64)
        low = zeros.scatter_reduce(0, reach.channels, reach.inputs, "amin", include_self=False)
        high = zeros.scatter_reduce(0, reach.channels, reach.inputs + 1, "amax", include_self=False)
        return cls(torch.bincount(reach.channels, minlength=channels), low, high)

    @property
    def contiguous(self) -> Bool[Tensor, " channels"]:
        """Which channels reach one block of inputs without a hole; in a fused product only some of them do."""
        return self.high - self.low == self.count

    def where(self, chosen: Bool[Tensor, " channels"]) -> "Spans":
        """The spans of the `chosen` channels alone."""
        return Spans(self.count[chosen], self.low[chosen], self.high[chosen])


def _runs(spans: Spans, block: int = 1) -> tuple[Run, ...] | None:
    """Reach as runs of blocks; None when some channel reaches no input, or scattered ones.

    With `block > 1` a channel counts as reaching the whole blocks from its first to its last input (a value head that
    is repeated for several query heads reaches scattered inputs of one block).
    """
    low, high = spans.low // block * block, (spans.high + block - 1) // block * block
    if not bool((spans.count > 0).all()) or (block == 1 and not bool(spans.contiguous.all())):
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
            runs[-1] = replace(last, count=last.count + 1)
        else:
            runs.append(Run(start=start, size=size, reach=lo, width=width, count=1))
    return tuple(runs)


def _bundles(tracer: Tracer, layers: dict[str, WeightLayer]) -> list[Bundle]:
    """Collect what leads to each reader; keep the bundles whose blocks line up and leave something to choose."""
    found: dict[str, dict[str, Reach]] = {}  # reader -> producer -> what reaches the reader
    onward: dict[str, dict[str, Reach]] = {}  # reader -> follower -> likewise
    reached, failed = tracer.reach(list(layers))
    for name, error in failed.items():
        logger.info(f"{name} stays uncut, its marks could not be read: {error}")
    for name, reach in reached.items():
        reader = tracer.exclusive(name, reach)
        if reader is None:
            continue
        found.setdefault(reader, {})[name] = reach[reader]
        for follower in reach.keys() & tracer.followers.values():
            leads, known = reach[follower].then(reach[reader]), onward.setdefault(reader, {})
            known[follower] = leads | known[follower] if follower in known else leads
    raised = {name: error for name, error in failed.items() if not isinstance(error, Tangled)}
    if raised:
        name, error = next(iter(raised.items()))
        logger.warning(
            f"The forward pass raises when NaN traces the wires of {len(raised)} layers, which are not cut: "
            f"{name}: {type(error).__name__}: {error}"
        )
    bundles = [_bundle(tracer, name, found[name], onward.get(name, {})) for name in layers if name in found]
    return [bundle for bundle in bundles if bundle is not None]


def _bundle(tracer: Tracer, reader: str, producers: dict[str, Reach], followers: dict[str, Reach]) -> Bundle | None:
    inputs = next(iter(producers.values())).width
    spans = {name: Spans.of(reach, tracer.channels(name)) for name, reach in (producers | followers).items()}
    whole = [runs for name in producers if (runs := _runs(spans[name].where(spans[name].contiguous)))]
    block = math.lcm(*(run.width for runs in whole for run in runs))
    wires = {name: _runs(own) or _runs(own, block) for name, own in spans.items()}
    runs = [run for found in wires.values() for run in found or ()]
    block = math.lcm(block, *(run.width for run in runs))
    if None in wires.values() or any(run.reach % run.width for run in runs) or inputs % block or block == inputs:
        return None
    as_wires = {name: Wire(name, found or ()) for name, found in wires.items()}
    leading, passing = (tuple(as_wires[name] for name in names) for names in (producers, sorted(followers)))
    return Bundle(reader=reader, producers=leading, followers=passing, block=block, cut=True)


def _proved(
    model: nn.Module, inputs: dict[str, Any], bundles: list[Bundle], layers: dict[str, WeightLayer]
) -> list[Bundle]:
    """The bundles, `cut` where a trial cut leaves the outputs alone: all at once first, then those whose names differ
    in numbers only, then each alone. Where the first of such alike bundles cannot be cut alone, no other one is."""

    def holds(some: list[Bundle]) -> bool:
        return _cut_holds(model, inputs, some, layers)

    if not bundles or holds(bundles):
        return bundles
    families: dict[str, list[Bundle]] = defaultdict(list)
    for bundle in bundles:
        families[re.sub(r"(?<![^.])\d+(?![^.])", "*", bundle.reader)].append(bundle)
    kept: set[str] = set()
    for family in families.values() if len(bundles) > 1 else ():
        if len(families) > 1 and holds(family):
            kept |= {bundle.reader for bundle in family}
        elif len(family) > 1 and holds(family[:1]):
            kept |= {bundle.reader for bundle in family if bundle is family[0] or holds([bundle])}
    for bundle in bundles:
        if bundle.reader not in kept:
            logger.info(f"{bundle.reader} keeps a gather: the tensor that it reads cannot shrink")
    return [replace(bundle, cut=bundle.reader in kept) for bundle in bundles]


def _cut_holds(model: nn.Module, inputs: dict[str, Any], bundles: list[Bundle], layers: dict[str, WeightLayer]) -> bool:
    touched = {name for b in bundles for name in [b.reader, *(p.name for p in b.producers)]}
    kept = {name: [torch.arange(widths(layers[name])[0])] for name in touched}
    for bundle in bundles:
        inputs_of_reader = kept[bundle.reader][0]
        first = int(inputs_fed(bundle, len(inputs_of_reader)).int().argmax()) // bundle.block
        kept[bundle.reader] = [inputs_of_reader[inputs_of_reader // bundle.block != first]]
    readers, like = last_readers(bundles), next(model.parameters())
    with exchanged(model, pack_modules(model, kept, [])):
        expected = answers(model, inputs, readers)
    if expected is None:
        return False
    with exchanged(model, pack_modules(model, kept, bundles)):
        return answers_alike(model, inputs, expected, readers, like=like)
