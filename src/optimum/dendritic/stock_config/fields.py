"""The fields of a stock config: read by dotted path, and changed in a copy that the config itself admits.

Every changed config is written out and read back before it is used, so that its own validation decides.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import CRITICAL
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from ..layout.records import Dial
from ..process_state import alone

OF_EVERY_CONFIG = frozenset(vars(PreTrainedConfig()))  # bookkeeping, of no architecture


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


def changed(config: PreTrainedConfig, values: Mapping[str, Any]) -> PreTrainedConfig:
    """A copy of `config` without the fields of this package, and with other values at some dotted paths.

    Raises:
        UnsupportedConfig: a path does not exist, or the config, written out and read back, is another one.
    """
    new = copy.deepcopy(config)
    new.__dict__.pop("quantization_config", None)
    found = []
    for path, value in values.items():
        holder, (*parents, name) = new, path.split(".")
        for parent in parents:
            holder = vars(holder).get(parent)
            if not isinstance(holder, PreTrainedConfig):
                raise UnsupportedConfig(f"{path} is not a field of {type(config).__name__}")
        if name not in vars(holder) or name in OF_EVERY_CONFIG:
            raise UnsupportedConfig(f"{path} is not a field of {type(config).__name__}")
        found.append((holder, name, value))
    try:
        for holder, name, value in found:
            setattr(holder, name, value)
        with silenced():
            read, written = type(new).from_dict(new.to_dict()).to_dict(), new.to_dict()
    except Exception as error:  # whatever a config raises at a value, it does not admit it
        raise UnsupportedConfig(f"{type(config).__name__} does not admit {dict(values)}: {error}") from error
    if not _agrees(read, written):
        raise UnsupportedConfig(f"{type(config).__name__} does not keep {dict(values)}")
    return new


def dial_values(config: PreTrainedConfig, dial: Dial, units: int, kept: Sequence[int]) -> dict[str, Any]:
    """The values of `dial`'s fields when the ascending `kept` of its `units` are left.

    Raises:
        UnsupportedConfig: a field is not there, or has another value than the dial was found with.
    """
    numbers, empty, lists = (fields_of(config, kind) for kind in (int, type(None), list))
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
        values[path] = [lists[path][index] for index in kept]
    return values


def _agrees(read: Any, written: Any) -> bool:
    """Whether all fields that are read back have the values that were written, except for bookkeeping. Fields that the
    class does not know are not read."""
    if not isinstance(read, dict) or not isinstance(written, dict):
        return bool(read == written)
    return all(_agrees(value, written.get(key)) for key, value in read.items() if key not in OF_EVERY_CONFIG)
