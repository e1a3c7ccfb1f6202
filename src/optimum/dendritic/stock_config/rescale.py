"""The scales that a model's code takes from its config: what they change is put into the tensors beside them.

Some models multiply their embeddings by a number that follows from a width (Gemma by the root of `hidden_size`). The
stock model of a narrower config has another number there, and would compute something else. Which tables do so is
found by running both. The rows are multiplied by the ratio; where a head shares the weight, the norm before it gives
that much less. The trial that every dial stands decides whether that was all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.utils import logging

from ..nn import is_weight_layer
from ..structure.norm_axes import may_be_norm
from ..unofficial import tensors_in
from .fields import UnsupportedConfig
from .models import source_name

logger = logging.get_logger(__name__)

Stacks = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Call:
    """What a module was given in a run, and what it gave."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def keep_scales_(stock: nn.Module, model: nn.Module, stacks: Stacks, inputs: Mapping[str, Any]) -> None:
    """Let the tables of `stock` answer what those of `model` answer, on whose tensors it stands; those of `model` stay.

    A layer that shares the weight of such a table computes what it did: the norm whose output it reads is divided by as
    much.

    Args:
        stacks: the blocks that each stack keeps.
        inputs: keyword arguments of `stock.forward`. Where that raises, nothing is done.

    Raises:
        UnsupportedConfig: such a layer reads no norm.
    """
    try:
        calls = _calls(stock, inputs)
    except Exception as error:  # whatever it raises, it is no stock form of the model, which the trial will tell
        logger.info(f"The stock form of {type(model).__name__} does not run: {error}")
        return
    for call in {call.module: call for call in calls if isinstance(call.module, nn.Embedding)}.values():
        ratio = _ratio(call, model.get_submodule(source_name(call.name, stacks)))
        if ratio is None:
            continue
        weight = call.module.get_parameter("weight")
        sharing = [i for i, other in enumerate(calls) if other.module is not call.module and _has(other, weight)]
        for norm in {_norm_before(calls, index) for index in sharing}:
            _divide_(norm, ratio)
        _replace_(stock, weight, weight.detach() * ratio)


def _calls(model: nn.Module, inputs: Mapping[str, Any]) -> list[Call]:
    """The calls of all tables, norms and layers of one weight, in their order."""
    calls: list[Call] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any, *, name: str) -> None:
        calls.append(Call(name, module, args, kwargs, output))

    watched = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding) or is_weight_layer(m)}
    watched |= {name: module for name, module in model.named_modules() if may_be_norm(module)}
    hooks = [m.register_forward_hook(partial(note, name=name), with_kwargs=True) for name, m in watched.items()]
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _ratio(call: Call, table: nn.Module) -> float | None:
    """How many times as large the answer of another table is, if it is that."""
    wanted, own = table(*call.args, **call.kwargs).double(), call.output.double()
    ratio = float((wanted * own).sum() / (own * own).sum())
    return ratio if not torch.equal(wanted, own) and torch.allclose(wanted, ratio * own, rtol=1e-3) else None


def _has(call: Call, weight: nn.Parameter) -> bool:
    return tensors_in(call.module)[0].get("weight") is weight


def _norm_before(calls: Sequence[Call], index: int) -> nn.Module:
    """The norm that is called last before a call, which reads its output."""
    norm = next((call for call in reversed(calls[:index]) if may_be_norm(call.module)), None)
    if norm is None or not torch.equal(calls[index].args[0], norm.output):
        raise UnsupportedConfig("no norm stands before a head that shares the weight of a table that is scaled")
    return norm.module


def _divide_(norm: nn.Module, ratio: float) -> None:
    """Let a norm give less: all of its parameters are divided, or where it multiplies by `1 + weight`, all of those."""
    own = dict(norm.named_parameters(recurse=False))
    x = torch.randn(2, len(next(iter(own.values()))), generator=torch.Generator().manual_seed(0))
    for offset in (0.0, 1.0):
        none = {name: torch.full_like(parameter, -offset) for name, parameter in own.items()}
        if not bool(functional_call(norm, none, (x.to(next(iter(own.values()))),)).any()):
            for parameter in own.values():
                _replace_(norm, parameter, (parameter.detach() + offset) / ratio - offset)
            return
    raise UnsupportedConfig(f"a {type(norm).__name__} cannot be made to give less")


def _replace_(model: nn.Module, old: nn.Parameter, value: Tensor) -> None:
    """Put a new parameter wherever the old one stands."""
    new = nn.Parameter(value.to(old.dtype), old.requires_grad)
    for module in model.modules():
        for key, tensor in tensors_in(module)[0].items():
            if tensor is old:
                tensors_in(module)[0][key] = new
