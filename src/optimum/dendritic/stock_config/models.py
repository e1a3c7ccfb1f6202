"""The stock model that a changed stock config describes: its skeleton, and the same model with tensors put in.

A model's class and its config are all that is used, as `from_pretrained` does: what can be built here from a config can
be loaded anywhere from its config.json. Every changed config is written out and read back before it is believed, so
that its own validation has a say.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import CRITICAL
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..layout.records import Dial
from ..nn import DendriticStack
from ..process_state import alone, kept_random_state
from ..unofficial import children_of, forget_capturing_, tensors_in

Shapes = dict[str, torch.Size]
OF_EVERY_CONFIG = frozenset(vars(PreTrainedConfig()))  # bookkeeping, of no architecture


class NoSuchModel(ValueError):
    """A config cannot be what was asked for, or its model has no place for the tensors."""


@contextmanager
def hushed() -> Iterator[None]:
    """Without what transformers says about every config and model that is only tried."""
    with alone(), warnings.catch_warnings(action="ignore"):
        verbosity = logging.get_verbosity()
        logging.set_verbosity(CRITICAL)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)


def fields_of(config: PreTrainedConfig, kind: type) -> dict[str, Any]:
    """Fields of an architecture, those of nested configs too, with a value of exactly this `kind`, by dotted path."""
    found = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found |= {f"{name}.{path}": inner for path, inner in fields_of(value, kind).items()}
        elif name not in OF_EVERY_CONFIG and type(value) is kind:
            found[name] = value
    return found


def changed(config: PreTrainedConfig, values: Mapping[str, Any]) -> PreTrainedConfig:
    """A copy of `config` without a word of ours, and with other values at some dotted paths.

    Raises:
        NoSuchModel: a path leads nowhere, or the config, written out and read back, is another one.
    """
    new = copy.deepcopy(config)
    new.__dict__.pop("quantization_config", None)
    found = []
    for path, value in values.items():
        holder, (*parents, name) = new, path.split(".")
        for parent in parents:
            holder = vars(holder).get(parent)
            if not isinstance(holder, PreTrainedConfig):
                raise NoSuchModel(f"{path} is not a field of {type(config).__name__}")
        if name not in vars(holder) or name in OF_EVERY_CONFIG:
            raise NoSuchModel(f"{path} is not a field of {type(config).__name__}")
        found.append((holder, name, value))
    try:
        for holder, name, value in found:
            setattr(holder, name, value)
        with hushed():
            read, written = type(new).from_dict(new.to_dict()).to_dict(), new.to_dict()
    except Exception as error:  # whatever a config raises at a value, it does not admit it
        raise NoSuchModel(f"{type(config).__name__} does not admit {dict(values)}: {error}") from error
    if not _agrees(read, written):
        raise NoSuchModel(f"{type(config).__name__} does not keep {dict(values)}")
    return new


def turned(config: PreTrainedConfig, dial: Dial, units: int, kept: Sequence[int]) -> dict[str, Any]:
    """The values of `dial`'s fields when the ascending `kept` of its `units` are left.

    Raises:
        NoSuchModel: a field is not there, or has another value than the dial was found with.
    """
    numbers, empty, lists = (fields_of(config, kind) for kind in (int, type(None), list))
    values: dict[str, Any] = {}
    for path in dial.fields:
        if path in numbers and numbers[path] % units == 0:
            values[path] = numbers[path] // units * len(kept)
        elif path in empty:  # a width that follows another one until it is set
            values[path] = len(kept)
        else:
            raise NoSuchModel(f"{path} is not a number of {type(config).__name__} that {units} divides")
    for path in dial.lists:
        if len(lists.get(path, ())) != units:
            raise NoSuchModel(f"{path} is not a list of {units} in {type(config).__name__}")
        values[path] = [lists[path][index] for index in kept]
    return values


def skeleton(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the same class for `config`, on the meta device.

    Raises:
        NoSuchModel: the class makes none.
    """
    try:
        with hushed(), kept_random_state(), torch.device("meta"):
            return type(model)(config)
    except Exception as error:  # whatever a model raises at a config, it cannot be that one
        raise NoSuchModel(f"{type(model).__name__} cannot be built: {type(error).__name__}: {error}") from error


