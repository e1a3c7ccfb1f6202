"""One injected model, several sizes of it: with masks inside of the present ones, and what of each tensor is left."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .config import DendriticConfig
from .distributed.dtensor import refuse_sharded
from .efficiency.evaluation_mode import evaluation_mode
from .layout.layout import Layout
from .nn import DendriticLayer, Gates, channels_of, is_recurrent_layer, stock_type, weight_layer
from .nn.pack_model import shapes_left
from .state import kept_in
from .train_steps import Update
from .unofficial import tensors_in, uncounted_writes


def size_due(config: DendriticConfig, plan: Mapping[int, Update], step: int) -> float | None:
    """Which size a step of a training has: the sparsity of a smaller one; None for the largest.

    From the time on that the schedule has passed the sparsity of the largest, every second step is one of the smaller
    ones, each in its turn, which climb further. A step that updates the masks is one of the largest.
    """
    smaller, reached = config.smaller, max((due.sparsity for at, due in plan.items() if at < step), default=0.0)
    if not smaller or step in plan or step % 2 or config.largest is None or reached <= config.largest:
        return None
    return min(smaller[step // 2 % len(smaller)], reached)


class Narrowed:
    """A model some of whose segments are zero for a while, and what they are otherwise. What BatchNorm layers count
    meanwhile is forgotten: their statistics are those of the largest size.

    Attributes:
        gates: The gates of the model.
        asleep: Which segments are zero, by the name of the gate.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, gates: Mapping[str, Gates], masks: Mapping[str, Tensor]) -> None:
        """Set what is outside of `masks` to zero, and let the masks say so.

        Args:
            model: injected.
            gates: those of `gates_in`.
            masks: some of what is left at present, as `Ranking.choose` finds it. Of two sizes the smaller one is inside
                of the larger one, because both are beginnings of one ranking.
        """
        refuse_sharded(model, "Leave dormant and sizes out of its config.")
        self.model, self.gates = model, gates
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
        self._statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
        devices = {name: gate.dendrite_mask.device for name, gate in gates.items()}
        self._before = {name: gate.dendrite_mask.clone() for name, gate in gates.items()}
        self.asleep = {name: self._before[name] & ~masks[name].to(devices[name]) for name in gates}
        self._taken = {name: [part.take(self.asleep[name]) for part in _pieces(gate)] for name, gate in gates.items()}
        self._narrow_()

    @torch.no_grad()
    def still_gradients_(self) -> None:
        """Let what sleeps have no gradient: it is not a part of the model that the loss was read of."""
        for name, gate in self.gates.items():
            found = {key: p.grad for key, p in gate.segmented().items() if p.grad is not None}
            gate.blank_(found, self.asleep[name])

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The largest size in evaluation mode, while the context lasts: as which it teaches the smaller one. Afterwards
        the smaller one is what it was, also for a backward pass through what it computed before."""
        written = [parameter for gate in self.gates.values() for parameter in gate.segmented().values()]
        with uncounted_writes(written), evaluation_mode(self.model):
            try:
                self.widen_()
                torch.clear_autocast_cache()  # it holds copies of the parameters of the other size
                yield
            finally:
                self._narrow_()
                torch.clear_autocast_cache()

    @torch.no_grad()
    def _narrow_(self) -> None:
        for name, gate in self.gates.items():
            gate.dendrite_mask.copy_(self._before[name] & ~self.asleep[name])
            gate.blank_(gate.segmented(), self.asleep[name])

    @torch.no_grad()
    def widen_(self) -> None:
        """Put everything back, also where an optimizer has moved it."""
        for name, gate in self.gates.items():
            for part, taken in zip(_pieces(gate), self._taken[name], strict=True):
                part.put_(self.asleep[name], taken)
            gate.dendrite_mask.copy_(self._before[name])
        for buffer, value in self._statistics:
            buffer.copy_(value)


@contextmanager
def narrowed(model: nn.Module, gates: Mapping[str, Gates], masks: Mapping[str, Tensor]) -> Iterator[Narrowed]:
    """The model as one of its sizes, while the context lasts."""
    made = Narrowed(model, gates, masks)
    try:
        yield made
    finally:
        made.widen_()


def entries_left(
    model: nn.Module, layout: Layout, layers: Mapping[str, DendriticLayer]
) -> dict[str, tuple[Tensor, ...]]:
    """For each tensor that packing makes smaller, the ascending entries that are left along its first axes. Of layers
    of several arbors and of recurrent layers it is not said."""
    kept, alive = kept_in(model, layout, layers)
    weights = {name: keep for name, keep in kept.items() if not is_recurrent_layer(model.get_submodule(name))}
    left, found = shapes_left(model, weights, layout.groups, alive), dict[str, tuple[Tensor, ...]]()
    for name, rows in left.outputs.items():
        keeps = weights.get(name, [left.arrives[name]])
        if len(keeps) == 1:
            axes = (keeps[0], rows) if stock_type(weight_layer(model, name)).__name__ == "Conv1D" else (rows, keeps[0])
            found |= {f"{name}.weight": axes, f"{name}.bias": (rows,)}
    for name, keep in left.channels.items():
        module = model.get_submodule(name)
        table = isinstance(module, nn.Embedding)
        for key, tensor in (item for registry in tensors_in(module) for item in registry.items()):
            if tensor is not None and tensor.dim() > table and tensor.shape[int(table)] == channels_of(module):
                found[f"{name}.{key}"] = (torch.arange(tensor.shape[0]), keep) if table else (keep,)
    for name, axes in left.entries.items():
        shape = model.get_parameter(name).shape
        found[name] = tuple(axes.get(axis, torch.arange(shape[axis])) for axis in range(max(axes) + 1))
    return found


def _pieces(gate: Gates) -> list:
    return gate.pieces({name: parameter.detach() for name, parameter in gate.segmented().items()})
