"""Running a model for its time: in eval mode, as it is used later, and afterwards as it was before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from ..efficiency import stopwatch
from ..efficiency.evaluation_mode import evaluation_mode
from ..process_state import kept_random_state
from .probing import unmixed

ATTRIBUTE = "dendritic_timed_inputs"
TURNS = 7

Inputs = Mapping[str, Any]


def note_timed_inputs(model: nn.Module, inputs: Inputs) -> None:
    """Record, on the model object alone, what it is timed on."""
    model.__dict__[ATTRIBUTE] = dict(inputs)


def timed_inputs_of(model: nn.Module) -> dict[str, Any] | None:
    """What a model is timed on; None where its target is not a time, or it was loaded and not injected here."""
    return model.__dict__.get(ATTRIBUTE)


@contextmanager
def as_deployed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no autocast; an untouched random state. One thread at a time."""
    device = next(model.parameters()).device
    random_state = kept_random_state([device] if device.type == "cuda" else [])
    with random_state, unmixed(model), torch.no_grad(), evaluation_mode(model):
        yield


@dataclass(frozen=True)
class Run:
    """The seconds of one forward pass.

    Attributes:
        total: Of the whole model.
        layers: Of the layers that were looked at, by name.
    """

    total: float
    layers: dict[str, float]

    @property
    def rest(self) -> float:
        """Of all but these layers."""
        return self.total - sum(self.layers.values())


def run(model: nn.Module, inputs: Inputs, names: Sequence[str] = ()) -> Run:
    """One forward pass, without the hooks of the model itself and not compiled, and what the layers `names` take in
    it."""
    device, spent = next(model.parameters()).device, dict.fromkeys(names, 0.0)
    with _stopped(model, names, spent, device):
        start = stopwatch.reading(device)
        model.forward(**inputs)
        total = stopwatch.reading(device) - start
    return Run(total, spent)


@contextmanager
def _stopped(model: nn.Module, names: Sequence[str], spent: dict[str, float], device: torch.device) -> Iterator[None]:
    """Add up in `spent` what each call of the layers takes."""

    def start(name: str) -> Callable[..., None]:
        return lambda *_: spent.__setitem__(name, spent[name] - stopwatch.reading(device))

    def stop(name: str) -> Callable[..., None]:
        return lambda *_: spent.__setitem__(name, spent[name] + stopwatch.reading(device))

    layers = {name: model.get_submodule(name) for name in names}
    handles = [layer.register_forward_pre_hook(start(name)) for name, layer in layers.items()]
    handles += [layer.register_forward_hook(stop(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def paired_share(first: Callable[[], float], second: Callable[[], float]) -> float:
    """The time of `second` as a share of that of `first`, by the median of the ratios of neighbours in time."""
    ratios = []
    for turn in range(TURNS + 1):
        before, after = first(), second()
        if turn:  # the first turn fills caches
            ratios.append(after / max(1e-12, before))
    return median(ratios)
