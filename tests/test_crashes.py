"""Runs that are killed at random moments end with the undisturbed run's model: real processes, real signals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import HANGS, environment
from transformers import AutoModelForSequenceClassification

from optimum.dendritic.state import layout_of

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "examples/benchmarks/crashes.py"
OTHER_NUMBER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from crashes import PLAIN, CASES, Death, bert, live
torch.set_num_threads(1)
for first, then in ((2, 1), (1, 2)):
    folder = Path(sys.argv[2]) / f"{first}-{then}"
    CASES["ddp"] = (bert, PLAIN, first)
    assert not live("ddp", folder, Death("update", 11, 5))
    states = sorted(file.name for file in (folder / "checkpoint-9").glob("rng_state*"))
    assert states == (["rng_state.pth"] if first == 1 else ["rng_state_0.pth", "rng_state_1.pth"]), states
    CASES["ddp"] = (bert, PLAIN, then)
    assert live("ddp", folder, Death())
"""
KILLS = int(os.environ.get("CRASHES", "5"))  # of each case


def python(*arguments: str) -> None:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-3000:]


def test_killed_runs_end_with_the_same_model(tmp_path):
    python(str(SCRIPT), "--kills", str(KILLS), "--json", str(tmp_path / "crashes.json"))
    report = json.loads((tmp_path / "crashes.json").read_text())
    assert report.keys() == {"bert", "taught", "vit", "ddp"}
    for case in report.values():
        assert sum(case["kills"].values()) == KILLS
        assert case["identical"] == case["runs"] > 0
    assert sum(case["torn checkpoints passed over"] for case in report.values()) > 0
    assert len({window for case in report.values() for window in case["kills"]}) == 5


def test_a_run_goes_on_under_another_number_of_processes(tmp_path):
    python("-c", OTHER_NUMBER, str(SCRIPT.parent), str(tmp_path))
    for folder in ("2-1", "1-2"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder / "packed")
        layout = layout_of(model)
        left = sum(p.numel() for name in layout.modules for p in model.get_submodule(name).parameters())
        assert layout.packed and left <= (1 - layout.config.sparsity) * layout.dense_cost
