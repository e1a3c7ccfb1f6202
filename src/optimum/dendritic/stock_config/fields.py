"""The fields of a stock config: read by dotted path, and changed in a copy that the config itself admits.

The entries of a list are numbers, too, and have paths of their own: where a config has one number for each layer
(`intermediate_size.3` of Gemma 3n), layers may differ. So are the numbers of single layers in `per_layer_config`.

Every changed config is written out and read back before it is used, so that its own validation decides.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from logging import CRITICAL
from operator import getitem
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from ..layout.records import Dial
from ..process_state import alone
from .per_layer import NUMBER, layer_numbers, layers_of, set_layers_

OF_EVERY_CONFIG = frozenset(vars(PreTrainedConfig()))  # bookkeeping, of no architecture


@dataclass(frozen=True)
class Entries:
    """The entries of a list that stay, by their ascending `indices`: the value of a list whose others go."""

    indices: tuple[int, ...]


class UnsupportedConfig(ValueError):
    """A config does not admit what was asked of it, or its model does not fit the tensors."""


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress the warnings and logs of transformers about configs and models that are only tried."""
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


def written_numbers(config: PreTrainedConfig) -> dict[str, int]:
    """The whole numbers of an architecture by dotted path, those in lists of nothing else and those that single layers
    have of their own among them."""
    lists = {path: value for path, value in fields_of(config, list).items() if all(type(each) is int for each in value)}
    entries = {f"{path}.{index}": each for path, value in lists.items() for index, each in enumerate(value)}
    return fields_of(config, int) | entries | layer_numbers(config, {})


def numbers_of(config: PreTrainedConfig) -> dict[str, int]:
    """All whole numbers that can be set: those that are written, and those that every layer has and might have of its
    own."""
    return written_numbers(config) | layer_numbers(config, fields_of(config, int))


def lists_of(config: PreTrainedConfig) -> dict[str, list[Any]]:
    """What can lose entries, by dotted path: lists, and what each layer has of its own."""
    return fields_of(config, list) | layers_of(config)


def changed(config: PreTrainedConfig, values: Mapping[str, Any]) -> PreTrainedConfig:
    """A copy of `config` without the fields of this package, and with other values at some dotted paths.

    Entries of a list are set before others of it go: all paths are those of `config`.

    Raises:
        UnsupportedConfig: a path does not exist, or the config, written out and read back, is another one.
    """
    new = copy.deepcopy(config)
    new.__dict__.pop("quantization_config", None)
    numbers, lists = numbers_of(config), copy.deepcopy(lists_of(config))
    whole: dict[str, Any] = {path: lists[path] for path, own in layers_of(config).items() if any(own)}  # to be set anew
    for path, value in values.items():
        name, keys = _inside(path)
        if keys and path not in numbers:
            raise UnsupportedConfig(f"{path} is not a field of {type(config).__name__}")
        if keys:
            inner: Any = reduce(getitem, keys[:-1], lists[name])
            inner[keys[-1]] = value
        if not isinstance(value, Entries):
            whole[name] = lists[name] if keys else value
    whole |= {p: [lists[p][index] for index in v.indices] for p, v in values.items() if isinstance(v, Entries)}
    layered = {path: whole.pop(path) for path in layers_of(config) if path in whole}
    found = [(*_place(new, path), value) for path, value in whole.items()]
    try:
        for holder, name, value in found:
            setattr(holder, name, value)
        for path, layers in layered.items():
            set_layers_(new, path, layers)
        with silenced():
            again = type(new).from_dict(new.to_dict())
            read, written = again.to_dict(), new.to_dict()
    except Exception as error:  # whatever a config raises at a value, it does not admit it
        raise UnsupportedConfig(f"{type(config).__name__} does not admit {dict(values)}: {error}") from error
    if not _agrees(read, written) or layers_of(again) != layers_of(new):
        raise UnsupportedConfig(f"{type(config).__name__} does not keep {dict(values)}")
    return new


def _inside(path: str) -> tuple[str, list[Any]]:
    """Of the path of an entry, or of a layer's number, that of the list and where it is in there; nowhere of a field's
    own."""
    if match := NUMBER.fullmatch(path):
        return match[1], [int(match[2]), match[3]]
    name, _, last = path.rpartition(".")
    return (name, [int(last)]) if last.isdigit() else (path, [])


def _place(config: PreTrainedConfig, path: str) -> tuple[PreTrainedConfig, str]:
    """The config that holds the field at a path, and the field's name in it.

    Raises:
        UnsupportedConfig: there is none.
    """
    holder, (*parents, name) = config, path.split(".")
    for parent in parents:
        inner = vars(holder).get(parent)
        if not isinstance(inner, PreTrainedConfig):
            raise UnsupportedConfig(f"{path} is not a field of {type(config).__name__}")
        holder = inner
    if name not in vars(holder) or name in OF_EVERY_CONFIG:
        raise UnsupportedConfig(f"{path} is not a field of {type(config).__name__}")
    return holder, name


def dial_values(config: PreTrainedConfig, dial: Dial, units: int, kept: Sequence[int]) -> dict[str, Any]:
    """The values of `dial`'s fields when the ascending `kept` of its `units` are left.

    Raises:
        UnsupportedConfig: a field is not there, or has another value than the dial was found with.
    """
    numbers, empty, lists = numbers_of(config), fields_of(config, type(None)), lists_of(config)
    values: dict[str, Any] = {}
    for path in dial.fields:
        if path in numbers and numbers[path] % units == 0:
            values[path] = numbers[path] // units * len(kept)
        elif path in empty:  # a width that follows another one until it is set
            values[path] = len(kept)
        else:
            raise UnsupportedConfig(f"{path} is not a number of {type(config).__name__} that {units} divides")
    for path in dial.lists:
        if len(lists.get(path, ())) != units:
            raise UnsupportedConfig(f"{path} is not a list of {units} in {type(config).__name__}")
        values[path] = Entries(tuple(kept))
    return values


def _agrees(read: Any, written: Any) -> bool:
    """Whether all fields that are read back have the values that were written, except for bookkeeping. Fields that the
    class does not know are not read."""
    if not isinstance(read, dict) or not isinstance(written, dict):
        return bool(read == written)
    return all(_agrees(value, written.get(key)) for key, value in read.items() if key not in OF_EVERY_CONFIG)
