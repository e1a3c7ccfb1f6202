"""Energy and memory of a Linux board, read from the files of its kernel; the standard library alone."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

SYS, STATUS = Path("/sys"), Path("/proc/self/status")
EVERY = 0.05  # seconds between two readings of a sensor of power
BOARD = ("in", "system", "total")  # parts of the names of the rail that feeds the whole board


class Counter:
    """What was spent since the block was entered: a counter of energy, or a sensor of power read again and again.

    A block that is left without a counter has spent None: nothing is estimated.
    """

    source = "nothing"

    @classmethod
    def find(cls) -> "Counter":
        """The sensor of a Jetson board (INA3221), else the packages of a processor (RAPL), else nothing."""
        power = _board_power()
        if power is not None:
            return _Sensor(power)
        packages = [zone for zone in sorted(SYS.glob("class/powercap/intel-rapl:*")) if zone.name.count(":") == 1]
        readable = [zone for zone in packages if _number(zone / "energy_uj") is not None]
        return _Packages(readable) if readable else cls()

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def joules(self) -> float | None:
        return None


class _Packages(Counter):
    source = "RAPL"

    def __init__(self, zones: list[Path]) -> None:
        self.zones = zones

    def __enter__(self) -> "Counter":
        self.before = [_number(zone / "energy_uj") or 0.0 for zone in self.zones]
        return self

    def joules(self) -> float | None:
        total = 0.0
        for zone, before in zip(self.zones, self.before, strict=True):
            spent = (_number(zone / "energy_uj") or 0.0) - before
            total += spent if spent >= 0 else spent + (_number(zone / "max_energy_range_uj") or 0.0)
        return total / 1e6


class _Sensor(Counter):
    source = "INA3221"

    def __init__(self, watts: Callable[[], float]) -> None:
        self.watts, self.total, self.stop = watts, 0.0, threading.Event()

    def __enter__(self) -> "Counter":
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()

    def _sample(self) -> None:
        last = time.perf_counter()
        while not self.stop.wait(EVERY):
            now = time.perf_counter()
            self.total += self.watts() * (now - last)
            last = now

    def joules(self) -> float | None:
        self.__exit__()
        return self.total


def _board_power() -> Callable[[], float] | None:
    """Reads the watts of the rail that feeds the board; None where there is no such sensor."""
    for label in sorted(SYS.glob("bus/i2c/drivers/ina3221*/*/**/in*_label")):
        index, folder = label.name[2 : -len("_label")], label.parent
        volts, amperes = folder / f"in{index}_input", folder / f"curr{index}_input"
        if _feeds_board(label) and _number(volts) is not None and _number(amperes) is not None:
            return lambda: (_number(volts) or 0.0) * (_number(amperes) or 0.0) / 1e6
    for label in sorted(SYS.glob("bus/i2c/drivers/ina3221*/*/**/rail_name_*")):  # kernels of the first Jetsons
        power = label.parent / f"in_power{label.name[len('rail_name_') :]}_input"
        if _feeds_board(label) and _number(power) is not None:
            return lambda: (_number(power) or 0.0) / 1e3
    return None


def _feeds_board(label: Path) -> bool:
    name = label.read_text().strip().lower()
    return name.rpartition("_")[2] in BOARD or any(word in name for word in BOARD[1:])


def _number(file: Path) -> float | None:
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return None


def resident_bytes() -> int | None:
    """The largest part of this process that was in memory at any time so far."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
