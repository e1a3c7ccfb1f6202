"""The table of measured times of a model: of each layer at several sizes, and of what else a unit of a group takes.

A layer is timed alone at each size, on an input of the size that arrives at it, and the times are scaled to what the
layer takes inside the running model, where its weights are not in the cache. What is left of the model's time belongs
to norms, activations and attention: how much of it goes with the units of a group is seen by halving such groups.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..efficiency import stopwatch
from ..layout.records import Group
from ..layout.times import WHOLE, TimeGrid, Times
from ..nn import (
    DendriticLayer,
    DendriticWeight,
    is_recurrent_layer,
    is_weight_layer,
    pack_layer,
    pack_recurrent,
    recurrent_layer,
    states,
    weight_layer,
    widths,
)
from ..nn.pack_model import pack_modules
from .example_inputs import tensors_of
from .nan_tracing import channel_axis
from .timed_runs import Inputs, as_deployed, run
from .verification import exchanged

logger = logging.get_logger(__name__)

SHARES = (0.0625, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Kind:
    """What layers have in common that take equally long.

    Attributes:
        about: The shapes, flags and the input's shape, as text.
        rows: Whether their outputs can go.
        narrow: Whether the tensor that they make then shrinks.
        inputs: Whether their inputs can go.
        arbors: The number of arbors with inputs of their own; 0 where the tensor that they read shrinks.
    """

    about: str
    rows: bool
    narrow: bool
    inputs: bool
    arbors: int


def measured_times(
    model: nn.Module, layers: Mapping[str, DendriticLayer], groups: Sequence[Group], inputs: Inputs
) -> Times:
    """Measure a stock model.

    Args:
        layers: the injected layers that are about to take the places of their stock ones.
        groups: those whose units may go.
        inputs: what the model is timed on.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    with as_deployed(model):
        arriving = _arriving(model, inputs)
        kinds = {name: _kind(name, model, layers.get(name), groups, x) for name, x in arriving.items()}
        families = _families(groups)
        with logging.tqdm(total=len({*kinds.values()}) + len(families) + 1, desc="time", unit="part") as bar:
            names = list(kinds) if on_cpu else []  # an accelerator's clock cannot be read inside a run
            dense = min((run(model, inputs, names) for _ in range(1 + stopwatch.RUNS)), key=lambda each: each.total)
            total = max(1e-12, dense.total)
            bar.update()
            first = {kind: name for name, kind in reversed(kinds.items())}
            sizes = {kind: _timed(model, name, kind, arriving[name], bar.update) for kind, name in first.items()}
            inside = dense.layers or {name: sizes[kind].full for name, kind in kinds.items()}
            rest = max(0.0, total - sum(inside.values()))
            units: dict[str, float] = {}
            for family in families if on_cpu else []:
                units |= _time_of_units(model, family, inputs, names)
                bar.update()
    scale = {k: _mean([inside[n] for n in kinds if kinds[n] == k]) / max(1e-12, sizes[k].full) for k in sizes}
    order = list(sizes)
    per_unit = {host: round(seconds / total * WHOLE) for host, seconds in units.items()}
    with_units = sum(per_unit[group.host] * group.units for group in groups if group.host in per_unit)
    return Times(
        hundredths=max(1, round(total * 1e8)),
        grids=tuple(sizes[kind].grid(scale[kind] / total * WHOLE) for kind in order),
        layers={name: order.index(kind) for name, kind in kinds.items()},
        units=per_unit,
        rest=max(0, round(rest / total * WHOLE) - with_units),
    )


@dataclass(frozen=True)
class Sizes:
    """Seconds of a layer: at each of the `rows`, with each of the `inputs`."""

    rows: list[int]
    inputs: list[int]
    seconds: list[list[float]]

    @property
    def full(self) -> float:
        return self.seconds[-1][-1]

    def grid(self, scale: float) -> TimeGrid:
        """The times multiplied by `scale`; none is longer than that of a larger size, down from the full one."""
        times = torch.tensor(self.seconds, dtype=torch.float64)
        for axis in (0, 1):
            times = times.flip(axis).cummin(axis).values.flip(axis)
        scaled = (times * scale).round().long().flatten().tolist()
        return TimeGrid(rows=tuple(self.rows), inputs=tuple(self.inputs), times=tuple(scaled))


