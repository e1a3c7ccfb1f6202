"""Trial cuts: does a model run on smaller tensors as it runs on larger ones with dead channels?

As in tracing nothing is multiplied by a weight: a layer answers with noise of the right shape, and one that lost rows
with the same noise without those rows. What arrives at every layer must be what arrives there when the channels are
dead in place; what the layers would make of it does not matter. So a trial costs what the activations cost.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from ..layout.records import Group, Number
from ..nn import WeightLayer, widths
from ..nn.pack_model import Shapes, numbers_left, shapes_left, shrunk_parameter
from ..nn.per_channel import shrink_channels
from ..nn.surgery import shallow_copy
from ..unofficial import answering, tensors_in
from .example_inputs import repeat_first, tensors_of
from .nan_tracing import Tracer
from .readers import answer_shape, channel_axis
from .verification import compared, exchanged

logger = logging.get_logger(__name__)

Arrivals = list[tuple[str, Tensor]]


class Trial:
    """Cuts one unit out of each of some groups, and looks at what arrives."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer, self.model = tracer, tracer.model
        self.inputs = repeat_first(tracer.inputs, 2)

    def holds(self, groups: Sequence[Group]) -> bool:
        """Whether the model runs without the first unit of each of these groups, and computes the same."""
        groups = list(groups)
        alive = {group.host: torch.arange(group.units) > 0 for group in groups}
        left = shapes_left(self.model, self.tracer.layers, groups, alive)
        try:
            with answering(_norms(self.model, left, self.tracer), _Living(left, self.tracer)):
                expected, outputs = self._run(self.tracer.layers, {})
            parameters = {name: shrunk_parameter(self.model, name, axes) for name, axes in left.entries.items()}
            tables = {name: table for name, table in self.tracer.tables.items() if name in left.channels}
            shells = _shells(self.model, left)
            looked_up = _Columns({shells[name]: (table, left.channels[name]) for name, table in tables.items()})
            with (
                exchanged(self.model, shells, parameters, numbers_left(groups, alive)),
                answering(looked_up.tables, looked_up),
            ):
                layers = {name: self.model.get_submodule(name) for name in self.tracer.layers}
                found, answers = self._run(layers, left.outputs)
        except Exception as error:  # whatever a model raises on a tensor that has shrunk, it cannot do without
            logger.info(f"The forward pass of {type(self.model).__name__} broke: {type(error).__name__}: {error}")
            return False
        if [name for name, _ in expected] != [name for name, _ in found]:
            return False
        wanted = [self._left(x, name, left) for name, x in expected]
        like = next(self.model.parameters())
        return compared([*outputs, *wanted], [*answers, *(x for _, x in found)], like=like).is_rounding

    def with_numbers(self, group: Group) -> Group | None:
        """The group with the numbers that modules above its first consumer split and reshape by, so that it can be cut;
        None where no one of them, nor all of one module, makes it hold."""
        for module, inner in self._above(group.host):
            names = [name for name, value in vars(inner).items() if _counts_units(name, value, group.units)]
            for chosen in [[name] for name in names] + [names] * (len(names) > 1):
                numbers = tuple(Number(module=module, name=name, value=vars(inner)[name]) for name in chosen)
                if self.holds([replace(group, cut=True, numbers=numbers)]):
                    return replace(group, cut=True, numbers=numbers)
        return None

    def like(self, group: Group, other: Group) -> Group:
        """A group with the numbers that another one of the same structure needs."""
        depths = [other.host.count(".") - number.module.count(".") for number in other.numbers]
        modules = [group.host.rsplit(".", depth)[0] for depth in depths]
        pairs = zip(modules, other.numbers, strict=True)
        found: list[Any] = [vars(self.model.get_submodule(module)).get(number.name) for module, number in pairs]
        if any(not _counts_units("", value, group.units) for value in found):
            return group
        parts = zip(modules, other.numbers, found, strict=True)
        return replace(group, numbers=tuple(Number(module=m, name=n.name, value=v) for m, n, v in parts))

    def _above(self, name: str) -> Iterator[tuple[str, nn.Module]]:
        while "." in name:
            name = name.rpartition(".")[0]
            yield name, self.model.get_submodule(name)

    def _left(self, x: Tensor, name: str, left: Shapes) -> Tensor:
        return x.index_select(channel_axis(self.tracer.layers[name]), left.arrives[name].to(x.device))

    def _run(self, layers: Mapping[str, nn.Module], rows: Mapping[str, Tensor]) -> tuple[Arrivals, list[Tensor]]:
        """What arrives at each call of the layers, and the outputs."""
        names, calls = {module: name for name, module in layers.items()}, dict.fromkeys(layers, 0)
        arrivals: Arrivals = []

        def answer(layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            name, (x,) = names[layer], tensors_of([args, kwargs])[:1]
            stock = self.tracer.layers[name]
            arrivals.append((name, x))
            calls[name] += 1
            seed = zlib.crc32(f"{name}/{calls[name]}".encode())
            dtype = x.dtype if x.is_floating_point() else stock.weight.dtype
            shape = answer_shape(stock, x, widths(stock)[1])
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(x.device, dtype)
            return noise.index_select(channel_axis(stock), rows[name].to(x.device)) if name in rows else noise

        with answering(layers.values(), answer):
            outputs = self.model(**self.inputs)
        return arrivals, [t for t in tensors_of(outputs) if t.is_floating_point()]


class _Living:
    """Lets norms take their statistics over the channels that are left."""

    def __init__(self, left: Shapes, tracer: Tracer) -> None:
        self.left, self.tracer = left, tracer

    def __call__(self, norm: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        (x,) = tensors_of([args, kwargs])
        keep, axis = self.left.channels[self.tracer.norms[norm]].to(x.device), self.tracer.norm_axis(norm)
        y = type(norm).forward(shrink_channels(norm, keep), x.index_select(axis, keep))
        return y.new_zeros(x.shape).index_copy(axis, keep, y)


def _counts_units(name: str, value: Any, units: int) -> bool:
    """Whether an attribute may say how many units there are, or how wide they are together."""
    return type(value) is int and value >= units and value % units == 0 and not name.startswith("_")


class _Columns:
    """Lets embeddings that have lost columns look up all, and hand on those that are left: no weight is copied."""

    def __init__(self, tables: Mapping[nn.Module, tuple[nn.Embedding, Tensor]]) -> None:
        self.tables = tables

    def __call__(self, shell: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        table, keep = self.tables[shell]
        found = table(*args, **kwargs)
        return found.index_select(-1, keep.to(found.device))


def _norms(model: nn.Module, left: Shapes, tracer: Tracer) -> list[nn.Module]:
    norms = [model.get_submodule(name) for name in left.channels]
    return [norm for norm in norms if norm in tracer.norms]


def _shells(model: nn.Module, left: Shapes) -> dict[str, nn.Module]:
    """Modules of the shapes that are left. Nobody multiplies by their weights, which are one entry each, repeated: on
    the device of the stock ones, since a model may ask where it is."""
    layers = {name: _shell(model, name, left) for name in left.arrives}
    modules = {name: model.get_submodule(name) for name in left.channels}
    tables = {n: _narrow_table(m, len(left.channels[n])) for n, m in modules.items() if _is_table(m)}
    others = {n: shrink_channels(m, left.channels[n]) for n, m in modules.items() if not _is_table(m)}
    return layers | tables | others


def _shell(model: nn.Module, name: str, left: Shapes) -> nn.Module:
    layer = model.get_submodule(name)
    assert isinstance(layer, WeightLayer)
    shell = shallow_copy(layer)
    inputs, rows = len(left.arrives[name]), len(left.outputs[name]) if name in left.narrow else widths(layer)[1]
    shape = (inputs, rows) if isinstance(layer, Conv1D) else (rows, inputs, *layer.weight.shape[2:])
    own = tensors_in(shell)[0]
    entry = torch.empty((), dtype=layer.weight.dtype, device=layer.weight.device)
    own["weight"] = nn.Parameter(entry.expand(shape))
    if own.get("bias") is not None:
        own["bias"] = nn.Parameter(entry.expand(rows))
    if isinstance(shell, nn.Conv2d):
        shell.in_channels, shell.out_channels = inputs, rows
    elif isinstance(shell, nn.Linear):
        shell.in_features, shell.out_features = inputs, rows
    elif isinstance(shell, Conv1D):
        shell.nx, shell.nf = inputs, rows
    return shell


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def _narrow_table(table: nn.Module, columns: int) -> nn.Module:
    narrow = shallow_copy(table)
    vars(narrow)["embedding_dim"] = columns
    return narrow
