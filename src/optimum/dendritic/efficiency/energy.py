"""Energy of inference, read by zeus from the counters of the machine. Where there is no counter, there is no figure.

NVIDIA and AMD cards count their own energy, Intel and AMD processors that of their packages and memory (RAPL), and on a
Jetson a sensor (INA3221) is polled for the power of the whole board. Nothing is estimated from what a part may draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from zeus.monitor.energy import Measurement, ZeusMonitor

RUN_SECONDS = 10.0  # counters advance in steps of up to a tenth of a second
IDLE_SECONDS = 3.0


@dataclass(frozen=True)
class Energy:
    """What one run of many forward passes took, by the counters of the machine.

    Attributes:
        joules: For one forward pass of one sample: all that was counted, idle power included, by the number of passes.
        milliseconds: For one forward pass, in the same run.
        watts: The mean power in the run.
        idle_watts: The mean power just before it, while this process did nothing.
        calls: The number of forward passes in the run.
        seconds: The length of the run.
        idle_seconds: The length of the time before, in which idle power was measured.
        source: The counters, such as "CPU package 0 (RAPL), DRAM 0 (RAPL)".
    """

    joules: float
    milliseconds: float
    watts: float
    idle_watts: float
    calls: int
    seconds: float
    idle_seconds: float
    source: str


def measure_energy(
    call: Callable[[], object],
    device: torch.device,
    *,
    threads: int,
    seconds: float = RUN_SECONDS,
    idle_seconds: float = IDLE_SECONDS,
) -> Energy | None:
    """Idle for a while, then call for a while, and divide what the counters say.

    zeus starts processes that import the calling script again: a script that measures energy does so under
    `if __name__ == "__main__":`.

    Args:
        call: one forward pass of one sample.
        device: where it runs: the counters of a GPU are read for a GPU, those of the processors for the CPU, and the
            sensor of the board on a Jetson for either.

    Returns:
        None where the machine has no counter for the device, or one that stands still.

    Raises:
        ImportError: the extra `energy` is missing.
    """
    monitor = _monitor(device)
    with torch.inference_mode(), _threads(threads):
        call()  # what is built lazily is built before
        idle = _window(monitor, lambda: sleep(idle_seconds))
        calls = 0

        def run() -> None:
            nonlocal calls
            start = perf_counter()
            while perf_counter() - start < seconds:
                call()
                calls += 1

        busy = _window(monitor, run)
    counted, before = _joules(busy), _joules(idle)
    joules = sum(counted.values())
    if not joules > 0:
        return None
    return Energy(
        joules=joules / calls,
        milliseconds=1e3 * busy.time / calls,
        watts=joules / busy.time,
        idle_watts=sum(before.values()) / idle.time,
        calls=calls,
        seconds=busy.time,
        idle_seconds=idle.time,
        source=", ".join(counted),
    )


def _monitor(device: torch.device) -> ZeusMonitor:
    try:
        from zeus.monitor.energy import ZeusMonitor
    except ImportError as error:
        raise ImportError(f"{error}. Install it: pip install optimum-dendritic[energy]") from error
    if device.type == "cuda":
        return ZeusMonitor(gpu_indices=[device.index or 0], cpu_indices=[])
    return ZeusMonitor(gpu_indices=[], cpu_indices=None if device.type == "cpu" else [])


def _window(monitor: ZeusMonitor, run: Callable[[], None]) -> Measurement:
    monitor.begin_window("energy")
    run()
    return monitor.end_window("energy")


def _joules(measured: Measurement) -> dict[str, float]:
    """Counter -> the joules that it counted. The sensor of a board sees everything, and then stands alone."""
    from zeus.device.soc.jetson import JetsonMeasurement

    board = measured.soc_energy
    if isinstance(board, JetsonMeasurement) and board.total_energy_mj is not None:
        return {"board (INA3221)": board.total_energy_mj / 1e3}
    groups = {
        "GPU {} (its own counter)": measured.gpu_energy,
        "CPU package {} (RAPL)": measured.cpu_energy or {},
        "DRAM {} (RAPL)": measured.dram_energy or {},
    }
    return {name.format(index): joules for name, group in groups.items() for index, joules in group.items()}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
