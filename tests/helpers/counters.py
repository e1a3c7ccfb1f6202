"""Energy counters as Linux shows them, in files of a test: a processor's (RAPL) and a Jetson board's (INA3221)."""

from pathlib import Path

import pytest

LARGEST = 262_143_328_850  # microjoules; where the counter of a real package starts again


class FakeRapl:
    """One package with memory: `add` lets it count joules of the package, and a quarter of them in memory."""

    def __init__(self, folder: Path) -> None:
        package = folder / "intel-rapl:0"
        self.counters = {}
        for zone, name in ((package, "package-0"), (package / "intel-rapl:0:0", "dram")):
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "max_energy_range_uj").write_text(f"{LARGEST}\n")
            self.counters[name] = zone / "energy_uj"
            self.counters[name].write_text("1000000\n")

    def add(self, joules: float) -> None:
        for name, part in (("package-0", 1.0), ("dram", 0.25)):
            microjoules = int(self.counters[name].read_text()) + round(joules * part * 1e6)
            temporary = self.counters[name].with_suffix(".new")  # a process of zeus reads it meanwhile
            temporary.write_text(f"{microjoules}\n")
            temporary.replace(self.counters[name])


def without_counters(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """zeus forgets what it has found on this machine, and finds nothing in an absent `folder`."""
    import zeus.device.cpu
    import zeus.device.soc
    from zeus.device.cpu import rapl

    monkeypatch.setattr(zeus.device.cpu, "_cpus", None)
    monkeypatch.setattr(zeus.device.soc, "_soc", None)
    monkeypatch.setattr(rapl, "RAPL_DIR", str(folder))
    monkeypatch.setattr(rapl, "CONTAINER_RAPL_DIR", str(folder / "absent"))
    rapl.rapl_is_available.cache_clear()


def fake_rapl(monkeypatch: pytest.MonkeyPatch, folder: Path) -> FakeRapl:
    """A processor whose counters stand in `folder`."""
    counters = FakeRapl(folder)
    without_counters(monkeypatch, folder)
    return counters


def fake_jetson(monkeypatch: pytest.MonkeyPatch, folder: Path, milliwatts: int) -> None:
    """A Jetson whose board draws `milliwatts`, of which its processor draws a fifth."""
    import zeus.device.soc
    from zeus.device.soc import jetson

    without_counters(monkeypatch, folder / "no-rapl")
    sensor = folder / "ina3221" / "1-0040" / "hwmon" / "hwmon3"
    sensor.mkdir(parents=True)
    rails = {1: ("VDD_IN", milliwatts), 2: ("VDD_CPU_GPU_CV", milliwatts // 5), 3: ("VDD_SOC", milliwatts // 5)}
    for index, (name, power) in rails.items():
        (sensor / f"in{index}_label").write_text(f"{name}\n")
        (sensor / f"in{index}_input").write_text("5000\n")  # millivolts
        (sensor / f"curr{index}_input").write_text(f"{power // 5}\n")  # milliamperes

    def moved(path: str | Path) -> Path:
        return Path(str(path).replace("/sys/bus/i2c/drivers", str(folder)))

    monkeypatch.setattr(jetson, "Path", moved)
    for module in (jetson, zeus.device.soc):
        monkeypatch.setattr(module, "jetson_is_available", lambda: True)
