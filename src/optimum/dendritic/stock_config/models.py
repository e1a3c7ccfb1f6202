"""The stock model that a changed stock config describes: its skeleton, and the same model with tensors put in.

A model's class and its config are all that is used, as `from_pretrained` does: what can be built here from a config can
be loaded anywhere from its config.json.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedConfig, PreTrainedModel

from ..layout.records import Dial
from ..nn import DendriticStack
from ..process_state import kept_random_state
from ..unofficial import children_of, forget_capturing_, tensors_in
from .fields import UnsupportedConfig, silenced

Shapes = dict[str, torch.Size]


def skeleton(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the same class for `config`, on the meta device.

    Raises:
        UnsupportedConfig: the class makes none.
    """
    return _made(model, config, torch.device("meta"))


def _made(model: PreTrainedModel, config: PreTrainedConfig, where: AbstractContextManager[Any]) -> PreTrainedModel:
    try:
        with silenced(), kept_random_state(), where:
            return type(model)(config)
    except Exception as error:  # whatever a model raises at a config, it cannot be that one
        raise UnsupportedConfig(f"{type(model).__name__} cannot be built: {type(error).__name__}: {error}") from error


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that this thread registers are on the meta device; buffers have their values."""
    thread = get_ident()

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook: Any = on_meta  # which torch declares to return nothing, and documents to return what takes its place
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def shapes(model: nn.Module) -> Shapes:
    """The shapes of all parameters and buffers by full name, those that are not saved included."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.shape for name, tensor in named}


def assemble(
    model: PreTrainedModel, config: PreTrainedConfig, kept: Mapping[str, Sequence[int]] | None = None
) -> PreTrainedModel:
    """The stock model for `config` on the very tensors of `model`, in eval mode; `model` is left alone.

    Buffers that are not saved are what the class makes of the config, as they are in a model that is loaded.

    Args:
        model: holds the tensors in the shapes that `config` asks for.
        kept: for each stack that loses blocks, the ascending indices of those that stay.

    Raises:
        UnsupportedConfig: no such model is made, or a tensor is missing or has another shape.
    """
    stock, modules = _made(model, config, _parameters_on_meta()).eval(), dict(model.named_modules())
    saved = stock.state_dict().keys()
    for name, module in stock.named_modules():
        source = modules.get(source_name(name, kept or {}))
        if source is None:
            raise UnsupportedConfig(f"{name} is not a module of the model")
        for own, theirs in zip(tensors_in(module), tensors_in(source), strict=True):
            for key, tensor in own.items():
                found = theirs.get(key)
                if (found is None) != (tensor is None) or (found is not None and found.shape != tensor.shape):
                    raise UnsupportedConfig(f"{name}.{key} does not fit")
                computed = found is not None and f"{name}.{key}".lstrip(".") not in saved
                own[key] = tensor.to(found) if computed and not tensor.is_meta else found
    return stock


def turn_into_(model: PreTrainedModel, stock: PreTrainedModel) -> None:
    """Give `model` the modules, tensors, config and derived numbers of `stock`, a model of the same class.

    Whoever holds `model` holds the stock model afterwards. What was set on `model` itself stays (hooks, a wrapped
    `forward`, the generation config); what was set on its submodules goes with them.
    """
    for own, theirs in zip(_registries(model), _registries(stock), strict=True):
        own.clear()
        own.update(theirs)
    derived = {key: value for key, value in vars(stock).items() if type(value) in (int, float, str)}
    vars(model).update(derived, config=stock.config)
    forget_capturing_(model)


def _registries(model: nn.Module) -> tuple[dict[str, Any], ...]:
    return children_of(model), *tensors_in(model)


def same_blocks(model: PreTrainedModel, stock: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> bool:
    """Whether every block of `stock` is made as the block of `model` whose tensors it has: the same classes with the
    same numbers, flags and words, but for its own index. (A block may differ where a short input does not show it.)"""
    for stack, indices in kept.items():
        for new, old in enumerate(indices):
            pair = [dict(m.get_submodule(f"{stack}.{i}").named_modules()) for m, i in ((model, old), (stock, new))]
            if pair[0].keys() != pair[1].keys():
                return False
            if not all(_same(pair[0][name], pair[1][name], old, new) for name in pair[0]):
                return False
    return True


def source_name(name: str, kept: Mapping[str, Sequence[int]]) -> str:
    """The name in the larger model of a module of the smaller one."""
    for stack, indices in kept.items():
        if name.startswith(f"{stack}."):
            index, *rest = name.removeprefix(f"{stack}.").split(".")
            return ".".join([stack, str(indices[int(index)]), *rest])
    return name


def stacks_kept(dials: Iterable[tuple[Dial, Sequence[int]]], model: nn.Module) -> dict[str, Sequence[int]]:
    """The blocks that each stack keeps, by the name of the stack, from the units that each dial keeps."""
    return {
        member: kept
        for dial, kept in dials
        for member in dial.members
        if type(model.get_submodule(member)) in (nn.ModuleList, DendriticStack)
    }


def _same(before: nn.Module, after: nn.Module, old: int, new: int) -> bool:
    """Whether two modules have one class and the same settings, up to the indices `old` and `new` of their blocks."""

    def settings(module: nn.Module) -> dict[str, Any]:
        own = {key: v for key, v in vars(module).items() if type(v) in (int, float, str, bool) and key[0] != "_"}
        return {key: v for key, v in own.items() if key not in ("training", "gradient_checkpointing")}

    a, b = settings(before), settings(after)
    return type(before) is type(after) and all(
        a.get(key) == value or (a.get(key), value) == (old, new) for key, value in b.items()
    )
