"""Layers that are fitted each for itself, so that many divisions of a budget are judged as they will be: reconstructed.

What a layer becomes when some of its inputs go does not depend on the other layers here: it is fitted to what the dense
layer answers, from what it reads in the dense model. So it is computed once for all divisions that keep the same of it,
as EvoPress keeps compressed versions of each layer (Sieberling et al. 2024).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.least_squares import Moments
from ..functional.tiles import rows_first, wide
from ..layout.layout import Layout
from ..nn import DendriticLayer, DendriticWeight, Gates
from ..search.objective import Fits
from ..state import kept_in
from ..structure.labelled_batches import LabelledBatch, on_device
from .reconstruction import fitted_layers, kept_columns, refit_layer, valid_rows, watch

WIDEST = 8192  # columns of a layer that is fitted: its moments are a square of so many
VERSIONS = 16  # of each layer that are kept


class Refits(Fits):
    """What each layer is once some of its inputs are gone.

    Attributes:
        layers: The layers that are fitted.
        damping: See `least_squares`.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        layers: Mapping[str, DendriticLayer],
        gates: Mapping[str, Gates],
        batches: Sequence[LabelledBatch],
        damping: float,
    ) -> None:
        """Run the dense model once on the batches.

        Args:
            damping: see `least_squares`.
        """
        self._model, self._layout, self._all, self._gates, self.damping = model, layout, layers, gates, damping
        narrow = {n: each for n, each in fitted_layers(layers).items() if _columns(each) <= WIDEST}
        self._read = _moments_of_inputs(model, narrow, batches)
        self.layers = {name: narrow[name] for name in self._read}
        self._dense = {name: _tensors(layer) for name, layer in self.layers.items()}
        self._known = dict[Any, list[Tensor]]()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model as its masks are at present, with the layers that read less fitted, while the context lasts."""
        kept = kept_in(self._model, self._layout, self._all)[0]
        try:
            with torch.no_grad():
                for name in self.layers:
                    self._fit_(name, kept[name])
                for gate in self._gates.values():
                    gate.blank_(gate.segmented(), ~gate.dendrite_mask)
            yield
        finally:
            for name, layer in self.layers.items():
                _set_(layer, self._dense[name])

    def _fit_(self, name: str, inputs: Sequence[Tensor]) -> None:
        layer = self.layers[name]
        read = [kept_columns(layer, own) for own in inputs]
        if all(len(columns) == _columns(layer) for columns in read):
            return
        key = (name, *(own.numpy().tobytes() for own in inputs))
        if key not in self._known:
            _set_(layer, self._dense[name])
            refit_layer(name, layer, read, self._moments(name, read), self.damping)
            self._known[key] = [tensor.clone() for tensor in _tensors(layer, clone=False)]
            if len(self._known) > VERSIONS * len(self.layers):
                del self._known[next(iter(self._known))]
        _set_(layer, self._known[key])

    def _moments(self, name: str, read: Sequence[Tensor]) -> list[Moments]:
        """Those of each arbor: of the columns that it reads, and of what all columns of the dense layer answer."""
        layer, whole = self.layers[name], self._read[name]
        arbors = wide(rows_first(layer.weight, layer.transposed).flatten(1)).chunk(len(read))
        biases = [None] * len(read) if layer.bias is None else wide(layer.bias).chunk(len(read))
        found = []
        for weight, bias, columns in zip(arbors, biases, read, strict=True):
            y, yx = weight @ whole.x, weight @ whole.xx
            if bias is not None:
                y, yx = y + whole.count * bias, yx + bias.outer(whole.x)
            xx = whole.xx[columns][:, columns]
            found.append(Moments(count=whole.count, x=whole.x[columns], y=y, xx=xx, yx=yx[:, columns]))
        return found


def _columns(layer: DendriticWeight) -> int:
    return rows_first(layer.weight, layer.transposed)[0].numel()


def _tensors(layer: DendriticWeight, clone: bool = True) -> list[Tensor]:
    own = [layer.weight.detach()] if layer.bias is None else [layer.weight.detach(), layer.bias.detach()]
    return [tensor.clone() for tensor in own] if clone else own


@torch.no_grad()
def _set_(layer: DendriticWeight, tensors: Sequence[Tensor]) -> None:
    for own, tensor in zip(_tensors(layer, clone=False), tensors, strict=True):
        own.copy_(tensor)


def _moments_of_inputs(
    model: nn.Module, layers: Mapping[str, DendriticWeight], batches: Sequence[LabelledBatch]
) -> dict[str, Moments]:
    """Of what each layer reads in the dense model; without what it answers."""
    found = dict[str, Moments]()
    for batch in batches:
        moved = on_device(model, batch)

        def note(name: str, x: Tensor, y: Tensor, moved: LabelledBatch = moved) -> None:
            rows, valid = wide(layers[name].factors(x)), valid_rows(moved, y)
            rows = rows if valid is None else rows[valid]
            own = Moments.of(rows, rows[:, :0])
            found[name] = found[name] + own if name in found else own

        watch(layers, note, lambda moved=moved: model(**moved))
    return found