def _arriving(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The first tensor that arrives at each layer which multiplies, by name."""
    found: dict[str, Tensor] = {}
    layers = [(n, m) for n, m in model.named_modules() if is_weight_layer(m) or is_recurrent_layer(m)]

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: found.update({name: tensors_of([args, kwargs])[0]})

    handles = [layer.register_forward_pre_hook(note(name), with_kwargs=True) for name, layer in layers]
    try:
        model.forward(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _kind(name: str, model: nn.Module, injected: DendriticLayer | None, groups: Sequence[Group], x: Tensor) -> Kind:
    module = model.get_submodule(name)
    about = f"{module!r} {tuple(x.shape)} {x.dtype}"
    if is_recurrent_layer(module):
        return Kind(about, rows=injected is not None, narrow=False, inputs=False, arbors=0)
    reads = any(group.cut and name in _names(group.consumers) for group in groups)
    makes = [group for group in groups if name in _names(group.producers)]
    own = isinstance(injected, DendriticWeight) and not reads and injected.dendrite_mask.numel() > 0
    arbors = len(injected.dendrite_mask) if own and injected is not None else 0
    narrow = any(group.cut for group in makes)
    return Kind(about, rows=bool(makes), narrow=narrow, inputs=reads or own, arbors=arbors)


def _names(members: Sequence[Any]) -> set[str]:
    return {member.name for member in members}


def _timed(model: nn.Module, name: str, kind: Kind, x: Tensor, advance: Callable[[], object]) -> Sizes:
    if is_recurrent_layer(model.get_submodule(name)):
        layer = recurrent_layer(model, name)
        rows, reads = _some(layer.hidden_size) if kind.rows else [layer.hidden_size], [layer.input_size]
        calls = [_call(pack_recurrent(layer, [torch.arange(count)] * states(layer)), x) for count in rows]
    else:
        inputs, outputs = widths(weight_layer(model, name))
        rows = _some(outputs) if kind.rows else [outputs]
        reads = _some(inputs) if kind.inputs else [inputs]
        calls = [_packed(model, name, kind, x, row, read) for row in rows for read in reads]
    seconds = stopwatch.seconds_in_turn(calls, x.device)
    advance()
    return Sizes(rows, reads, [seconds[start : start + len(reads)] for start in range(0, len(seconds), len(reads))])


def _some(size: int) -> list[int]:
    return sorted({max(1, round(share * size)) for share in SHARES})


def _packed(model: nn.Module, name: str, kind: Kind, x: Tensor, rows: int, inputs: int) -> Callable[[], object]:
    """A call of a layer that has so many rows and reads so many inputs, in the form that packing gives it."""
    layer = weight_layer(model, name)
    wide, outputs = widths(layer)
    kept = torch.arange(inputs)
    arbors = kind.arbors if kind.arbors and outputs % kind.arbors == 0 else 1
    reads = [((kept + arbor) % wide).sort().values for arbor in range(arbors)] if inputs < wide else [kept]
    arrives = torch.arange(wide) if kind.arbors else kept
    spread = torch.arange(rows) * outputs // rows  # every arbor has some
    packed = pack_layer(layer, reads, spread, arrives, kind.narrow)
    return _call(packed, x if len(arrives) == wide else x.narrow(channel_axis(layer), 0, inputs).clone())


def _call(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    layer.eval()
    return lambda: layer(x)


def _families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that are cut, those together whose names differ in numbers only."""
    families: dict[tuple[str, str, int], list[Group]] = {}
    for group in groups:
        if group.cut and group.units > 1:
            key = (re.sub(r"\d+", "*", group.host), group.kind, group.units)
            families.setdefault(key, []).append(group)
    return list(families.values())


def _time_of_units(model: nn.Module, family: Sequence[Group], inputs: Inputs, names: Sequence[str]) -> dict[str, float]:
    """What one unit of each group of a family takes outside of layers: what the model without half of them saves
    there, by the median over runs of both in turn."""
    alive = {group.host: torch.arange(group.units) < group.units // 2 for group in family}
    every = {group.host: [torch.arange(widths(weight_layer(model, group.host))[0])] for group in family}
    packed, saved = pack_modules(model, every, family, alive), []
    try:
        for _ in range(stopwatch.RUNS):
            dense = run(model, inputs, names)
            with exchanged(model, packed.modules, packed.parameters, packed.numbers):
                saved.append(dense.rest - run(model, inputs, names).rest)
    except Exception as error:  # a group that was proved on one input may break on another
        logger.info(f"{family[0].host} is priced by its layers alone: {type(error).__name__}: {error}")
        return {}
    gone = sum(group.units - group.units // 2 for group in family)
    return {group.host: max(0.0, median(saved)) / gone for group in family}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