def shapes(model: nn.Module) -> Shapes:
    """Every parameter and buffer, those that are not saved too, by full name."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.shape for name, tensor in named}


def assemble(
    model: PreTrainedModel, config: PreTrainedConfig, kept: Mapping[str, Sequence[int]] | None = None
) -> PreTrainedModel:
    """The stock model for `config` on the very tensors of `model`, in eval mode; `model` is left alone.

    Args:
        model: holds the tensors in the shapes that `config` asks for.
        kept: for each stack that loses blocks, the ascending indices of those that stay.

    Raises:
        NoSuchModel: no such model is made, or a tensor is missing or has another shape.
    """
    stock, modules = skeleton(model, config).eval(), dict(model.named_modules())
    for name, module in stock.named_modules():
        source = modules.get(source_name(name, kept or {}))
        if source is None:
            raise NoSuchModel(f"{name} is not a module of the model")
        for own, theirs in zip(tensors_in(module), tensors_in(source), strict=True):
            for key, tensor in own.items():
                found = theirs.get(key)
                if (found is None) != (tensor is None) or (found is not None and found.shape != tensor.shape):
                    raise NoSuchModel(f"{name}.{key} does not fit")
                own[key] = found
    return stock


def become_(model: PreTrainedModel, stock: PreTrainedModel) -> None:
    """Make `model`, whoever holds it, the `stock` one of the same class: modules, tensors, config, derived numbers.

    What was set on `model` from outside stays (hooks, a wrapped `forward`, the generation config); what was set on its
    submodules goes with them.
    """
    for own, theirs in zip(_registries(model), _registries(stock), strict=True):
        own.clear()
        own.update(theirs)
    derived = {key: value for key, value in vars(stock).items() if type(value) in (int, float, str)}
    vars(model).update(derived, config=stock.config)
    forget_capturing_(model)


def _registries(model: nn.Module) -> tuple[dict[str, Any], ...]:
    return children_of(model), *tensors_in(model)


def alike(model: PreTrainedModel, stock: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> bool:
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
    """What a module of the smaller model is called in the larger one."""
    for stack, indices in kept.items():
        if name.startswith(f"{stack}."):
            index, *rest = name.removeprefix(f"{stack}.").split(".")
            return ".".join([stack, str(indices[int(index)]), *rest])
    return name


def stacks_kept(dials: Iterable[tuple[Dial, Sequence[int]]], model: nn.Module) -> dict[str, Sequence[int]]:
    """Of dials and the units that they keep, the stacks and the blocks that they keep."""
    return {
        member: kept
        for dial, kept in dials
        for member in dial.members
        if type(model.get_submodule(member)) in (nn.ModuleList, DendriticStack)
    }


def _agrees(read: Any, written: Any) -> bool:
    """Whether all that is read back was written; bookkeeping aside, and what the class does not know is not read."""
    if not isinstance(read, dict) or not isinstance(written, dict):
        return bool(read == written)
    return all(_agrees(value, written.get(key)) for key, value in read.items() if key not in OF_EVERY_CONFIG)


def _same(before: nn.Module, after: nn.Module, old: int, new: int) -> bool:
    def told(module: nn.Module) -> dict[str, Any]:
        own = {key: v for key, v in vars(module).items() if type(v) in (int, float, str, bool) and key[0] != "_"}
        return {key: v for key, v in own.items() if key not in ("training", "gradient_checkpointing")}

    a, b = told(before), told(after)
    return type(before) is type(after) and all(
        a.get(key) == value or (a.get(key), value) == (old, new) for key, value in b.items()
    )
