"""Running a model in eval mode, so that it is afterwards as it was before, and comparing its outputs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..efficiency.evaluation_mode import evaluation_mode
from ..nn.base import OWN_BUFFERS
from ..process_state import kept_random_state, plain_attention
from ..unofficial import tensors_in, unprepared
from .example_inputs import tensors_of


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode, full precision, an untouched random state; attention by plain products (fused kernels swallow NaN).

    One thread at a time: attention kernels and the random state are those of the whole process.
    """
    devices = sorted(
        {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    )
    with kept_random_state(devices), plain_attention(), unmixed(model), _kept_buffers(model), evaluation_mode(model):
        yield


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """What the model counts or collects while it runs is afterwards as before; our own buffers are none of that."""
    registries = [(own, dict(own)) for own in (tensors_in(module)[1] for module in model.modules())]
    kept = [(t, t.clone()) for _, own in registries for name, t in own.items() if t is not None and _is_theirs(name)]
    try:
        yield
    finally:
        with torch.no_grad():
            for own, before in registries:
                own.update({name: tensor for name, tensor in before.items() if name in own and _is_theirs(name)})
            for tensor, value in kept:
                tensor.copy_(value)


def _is_theirs(buffer: str) -> bool:
    return buffer not in OWN_BUFFERS


@contextmanager
def unmixed(model: nn.Module) -> Iterator[None]:
    """No autocast, whose rounding passes for a change of the outputs; nor the one accelerate wraps `forward` in."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    with torch.autocast(device, enabled=False), unprepared(model):
        yield


def probe(model: nn.Module, inputs: Mapping[str, Any], readers: Iterable[str] = ()) -> list[Tensor]:
    """The model's outputs, then those of the layers `readers`: a difference shows where it arises."""
    with watching(model, readers) as seen:
        outputs = model(**inputs)
    return gathered(outputs, seen)


@contextmanager
def watching(model: nn.Module, readers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Note what the layers `readers` answer while the model runs, by name."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, a, output, name=name: seen.update({name: output}))
        for name in readers
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def gathered(outputs: Any, seen: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors of a model's outputs, then those that were seen, by name."""
    return [*tensors_of(outputs), *(seen[name] for name in sorted(seen))]


def outputs_differ(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Largest difference of any pair relative to the largest expected value; inf where shapes or NaN differ."""
    if len(expected) != len(actual) or any(a.shape != b.shape for a, b in zip(expected, actual, strict=True)):
        return math.inf
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        if a.numel() and a.is_floating_point():
            scale = a.abs().nan_to_num(posinf=0).max().clamp(min=torch.finfo(a.dtype).tiny)
            equal = (a == b) | (a.isnan() & b.isnan())  # infinities, too, whose difference is not a number
            difference = ((a - b).masked_fill(equal, 0).abs().max() / scale).item()
            worst = max(worst, math.inf if math.isnan(difference) else difference)
    return worst


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference that reordered sums may make: rtol 1e-4 in fp32, a few units in the last place below."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 32 * torch.finfo(dtype).eps
