"""Latency of one or several models, timed in turn.

The models take turns in short blocks, A B A B ..., so that whatever the machine does meanwhile (clock, neighbours,
heat) hits all of them. A ratio is the median of the ratios of neighbouring blocks, which such a drift leaves alone; the
ratio of two medians it does not.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.utils.benchmark import Timer

from .report import Latency

BLOCK_SECONDS = 0.02  # long enough that the clock's resolution and the loop's overhead vanish
FEWEST_BLOCKS, MOST_BLOCKS = 7, 200


def time_in_turn(calls: Sequence[Callable[[], object]], *, threads: int, seconds: int | float) -> list[list[float]]:
    """Milliseconds per call: for each of `calls` one figure per block; blocks of one index are neighbours in time.

    A block is one `Timer.timeit`, which makes at least two untimed calls first (so the caches are warm again after the
    other models' turn), sets the number of threads and synchronises an accelerator. `seconds` is the time to spend on
    each call; a slow one gets its `FEWEST_BLOCKS` all the same.
    """
    with torch.no_grad():  # what a model builds lazily and keeps must not be an inference tensor: it could not train on
        for call in calls:
            call()
    timers = [Timer("call()", globals={"call": call}, num_threads=threads) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode():
        numbers = [math.ceil(BLOCK_SECONDS / timer.timeit(1).mean) for timer in timers]
        start = time.perf_counter()
        while len(times[0]) < FEWEST_BLOCKS or (
            len(times[0]) < MOST_BLOCKS and time.perf_counter() - start < seconds * len(calls)
        ):
            for timer, number, blocks in zip(timers, numbers, times, strict=True):
                blocks.append(timer.timeit(number).mean * 1e3)
    return times


def summarise(blocks: Sequence[float]) -> Latency:
    """Median and 95th percentile over the blocks, in milliseconds per call."""
    p95 = statistics.quantiles(blocks, n=20, method="inclusive")[-1]
    return Latency(median=statistics.median(blocks), p95=p95, blocks=len(blocks))


def paired_ratio(blocks: Sequence[float], baseline: Sequence[float]) -> float:
    """Median of the ratios of neighbouring blocks: 0.5 is twice as fast as the baseline."""
    return statistics.median(ours / theirs for ours, theirs in zip(blocks, baseline, strict=True))
