"""The standing proof in short: some cases of each part, and a table that goes on where it was interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import HANGS, environment

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "robustness.py"
sys.path.insert(0, str(SCRIPT.parent))

from harness.hostile import FINE  # noqa: E402
from harness.mutations import EDITS  # noqa: E402
from harness.trials import Trial, trials  # noqa: E402


def run(folder: Path, *arguments: str) -> dict:
    command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), "--json", str(folder / "r.json"), *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "r.json").read_text())


@pytest.mark.slow
def test_edited_checkpoints_are_refused_or_answer_the_same(tmp_path):
    cases = int(os.environ.get("HOSTILE_CASES", "150"))
    found = run(tmp_path, "--parts", "checkpoints", "--cases", str(cases))["checkpoints"]
    assert found["cases"] == sum(found["outcomes"].values()) == cases and not found["failures"]
    assert found["groups"].keys() == EDITS.keys() and found["outcomes"].keys() <= set(FINE)
    assert found["outcomes"]["refused"] > cases / 2


@pytest.mark.slow
def test_pushes_to_a_failing_hub(tmp_path):
    found = run(tmp_path, "--parts", "hub", "--cases", "15")["hub"]
    assert found["cases"] == 15 and not found["failures"]
    assert found["outcomes"]["refused"] > 0 and found["outcomes"]["pushed"] > 0


@pytest.mark.slow
def test_a_table_goes_on_where_it_was(tmp_path):
    run(tmp_path, "--parts", "verbs", "--cases", "2")
    notes = tmp_path / "verbs-0.jsonl"
    lines = notes.read_text().splitlines()
    found = run(tmp_path, "--parts", "verbs", "--cases", "4")["verbs"]
    assert notes.read_text().splitlines()[:2] == lines and found["cases"] == 4
    assert "| **all** | 4 |" in (tmp_path / "r.md").read_text()


def some(index: int, tell) -> str:
    tell("group", f"case {index}")
    if index == 1:
        os.abort()
    while index == 2:
        pass
    if index == 3:
        raise LookupError("no such thing")
    return "fine"


def test_a_case_that_dies_or_hangs_is_an_outcome():
    found = list(trials(some, range(5), limit=5))
    assert found[0] == Trial(0, "group", "case 0", "fine") and found[4].outcome == "fine"
    assert [trial.what for trial in found] == [f"case {index}" for index in range(5)]
    assert found[1].outcome.startswith("crash: ") and found[2].outcome.startswith("hang: ")
    assert found[3].outcome.startswith("failed: LookupError at test_robustness.py")
