"""Finding and replacing modules without disturbing anything else: shared modules, hooks, devices and flags stay."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from torch import nn

from ..distributed.fsdp import unshard_
from ..unofficial import children_of, is_hook_registry, tensors_in

Module = TypeVar("Module", bound=nn.Module)


def shallow_copy(module: nn.Module, as_type: type[Module] | None = None) -> Module:
    """A new module of `as_type` on the same parameters, buffers and submodules, in registries of its own.

    The registries of hooks are shared, so that a handle taken before still removes its hook.
    """
    kind = as_type or type(module)
    copy = kind.__new__(kind)
    registries = (dict, OrderedDict, set)
    copy.__dict__ = {
        k: v.copy() if isinstance(v, registries) and not is_hook_registry(k) else v for k, v in module.__dict__.items()
    }
    return copy  # type: ignore[return-value]


def swap(model: nn.Module, replacements: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put each module at its name, and wherever else the old module stands; return the old ones for swapping back.

    A module shared under several names is replaced under all of them.
    """
    old = {name: model.get_submodule(name) for name in replacements}
    by_identity = {id(old[name]): new for name, new in replacements.items()}
    for parent in list(model.modules()):
        children = children_of(parent)
        for child_name, child in children.items():
            if id(child) in by_identity:
                children[child_name] = by_identity[id(child)]
    return old


def place(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Callable[[], None]:
    """Put parameters that stand alone at their names; the function that is returned puts the old ones back."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    for name, parameter in parameters.items():
        owner, _, key = name.rpartition(".")
        registry = tensors_in(model.get_submodule(owner))[0]
        before.append((registry, key, registry[key]))
        registry[key] = parameter

    def undo() -> None:
        for registry, key, parameter in reversed(before):
            registry[key] = parameter

    return undo


def set_numbers(model: nn.Module, numbers: Mapping[str, int]) -> Callable[[], None]:
    """Set attributes of modules, by dotted path; the function that is returned puts the old ones back."""
    before = {path: getattr(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in numbers}

    def put(values: Mapping[str, int]) -> None:
        for path, value in values.items():
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, value)

    put(numbers)
    return partial(put, before)


def replace_(
    model: nn.Module,
    packed: Mapping[str, nn.Module],
    parameters: Mapping[str, nn.Parameter],
    numbers: Mapping[str, int],
) -> tuple[dict[str, nn.Module], Callable[[], None]]:
    """Put packed modules, smaller parameters that stand alone and the numbers that go with them into a model, and
    `unshard_` the rest of it.

    Returns:
        The modules whose places they took, and a function that puts everything back as it was.
    """
    replaced = swap(model, packed)
    enlarge = place(model, parameters)
    recount = set_numbers(model, numbers)
    try:
        shard_again = unshard_(model)
    except BaseException:
        recount()
        enlarge()
        swap(model, replaced)
        raise

    def undo() -> None:
        shard_again()
        recount()
        enlarge()
        swap(model, replaced)

    return replaced, undo
