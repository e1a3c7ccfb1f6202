"""Times that a busy machine does not change: the CPU time of the one thread that computes, or else the shortest of
several runs, in turn with what it is compared with."""

import time
from collections.abc import Callable, Sequence

import torch

RUNS = 5
SHORT = 5e-4  # seconds: a call that takes less is run several times in a row
QUEUED = 10  # calls of an accelerator in a row, since it works on while the next one is prepared


def reading(device: torch.device) -> float:
    """Seconds on the clock by which a computation on `device` is timed, once all that was asked of it is done.

    On a CPU it is the time that the thread has computed, if it is the only one that does: other programs do not count.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.thread_time()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def seconds_in_turn(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """The shortest time that each of some calls takes. They take turns, so that whatever the machine does meanwhile
    hits all of them, after a first turn that is not timed."""
    times = [1.0 for _ in calls]
    for turn in range(RUNS + 1):
        for index, call in enumerate(calls):
            repeats = 1 if not turn else _repeats(times[index], device)
            start = reading(device)
            for _ in range(repeats):
                call()
            seconds = (reading(device) - start) / repeats
            times[index] = seconds if turn < 2 else min(times[index], seconds)
    return times


def _repeats(seconds: float, device: torch.device) -> int:
    if device.type != "cpu":
        return QUEUED
    return max(1, min(50, round(SHORT / max(seconds, 1e-9))))
