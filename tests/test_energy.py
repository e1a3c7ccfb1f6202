"""Energy: what a counter counts is what is reported, with its source; without a counter there is no figure."""

import importlib.util
import sys
from importlib import import_module
from inspect import signature

import pytest
import torch
from helpers.checkpoints import saved
from helpers.counters import fake_jetson, fake_rapl, without_counters
from torch import nn

from optimum.dendritic import DendriticError, measure
from optimum.dendritic.efficiency import energy
from optimum.dendritic.efficiency.energy import Energy, measure_energy
from optimum.dendritic.efficiency.report import energy_words
from optimum.dendritic.huggingface.card import text
from optimum.dendritic.huggingface.card.schema import first_fault

MODULE = import_module("optimum.dendritic.efficiency.measure")  # whose name the function has taken
CPU = torch.device("cpu")
QUICK = {"threads": 1, "seconds": 0.05, "idle_seconds": 0.05}


def test_a_pass_costs_what_the_counters_of_the_processor_counted(monkeypatch, tmp_path):
    counters = fake_rapl(monkeypatch, tmp_path / "rapl")
    monkeypatch.setattr(energy, "sleep", lambda seconds: counters.add(8.0))
    found = measure_energy(lambda: counters.add(2.0), CPU, **QUICK)
    assert found is not None and found.calls > 0
    assert found.joules == pytest.approx(2.5), "the package and a quarter of it in memory"
    assert found.idle_watts * found.idle_seconds == pytest.approx(10.0)
    assert found.watts * found.seconds == pytest.approx(2.5 * found.calls)
    assert found.milliseconds * found.calls == pytest.approx(1e3 * found.seconds)
    assert found.source == "CPU package 0 (RAPL), DRAM 0 (RAPL)"


@pytest.mark.slow
def test_a_board_is_measured_as_a_whole(monkeypatch, tmp_path):
    fake_jetson(monkeypatch, tmp_path, milliwatts=5000)
    found = measure_energy(lambda: None, CPU, threads=1, seconds=2.0, idle_seconds=2.0)
    assert found is not None and found.source == "board (INA3221)"
    assert 2.5 < found.watts < 10 and 2.5 < found.idle_watts < 10, "not the rails, not milliwatts"


def test_without_a_counter_there_is_no_figure(monkeypatch, tmp_path):
    without_counters(monkeypatch, tmp_path / "absent")
    assert measure_energy(lambda: None, CPU, **QUICK) is None


def test_a_counter_that_stands_still_is_none(monkeypatch, tmp_path):
    fake_rapl(monkeypatch, tmp_path / "rapl")
    assert measure_energy(lambda: None, CPU, **QUICK) is None


def test_threads_are_as_before(monkeypatch, tmp_path):
    without_counters(monkeypatch, tmp_path / "absent")
    before = torch.get_num_threads()
    seen = []
    measure_energy(lambda: seen.append(torch.get_num_threads()), CPU, **QUICK | {"threads": before + 1})
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


def test_a_run_lasts_ten_seconds_or_more():
    assert energy.RUN_SECONDS >= 10 and signature(measure_energy).parameters["seconds"].default == energy.RUN_SECONDS


FOUND = Energy(
    joules=0.5,
    milliseconds=20.0,
    watts=25.0,
    idle_watts=6.0,
    calls=500,
    seconds=10.0,
    idle_seconds=3.0,
    source="CPU package 0 (RAPL)",
)
WORDS = "CPU package 0 (RAPL), 500 calls in 10.0 s, 20 ms each, at 25 W; 6 W idle in the 3.0 s before"


def reported(monkeypatch, found: Energy | None, baseline: bool = False):
    monkeypatch.setattr(MODULE, "measure_energy", lambda call, device, threads: found)
    model, other = nn.Linear(4, 2), nn.Linear(4, 4)
    return measure(
        model, torch.ones(1, 4), baseline=other if baseline else None, seconds=0.01, memory=False, energy=True
    )


def test_the_report_says_from_what_and_for_how_long(monkeypatch):
    report = reported(monkeypatch, FOUND, baseline=True)
    assert report.energy_joules == 0.5 and report.ratios["energy_joules"] == 1.0
    assert f"energy of the model: {WORDS}" in report.table() and f"energy of the baseline: {WORDS}" in report.table()
    assert energy_words(FOUND) == WORDS and report.table().isascii()
    assert report.to_dict()["energy"]["source"] == "CPU package 0 (RAPL)"
    assert reported(monkeypatch, None).to_dict()["energy"] is None
    assert "not measured" in reported(monkeypatch, None).table()


def test_the_card_says_it_and_its_schema_knows_it(monkeypatch):
    record = {"format_version": 1, "model": {"class": "X", "weights": "0" * 64}}
    for found in (FOUND, None):
        report = reported(monkeypatch, found).to_dict()
        assert first_fault(record | {"efficiency": report}) is None
        assert ("500 passes in 10.0 s" in text.energy_words(report)) == (found is not None)
    report = reported(monkeypatch, FOUND).to_dict()
    report["energy"]["joules"] = -1.0
    assert first_fault(record | {"efficiency": report}) == "efficiency.json.efficiency.energy.joules: exclusiveMinimum"
    report["energy"] = FOUND.__dict__ | {"source": "a | b\n# c"}
    assert "# c" not in text.energy_words(report).splitlines()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor.energy", None)
    with pytest.raises(ImportError, match=r"pip install optimum-dendritic\[energy\]"):
        measure_energy(lambda: None, CPU, **QUICK)


@pytest.mark.slow
def test_the_command_measures_it_or_says_that_it_cannot(cli, tmp_path, monkeypatch):
    saved(tmp_path / "small", "bert", "packed")
    counters = fake_rapl(monkeypatch, tmp_path / "rapl")
    monkeypatch.setattr(energy, "sleep", lambda seconds: counters.add(1.0))
    monkeypatch.setattr(energy, "perf_counter", lambda: counters.add(1.0) or next(ticks))
    ticks = iter(range(0, 1000, 4))  # two passes, and it is ten seconds later
    command = ["dendritic", "bench", "small", "--sequence-length", "4", "--seconds", "0.01", "--energy"]
    code, output, errors = cli(*command)
    assert code == 0, errors
    assert "CPU package 0 (RAPL), DRAM 0 (RAPL), 2 calls in" in output
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "zeus" else found(name))
    code, output, errors = cli(*command)
    assert code == 1 and "pip install optimum-dendritic[energy]" in errors


def test_bad_input_is_still_refused():
    with pytest.raises(DendriticError, match="seconds = 0"):
        measure(nn.Linear(2, 2), torch.ones(1, 2), seconds=0, energy=True)
