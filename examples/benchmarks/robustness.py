"""Hostile checkpoints, interrupted verbs, killed trainings and a failing Hub, many thousand times: what came of each.

    python examples/benchmarks/robustness.py                              # all of it: model_cards/robustness.json, .md
    python examples/benchmarks/robustness.py --parts checkpoints --cases 500 --json trial.json

Every case is drawn from a seed and its number, so that any of them can be repeated, and is noted when it ends: a table
that was interrupted goes on where it was. Nothing but the outcomes that SECURITY.md promises may come of a case.

* checkpoints: an edit of `harness/mutations.py` to one of the models of `harness/subjects.py`, which is then loaded.
* verbs: one of the public functions, interrupted at a tensor operation (`harness/interruptions.py`).
* kills: trainings that die by SIGKILL, in one process or two, and are resumed (`crashes.py`).
* hub: pushes to a local Hub with faults (`harness/hub_faults.py`).
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from crashes import CASES as CRASHES
from crashes import check
from harness import hostile, hub_faults, interruptions
from harness.runs import environment, write_json
from harness.trials import Run, Trial, trials
from tqdm import tqdm
from transformers.utils import logging

sys.path.append(str(hub_faults.TESTS))

from hub.client import start  # noqa: E402  # pyright: ignore[reportMissingImports]
from hub.server import ALICE, Hub  # noqa: E402  # pyright: ignore[reportMissingImports]

CASES = {"checkpoints": 10_000, "verbs": 500, "kills": 20, "hub": 400}
KILLS = 5  # of each of those cases: one at every kind of moment
TITLES = {
    "checkpoints": "Edited checkpoints that are loaded",
    "verbs": "Verbs that are interrupted at a tensor operation",
    "kills": f"Trainings that are killed {KILLS} times each and resumed",
    "hub": "Pushes to a Hub with faults",
}
FINE = {
    "checkpoints": hostile.FINE,
    "verbs": ("as it was", "went on"),
    "kills": ("the same model",),
    "hub": ("pushed", "refused"),
}
MEANING = {
    "refused": "an error of this package, in words",
    "refused when run": "the same, by the first forward pass: a layer is given a tensor of another width than it reads",
    "refused by transformers": "an error of transformers or torch, before this package was asked",
    "not asked": "nothing in config.json names this package, and transformers made a model of the class's own",
    "another head": "other labels than were saved, so that transformers, as of a dense model, leaves the head out",
    "equal": "a model with the same layout and tensors",
    "harmless": "a model that answers the same, bit for bit, with other bookkeeping, such as a score",
    "as it was": "the error came out, and everything was as before, bit for bit",
    "went on": "the verb ended all the same: where a trial fails, a wire is not cut",
    "the same model": "after every kill and resumption the packed model is the same, byte for byte, as without",
    "pushed": "one whole commit",
}


def checkpoints(folder: Path, seed: int, stack: ExitStack) -> Run:
    return partial(hostile.Bases(folder).run, seed)


def verbs(folder: Path, seed: int, stack: ExitStack) -> Run:
    return partial(interruptions.interrupt, seed, folder, {})


def kills(folder: Path, seed: int, stack: ExitStack) -> Run:
    def run(index: int, tell: Callable[[str, str], None]) -> str:
        case = list(CRASHES)[index % len(CRASHES)]
        tell(f"{CRASHES[case][2]} process{'es' if CRASHES[case][2] > 1 else ''}", case)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            found = check(case, KILLS, KILLS, 1000 * seed + index, Path(place))
        return "the same model" if found["identical"] == found["runs"] else f"another model: {found}"

    return run


def hub(folder: Path, seed: int, stack: ExitStack) -> Run:
    server = stack.enter_context(Hub({ALICE: "alice"}))
    client = stack.enter_context(start(server.url, folder / "home", HF_HUB_DISABLE_XET="1"))
    return partial(hub_faults.push, server, client, seed)


PARTS: dict[str, Callable[[Path, int, ExitStack], Run]] = {
    "checkpoints": checkpoints,
    "verbs": verbs,
    "kills": kills,
    "hub": hub,
}
HANGS = {"checkpoints": 120.0, "verbs": 600.0, "kills": 3600.0}  # seconds; a case of kills is a dozen trainings
HERE = ("hub",)  # its server has threads, which no fork takes along


def here(run: Run, indices: list[int]) -> Iterator[Trial]:
    """Cases in this process."""
    for index in indices:
        told = ["", ""]
        outcome = run(index, lambda *words, told=told: told.__setitem__(slice(2), words))
        yield Trial(index, told[0], told[1], outcome)


def play(part: str, cases: int, seed: int, notes: Path, only_report: bool) -> list[Trial]:
    """Run the cases of a part that are not noted yet, unless `only_report`; all that are noted then."""
    known = [Trial(**json.loads(line)) for line in notes.read_text().splitlines()] if notes.exists() else []
    done = {trial.index for trial in known}
    left = [] if only_report else [index for index in range(cases) if index not in done]
    if left:
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder, notes.open("a") as file:
            run = PARTS[part](Path(folder), seed, stack)
            found = here(run, left) if part in HERE else trials(run, left, HANGS[part])
            for trial in tqdm(found, desc=part, total=cases, initial=len(done), unit="case"):
                known.append(trial)
                file.write(json.dumps(asdict(trial)) + "\n")
                file.flush()
                if trial.outcome not in FINE[part]:
                    tqdm.write(f"{part} {trial.index}: {trial.group}, {trial.what}: {trial.outcome}")
    return [trial for trial in known if trial.index < cases]


def summary(part: str, seed: int, found: list[Trial]) -> dict[str, Any]:
    """Counts of outcomes, for each group too, and every case that ended otherwise than promised."""
    groups = {trial.group: Counter[str]() for trial in sorted(found, key=lambda trial: trial.group)}
    for trial in found:
        groups[trial.group][trial.outcome.partition(":")[0]] += 1
    return {
        "seed": seed,
        "cases": len(found),
        "outcomes": dict(sum(groups.values(), Counter[str]()).most_common()),
        "groups": {name: dict(counts.most_common()) for name, counts in groups.items()},
        "failures": [asdict(trial) for trial in found if trial.outcome not in FINE[part]],
    }


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = ["# What hostile files, interruptions, kills and a failing Hub do", ""]
    lines += ["Made by `python examples/benchmarks/robustness.py`, which repeats any case from its seed and number."]
    for part in (part for part in CASES if part in report):
        found, outcomes = report[part], list(report[part]["outcomes"])
        lines += ["", f"## {TITLES[part]}", "", f"{found['cases']:,} cases, seed {found['seed']}. "]
        lines[-1] += f"Otherwise than promised: {len(found['failures'])}."
        lines += ["", "| | " + " | ".join(outcomes) + " |", "|---" + "|--:" * len(outcomes) + "|"]
        for name, row in {**found["groups"], "**all**": found["outcomes"]}.items():
            lines += [f"| {name} | " + " | ".join(f"{row.get(outcome, 0):,}" for outcome in outcomes) + " |"]
        lines += ["", *(f"* {outcome}: {MEANING[outcome]}." for outcome in outcomes if outcome in MEANING)]
        lines += [f"* case {one['index']}, {one['what']}: {one['outcome']}" for one in found["failures"]]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cases", type=int, help=f"of each part; default: {CASES}")
    parser.add_argument("--report", action="store_true", help="run nothing; count what is noted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/robustness"), help="where ended cases are noted")
    parser.add_argument("--json", type=Path, default=Path("model_cards/robustness.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    logging.set_verbosity(CRITICAL)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"environment": environment()}
    for part in options.parts:
        notes = options.output_dir / f"{part}-{options.seed}.jsonl"
        report[part] = summary(
            part, options.seed, play(part, options.cases or CASES[part], options.seed, notes, options.report)
        )
        write_json(options.json, report)
        options.json.with_suffix(".md").write_text(render(report))
    if any(report[part]["failures"] for part in options.parts):
        sys.exit("Some cases ended otherwise than promised.")


if __name__ == "__main__":
    main()
