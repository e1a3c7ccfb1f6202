"""How many units a config admits: of one dial, and of several at once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedConfig
from transformers.utils import logging

from ..layout.records import Dial
from .fields import UnsupportedConfig, changed, dial_values
from .verify import size_of

logger = logging.get_logger(__name__)

COUNTED = 128  # of so many units each number is tried; of more, multiples of a step


def admitted(config: PreTrainedConfig, dial: Dial, size: int) -> tuple[int, ...]:
    """The numbers of units that the config admits; empty for all."""
    if size <= COUNTED:
        counts = tuple(count for count in range(1, size + 1) if admits(config, {dial: count}, {dial: size}))
    else:
        steps = (step for step in range(1, size) if size % step == 0)
        step = next((step for step in steps if admits(config, {dial: size - step}, {dial: size})), 1)
        counts = tuple(range(step, size + 1, step))
    return () if len(counts) in (0, size) else counts


def admits(config: PreTrainedConfig, counts: Mapping[Dial, int], sizes: Mapping[Dial, int]) -> bool:
    """Whether the config admits these numbers of units at once."""
    try:
        values = {}
        for dial, count in counts.items():
            values |= dial_values(config, dial, sizes[dial], range(count))
        changed(config, values)
    except UnsupportedConfig:
        return False
    return True


def admitted_together(config: PreTrainedConfig, dials: Sequence[Dial], units: Mapping[str, int]) -> list[Dial]:
    """The dials with those numbers of units alone that the config admits whatever the others are at that it restricts,
    too: the one that has more numbers gives way. One that has none left is no dial."""
    sizes = {dial: size_of(dial, units) for dial in dials}
    left = {dial: dial.counts for dial in dials}
    restricted = sorted((dial for dial in dials if dial.counts), key=lambda dial: len(dial.counts))
    for index, dial in enumerate(restricted):
        for other in restricted[:index]:
            left[dial] = tuple(
                count for count in left[dial]
                if all(admits(config, {dial: count, other: number}, sizes) for number in left[other])
            )  # fmt: skip
    lost = [dial for dial in restricted if len(left[dial]) < 2]
    for dial in lost:
        logger.info(f"{'/'.join(dial.fields)} is left alone: the config admits no number of it with all of the others'")
    return [replace(dial, counts=left[dial]) for dial in dials if dial not in lost]
