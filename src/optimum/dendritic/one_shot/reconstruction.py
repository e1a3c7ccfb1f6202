"""Reconstruction: a pruned layer is fitted so that its remaining inputs make up for those that it lost.

Every layer is fitted by least squares to what the dense layer answered on calibration batches, from what now arrives at
the inputs that it keeps. Layers are fitted group by group in the order in which they are called, and a group reads what
comes out of the groups before it, pruned and fitted: so it makes up for what was lost upstream as well (as the
sequential solvers of SparseGPT and GPTQ do; Frantar & Alistarh 2023).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers.utils import logging

from ..errors import invalid
from ..functional.least_squares import Moments, refit
from ..functional.tiles import rows_first, wide
from ..nn import DendriticLayer, DendriticWeight
from ..structure.labelled_batches import LabelledBatch, on_device

logger = logging.get_logger(__name__)

REMEDY = "Pass reconstruct=False."


def check_damping(damping: object) -> None:
    """Raises `DendriticError` for what is no damping of `least_squares`."""
    if not isinstance(damping, int | float) or not 0 <= damping < float("inf"):
        raise invalid("damping", damping, "must be a number of at least 0", "Leave damping at its default.")


def fitted_layers(layers: Mapping[str, DendriticLayer]) -> dict[str, DendriticWeight]:
    """Those of the injected layers that answer linearly: all but the recurrent ones."""
    return {name: layer for name, layer in layers.items() if isinstance(layer, DendriticWeight)}


@torch.no_grad()
def reconstruct_(
    model: nn.Module,
    layers: Mapping[str, DendriticWeight],
    kept: Mapping[str, Sequence[Tensor]],
    dense: Mapping[str, Tensor],
    batches: Sequence[LabelledBatch],
    groups: Sequence[Sequence[str]],
    *,
    damping: float,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Fit every injected layer to what the dense model's layer answers on `batches`, layer after layer.

    Args:
        model: injected, pruned, in eval mode.
        layers: the `fitted_layers` of `model`.
        kept: for each of them the ascending inputs that each of its arbors reads.
        dense: the parameters of the injected layers before pruning, by name.
        groups: the layers in the order in which they are fitted; each group sees those before it fitted. See `stages`.
        damping: see `least_squares`.
        advance: called after each batch of each group.
    """
    read = {name: [kept_columns(layer, inputs) for inputs in kept[name]] for name, layer in layers.items()}
    for group in groups:
        moments: dict[str, list[Moments]] = {}
        for batch in batches:
            for name, found in _moments(model, {name: layers[name] for name in group}, read, dense, batch).items():
                moments[name] = _sums(moments.get(name), found)
            advance()
        for name, found in moments.items():
            refit_layer(name, layers[name], read[name], found, damping)


