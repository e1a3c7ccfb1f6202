"""Pruning around the steps of DeepSpeed's ZeRO optimizer, stages 1 and 2 (Rajbhandari et al. 2020, "ZeRO").

Every process holds the whole parameters, which the model computes with, and of the averaged gradients, of the fp32
weights and of the moments a flat part. accelerate's backward pass steps the engine before any callback is asked, and
the step writes the parameters anew from the fp32 weights. So what a callback does before and after an optimizer step is
done around `engine.step`, with the gradients gathered, and what it sets to zero is zeroed in the flat parts, too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import invalid
from ...nn import DendriticWeight, Gates
from ...state import gates_of
from ...train_steps import mask_
from ...unofficial import replace_method_, restore_method_, trained_by_zero, zero_mapping

Parts = Callable[[nn.Parameter], list[Tensor]]  # what this process holds of a parameter: flat tensors, or none


def around_steps_(engine: Any, model: nn.Module, due: Callable[[], bool], prune: Callable[[], None]) -> None:
    """Let the optimizer steps of a DeepSpeed engine begin with `prune`, where it is due, and all end with `mask_`.

    Args:
        engine: the `DeepSpeedEngine` that trains `model`, which is injected.
        due: whether the step at hand scores or updates; the same on every process. Only then are gradients gathered,
            which costs what averaging them costs in DDP.
        prune: scores and updates the masks of `model`, whose parameters have their whole gradients while it runs.

    Raises:
        DendriticError: the engine's optimizer is another one than that of ZeRO 1 and 2.
    """
    if "DeepSpeedZeroOptimizer" not in [kind.__name__ for kind in type(engine.optimizer).__mro__]:
        rule = "must be that of ZeRO 1 or 2, whose gradients and fp32 weights can be pruned"
        remedy = "Set zero_optimization.stage to 1 or 2, and leave grad_accum_dtype out."
        raise invalid("optimizer", type(engine.optimizer).__name__, rule, remedy)

    def step(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        gates = list(gates_of(model).values())
        if due():
            _prune(engine.optimizer, gates, prune)
        result = stock(*args, **kwargs)
        mask_(model)
        for each in gates:
            _blank_(each, ~each.dendrite_mask, _weights)
        return result

    stock_steps_(engine)
    replace_method_(engine, "step", step)


def stock_steps_(engine: Any) -> None:
    """Undo `around_steps_`."""
    restore_method_(engine, "step")


def _prune(optimizer: Any, gates: Sequence[Gates], prune: Callable[[], None]) -> None:
    """Prune, and reset the optimizer state of the segments that return and of the sprouts that may have changed."""
    moments = partial(_moments, optimizer)
    before = [each.dendrite_mask.clone() for each in gates]
    inactive = [each for each in gates if _is_inactive(each)]
    with _gradients(optimizer, gates):
        prune()
    for each, old in zip(gates, before, strict=True):
        back = each.dendrite_mask & ~old
        if back.any():
            _blank_(each, back, moments)
    for each in inactive:
        _restart_(each, moments)


@contextmanager
def _gradients(optimizer: Any, gates: Sequence[Gates]) -> Iterator[None]:
    """Give the segmented parameters their gradients, averaged, unscaled and clipped as the step will take them."""
    from deepspeed.utils import safe_get_full_grad  # pyright: ignore[reportMissingImports]

    norm, scale = optimizer.scaled_global_norm() / optimizer.loss_scale, float(optimizer.loss_scale)
    if optimizer.clip_grad > 0:
        scale *= max(1.0, (float(norm) + 1e-6) / optimizer.clip_grad)
    parameters = [parameter for each in gates for parameter in each.segmented().values()]
    parameters = [parameter for parameter in parameters if trained_by_zero(parameter)]
    try:
        for parameter in parameters:
            gradient = safe_get_full_grad(parameter)
            assert gradient is not None
            parameter.grad = (gradient / scale).to(parameter.dtype)
        yield
    finally:
        for parameter in parameters:
            parameter.grad = None


def _blank_(gates: Gates, chosen: Tensor, parts: Parts) -> None:
    """Set what this process holds of the `chosen` tiles to zero, in the flat `parts` of each parameter."""
    parameters = gates.segmented()
    kept = {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in parameters.items()}
    gates.blank_(kept, chosen)
    for name, parameter in parameters.items():
        for part in parts(parameter):
            part.masked_fill_(~_own(parameter, kept[name]).to(part.device), 0)


def _is_inactive(layer: Gates) -> bool:
    """Whether a layer has a sprout that adds nothing yet."""
    return isinstance(layer, DendriticWeight) and layer.dendrite_awake is not None and not layer.dendrite_awake


def _restart_(layer: Gates, moments: Parts) -> None:
    """Copy a sprout, which may have absorbed what was pruned, to its fp32 weights, and set their moments to zero."""
    assert isinstance(layer, DendriticWeight) and layer.sprout is not None
    for parameter in layer.sprout.parameters():
        for weight in _weights(parameter):
            weight.copy_(_own(parameter, parameter.detach()))
        for moment in moments(parameter):
            moment.zero_()


def _own(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """Of a tensor of a parameter's shape, the part that this process holds, flat."""
    address = zero_mapping(parameter).lp_fragment_address
    return whole.flatten().narrow(0, address.start, address.numel)


def _weights(parameter: nn.Parameter) -> list[Tensor]:
    """The fp32 weights of a parameter that this process holds: one flat tensor, or none."""
    mapping = zero_mapping(parameter)
    return [] if mapping is None else [mapping.hp_fragment.detach()]


def _moments(optimizer: Any, parameter: nn.Parameter) -> list[Tensor]:
    """Its optimizer state, likewise; none before the first step. (The mapping's own would be stale after a resume.)"""
    mapping = zero_mapping(parameter)
    if mapping is None:
        return []
    flat, address = optimizer.single_partition_of_fp32_groups[mapping.param_group_index], mapping.hp_fragment_address
    states = optimizer.optimizer.state.get(flat, {}).values()
    moments = [state for state in states if isinstance(state, Tensor) and state.shape == flat.shape]
    return [moment.narrow(0, address.start, address.numel) for moment in moments]
