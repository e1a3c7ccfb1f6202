"""The one verifier: does a model with other modules in it answer as it did before?

A wire that is cut, a number of a stock config that is turned and a model that is packed are all proved alike: put the
modules in, run the model, compare, and put everything back. What no proof stands for is not done.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.utils import logging

from ..distributed.dtensor import worst
from ..errors import DendriticError, invalid
from ..nn.surgery import replace_
from .probing import gathered, outputs_differ, tolerance, watching

logger = logging.get_logger(__name__)


@dataclass
class Exchange:
    """Modules that stand in the places of others.

    Attributes:
        replaced: The modules whose places they took, by name.
        keep: Whether they stay when the context ends without an error.
    """

    replaced: dict[str, nn.Module]
    keep: bool = False


@contextmanager
def exchanged(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, nn.Parameter] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> Iterator[Exchange]:
    """The model with other `modules`, `parameters` and `numbers` at their names, and whole where it was sharded.
    Afterwards it is as it was, unless `keep` was set and nothing was raised."""
    replaced, undo = replace_(model, modules, parameters or {}, numbers or {})
    exchange = Exchange(replaced)
    try:
        yield exchange
    except BaseException:
        exchange.keep = False
        raise
    finally:
        if not exchange.keep:
            undo()


def answers(model: nn.Module, inputs: Mapping[str, Any], readers: Sequence[str] = ()) -> list[Tensor] | None:
    """What `probe` gives; None, and a line in the log, where the model's forward raises.

    Whatever a model raises on a tensor that has shrunk, it cannot do without what is missing. Nothing but its forward
    is guarded.
    """
    with watching(model, readers) as seen:
        try:
            outputs = model(**inputs)
        except Exception as error:
            logger.info(f"The forward pass of {type(model).__name__} broke: {type(error).__name__}: {error}")
            return None
    return gathered(outputs, seen)


@dataclass(frozen=True)
class Deviation:
    """How far answers are from those that were expected.

    Attributes:
        value: The largest difference of any pair of tensors, relative to the largest expected value.
        limit: The largest difference that rounding explains.
    """

    value: float
    limit: float

    @property
    def is_rounding(self) -> bool:
        return self.value <= self.limit


def compared(expected: Sequence[Tensor], actual: Sequence[Tensor] | None, *, like: nn.Parameter) -> Deviation:
    """How far `actual` is from `expected`, infinitely far where there is none; see `answers_alike` for `like`."""
    difference = float("inf") if actual is None else outputs_differ(expected, actual)
    limit = max(tolerance(tensor.dtype) for tensor in [like, *expected] if tensor.is_floating_point())
    return Deviation(worst(difference, like), limit)


def answers_alike(
    model: nn.Module,
    inputs: Mapping[str, Any],
    expected: Sequence[Tensor],
    readers: Sequence[str] = (),
    *,
    like: nn.Parameter,
) -> bool:
    """Whether the model answers as expected, up to rounding; the same on every process of a sharded model.

    Args:
        expected: what `probe` gave for the same inputs and readers.
        like: a parameter of the model before anything was exchanged. Where it is a shard, all processes that hold one
            call this, and the worst of them decides. Its dtype, or a rougher one of what is expected (FSDP2 may run in
            bf16), says how much rounding is.
    """
    actual = answers(model, inputs, readers)
    return compared(expected, actual, like=like).is_rounding


def difference_of(
    model: nn.Module,
    inputs: Mapping[str, Any],
    expected: Sequence[Tensor],
    readers: Sequence[str] = (),
    *,
    like: nn.Parameter,
) -> DendriticError:
    """The error (not raised) for a model whose packed form answers otherwise than `expected`: its own fault, where the
    model itself, unchanged, does so too."""
    if answers_alike(model, inputs, expected, readers, like=like):
        remedy = "It is still injected; please report it with its config."
        return invalid("model", type(model).__name__, "packing changes its outputs beyond rounding", remedy)
    rule = "answers otherwise each time in evaluation mode: it draws random numbers, or counts how often it is called"
    return invalid("model", type(model).__name__, rule, "Let it do that in training mode alone. It is still injected.")
