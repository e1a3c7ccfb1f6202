"""Scores from calibration batches: the mean over batches of what training takes a running average of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import invalid
from ..functional.importance import IMPORTANCE, square_sums
from ..functional.tiles import wide
from ..nn import DendriticLayer, DendriticWeight, Gates
from ..process_state import without_cudnn
from ..structure.labelled_batches import REMEDY, LabelledBatch, on_device


def readings(importance: str, count: int) -> int:
    """How many of `count` batches an importance reads: all of them, or none."""
    rule = IMPORTANCE[importance]
    return count if rule.running or rule.needs_activity else 0


def score_on_(
    model: nn.Module,
    layers: Mapping[str, DendriticLayer],
    gates: Mapping[str, Gates],
    importance: str,
    batches: Sequence[LabelledBatch],
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Score every segment of a model in eval mode on `batches`. Gradients of the parameters stay what they are.

    Args:
        layers: the injected layers of `model`, by name.
        gates: its gates, by the names of the layers that hold their masks.
        importance: a key of `IMPORTANCE`.
        advance: called after each batch that is read.

    Raises:
        DendriticError: the score needs a loss and the outputs hold none, or it is not finite on any batch.
    """
    rule = IMPORTANCE[importance]
    if rule.measure is None:
        return
    if rule.needs_activity:
        _observe(model, layers, batches, advance)
    if not rule.running:
        for gate in gates.values():
            gate.score_(importance, decay=0.0)
        return
    totals = {name: torch.zeros_like(gate.dendrite_score) for name, gate in gates.items()}
    finite = 0
    for batch in batches:
        gradients = _gradients(model, gates, batch)
        scores = {name: gate.reading(rule, gradients[name]) for name, gate in gates.items()}
        if all(score.isfinite().all() for score in scores.values()):
            finite += 1
            totals = {name: total + scores[name] for name, total in totals.items()}
        advance()
    if not finite:
        rule = "gives gradients that are not finite, on every batch"
        raise invalid("model", type(model).__name__, rule, "Mend its weights, or calibrate in another dtype.")
    for name, gate in gates.items():
        gate.dendrite_score.copy_(totals[name] / finite)


def _gradients(model: nn.Module, gates: Mapping[str, Gates], batch: LabelledBatch) -> dict[str, dict[str, Tensor]]:
    """Gradients of the loss for the parameters that the gates multiply; zero for what the batch does not reach."""
    parameters = {(name, key): p for name, gate in gates.items() for key, p in gate.segmented().items()}
    weights = list(parameters.values())
    recurrent = any(isinstance(gate, nn.RNNBase) for gate in gates.values())
    with torch.enable_grad(), _trainable(weights), without_cudnn(needed=recurrent):
        outputs = model(**on_device(model, batch))
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if loss is None:
            rule = "its outputs hold no loss, which the importance is taken from"
            raise invalid("batches", sorted(batch), rule, REMEDY)
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
    gradients: dict[str, dict[str, Tensor]] = {name: {} for name in gates}
    for (name, key), gradient in zip(parameters, found, strict=True):
        gradients[name][key] = gradient
    return gradients


@contextmanager
def _trainable(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let all `weights` require gradients, including those that were frozen after the injection."""
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)


@torch.no_grad()
def _observe(
    model: nn.Module,
    layers: Mapping[str, DendriticLayer],
    batches: Sequence[LabelledBatch],
    advance: Callable[[], object],
) -> None:
    """Set the activity of every layer to the mean square of its inputs over all batches."""
    weights = {name: layer for name, layer in layers.items() if isinstance(layer, DendriticWeight)}
    sums = {name: (torch.zeros(()), 0) for name in weights}

    def note(name: str, layer: nn.Module, args: Any) -> None:
        (x,) = args
        x = x.movedim(weights[name].channel_axis, -1).flatten(0, -2)
        total, count = sums[name]
        sums[name] = total.to(x.device) + square_sums(wide(x), axis=-1), count + len(x)

    handles = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in weights.items()]
    try:
        for batch in batches:
            model(**on_device(model, batch))
            advance()
    finally:
        for handle in handles:
            handle.remove()
    for name, (total, count) in sums.items():
        activity = weights[name].dendrite_activity
        assert activity is not None, "layers are injected with an activity buffer for this importance"
        activity.copy_((total / max(count, 1)).nan_to_num())