@torch.no_grad()
def stages(
    model: nn.Module, layers: Mapping[str, DendriticWeight], batch: LabelledBatch, passes: int
) -> list[list[str]]:
    """The names of `layers` in the order of their first call, in at most `passes` groups.

    Layers that read the same tensor (query, key and value) stay together. More groups are more accurate and take
    longer: each costs up to two forward passes over all batches.
    """
    order: list[list[str]] = []
    previous: list[Tensor] = []

    def note(name: str, x: Tensor, y: Tensor) -> None:
        if any(name in group for group in order):
            return
        if previous and previous[-1] is x:
            order[-1].append(name)
        else:
            order.append([name])
        previous[:] = [x]

    watch(layers, note, lambda: model(**on_device(model, batch)))
    size = -(-len(order) // passes) if order else 1
    return [sum(order[first : first + size], []) for first in range(0, len(order), size)]


def _moments(
    model: nn.Module,
    group: Mapping[str, DendriticWeight],
    columns_of: Mapping[str, Sequence[Tensor]],
    dense: Mapping[str, Tensor],
    batch: LabelledBatch,
) -> dict[str, list[Moments]]:
    """For each layer and each of its arbors the moments of what it answers in the dense model, and of what it reads in
    the model whose groups before this one are pruned and fitted.

    The group itself is dense while it reads: a layer of the group must not compensate for another one of it, which is
    still to be fitted.
    """
    batch = on_device(model, batch)
    wanted: dict[str, list[Tensor]] = {name: [] for name in group}
    found: dict[str, list[Moments]] = {}

    def answer(name: str, x: Tensor, y: Tensor) -> None:
        wanted[name].append(group[name].products(y).clone())

    def read(name: str, x: Tensor, y: Tensor) -> None:
        layer, rows = group[name], group[name].factors(x)
        if not wanted[name] or len(wanted[name][0]) != len(rows):
            raise invalid("model", type(model).__name__, f"calls {name} otherwise once it is pruned", REMEDY)
        expected, valid = wanted[name].pop(0), valid_rows(batch, y)
        if valid is not None:
            rows, expected = rows[valid], expected[valid]
        parts = zip(columns_of[name], wide(expected).chunk(len(layer.dendrite_mask), 1), strict=True)
        found[name] = _sums(found.get(name), [Moments.of(wide(rows[:, kept]), part) for kept, part in parts])

    watch(group, answer, lambda: functional_call(model, dict(dense), (), batch))
    whole = {key: value for key, value in dense.items() if key.rpartition(".")[0] in group}
    watch(group, read, lambda: functional_call(model, whole, (), batch), calls=sum(map(len, wanted.values())))
    return found


def _sums(known: list[Moments] | None, new: list[Moments]) -> list[Moments]:
    return new if known is None else [a + b for a, b in zip(known, new, strict=True)]


def kept_columns(layer: DendriticWeight, inputs: Int[Tensor, " kept"]) -> Int[Tensor, " columns"]:
    """Ascending indices of the columns of `factors` that belong to these inputs."""
    size, inputs = layer.weight.shape[2:].numel(), inputs.to(layer.weight.device)
    return (inputs[:, None] * size + torch.arange(size, device=inputs.device)).flatten()


def refit_layer(
    name: str, layer: DendriticWeight, read: Sequence[Tensor], moments: list[Moments], damping: float
) -> None:
    rows = rows_first(layer.weight, layer.transposed)
    weight = rows.flatten(1).unflatten(0, (len(read), -1))  # [arbors, rows, columns]
    bias = None if layer.bias is None else layer.bias.view(len(weight), -1)
    fitted, offset = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    for arbor, (kept, found) in enumerate(zip(read, moments, strict=True)):
        new, new_bias = refit(found, weight[arbor][:, kept], None if bias is None else bias[arbor], damping)
        if not new.isfinite().all() or not (new_bias is None or new_bias.isfinite().all()):
            logger.warning(f"{name} is not reconstructed: what it reads is not finite")
            return
        fitted[arbor, :, kept] = new.to(weight.dtype)
        if offset is not None and new_bias is not None:
            offset[arbor] = new_bias.to(weight.dtype)
    rows.copy_(fitted.reshape(rows.shape))
    if layer.bias is not None and offset is not None:
        layer.bias.copy_(offset.flatten())


def valid_rows(batch: LabelledBatch, y: Tensor) -> Bool[Tensor, " samples"] | None:
    """Which rows stand for real tokens; None where the layer's positions are not those of the attention mask."""
    mask = batch.get("attention_mask")
    return mask.flatten().bool() if isinstance(mask, Tensor) and mask.shape == y.shape[:-1] else None


class _Enough(Exception):
    """Ends a forward pass whose remaining layers are not needed."""


def watch(
    layers: Mapping[str, nn.Module],
    see: Callable[[str, Tensor, Tensor], None],
    run: Callable[[], object],
    calls: int | None = None,
) -> None:
    """Run, and hand the name, input and output of every call of the `layers` to `see`; stop after so many calls."""
    seen = 0

    def hook(name: str, layer: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal seen
        see(name, args[0], output)
        seen += 1
        if seen == calls:
            raise _Enough

    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers.items()]
    try:
        run()
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
