"""The card of the peers: rows of every task from the files of the runs, with our own rows beside them."""

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from harness.claims import write
from harness.metric import ACCURACY
from harness.report import grid
from harness.statistics import Difference, paired_difference, per_example

from .registry import ALL, LEVELS, METHODS, OWN, TITLES, WORDS

TEMPLATE = Path(__file__).with_name("card.md")
OURS = ("base", "dense", "dendritic", "magnitude", "shrinkage+magnitude")  # of our own tables
OTHERS = {"base": "the base, where all start", "dense": "the base, trained as long"}
WAYS = {"own": "own way", "from_pretrained": "`from_pretrained`", "pickle": "pickle", "state dict": "state dict"}
SCATTER = 0.05  # of timings, below which nobody is called faster


@dataclass(frozen=True)
class Row:
    """One way to prune at one level, over its seeds."""

    task: str
    method: str
    label: str
    level: float
    scores: dict[int, float]
    parameters: int
    macs: int
    nonzero: int | None
    bytes: float
    bytes_ratio: float
    times: dict[str, float]
    reloads: dict[str, str]
    lines: int | None
    cpu_minutes: float
    over_ours: Difference | None = None


def lines_of(name: str) -> int:
    """Lines of the module of a method, without those that are empty, a comment or a docstring.

    >>> lines_of("torch_l1_unstructured") < lines_of("torch_pruning_group_norm")
    True
    """
    text = (METHODS / f"{name}.py").read_text()
    told = set()
    for node in ast.walk(ast.parse(text)):
        first = node.body[0] if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            assert first.end_lineno is not None
            told |= set(range(first.lineno, first.end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for number, line in lines if number not in told and line.strip() and not line.lstrip().startswith("#"))


def files_of(folder: Path, ending: str = "") -> list[dict[str, Any]]:
    """The files `<method>-<level>-seed<n><ending>.json` of a folder."""
    kinds = (".time", ".reload")
    paths = [path for path in sorted(folder.glob(f"*{ending}.json")) if ending or not path.stem.endswith(kinds)]
    return [json.loads(path.read_text()) for path in paths]


def rows_of(task: str, folder: Path) -> list[Row]:
    """Ours first, then the peers', each level by level."""
    runs = files_of(folder)
    timings, reloads = ({key(f): f for f in files_of(folder, end)} for end in (".time", ".reload"))
    rows = []
    for method, level in dict.fromkeys(key(run)[:2] for run in runs):
        own = [run for run in runs if key(run)[:2] == (method, level)]
        stem = (method, level, min(run["seed"] for run in own))
        ours = {
            run["seed"]: ACCURACY.scale * per_example(run["examples"]) for run in runs if key(run)[:2] == (OWN, level)
        }
        theirs = {run["seed"]: ACCURACY.scale * per_example(run["examples"]) for run in own}
        rows.append(
            Row(
                task=task,
                method=method,
                label=ALL[method].label if method in ALL else OTHERS.get(method, f"our control: {method}"),
                level=level,
                scores={run["seed"]: 100 * run["score"] for run in own},
                parameters=own[0]["parameters"],
                macs=own[0]["macs"],
                nonzero=own[0].get("nonzero"),
                bytes=fmean(run["bytes"] for run in own),
                bytes_ratio=fmean(run["bytes"] / run["dense_bytes"] for run in own),
                times={name: ratio for name, ratio in timings.get(stem, {}).get("ratios", {}).items() if "lat" in name},
                reloads=reloads.get(stem, {}).get("ways", {}),
                lines=lines_of(method) if method in ALL else None,
                cpu_minutes=fmean(run["train_cpu_seconds"] for run in own) / 60,
                over_ours=paired_difference(theirs, ours) if level and method != OWN else None,
            )
        )
    order = [*OURS, *ALL]
    return sorted(rows, key=lambda row: (row.level, order.index(row.method)))


def key(run: dict[str, Any]) -> tuple[str, float, int]:
    return run["method"], run["level"], run["seed"]


def render(runs: Path, path: Path) -> None:
    """Write the card and its JSON from the runs that are there."""
    tasks = {task: rows_of(task, runs / task) for task in LEVELS}
    tasks = {task: rows for task, rows in tasks.items() if rows}
    recipes = {task: next(run["recipe"] for run in files_of(runs / task) if run["level"]) for task in tasks}
    environments = [run["environment"] for task in tasks for run in files_of(runs / task)]
    content = {
        "rows": [row_json(row) for rows in tasks.values() for row in rows],
        "recipes": recipes,
        "environments": [e for i, e in enumerate(environments) if e not in environments[:i]],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    path.write_text(
        TEMPLATE.read_text().format(
            tables="\n\n".join(f"## {TITLES[task]}\n\n{table(rows)}" for task, rows in tasks.items()),
            reloads=reload_table([row for rows in tasks.values() for row in rows if row.reloads]),
            findings="\n".join(f"* {sentence}" for rows in tasks.values() for sentence in findings(rows)),
            words="\n".join(f"* **{name}**: {text}" for name, text in WORDS.items()),
            recipes="\n".join(f"* {TITLES[task]}: {described(recipe)}." for task, recipe in recipes.items()),
            environments="\n".join(f"* {environment_line(e)}." for e in content["environments"]),
            lines=", ".join(f"{ALL[name].label} {lines_of(name)}" for name in ALL),
        )
    )


def row_json(row: Row) -> dict[str, Any]:
    own = {name: value for name, value in vars(row).items() if name != "over_ours"}
    difference = None if row.over_ours is None else vars(row.over_ours)
    return own | {"mean": fmean(row.scores.values()), "over_ours": difference}


def table(rows: list[Row]) -> str:
    latencies = sorted({name for row in rows for name in row.times}, key=batch)
    columns: dict[str, Callable[[Row], str]] = {
        "way": lambda row: row.label,
        "asked": lambda row: f"{row.level:.0%}" if row.level else "",
        "accuracy %": score,
        "by seed": lambda row: ", ".join(f"{seed}: {value:.2f}" for seed, value in sorted(row.scores.items())),
        "ours is better by": lambda row: "" if row.over_ours is None else write(row.over_ours, ACCURACY),
        "parameters": lambda row: f"{row.parameters:,}",
        "not zero": lambda row: "" if row.nonzero is None else f"{row.nonzero:,}",
        "MACs": lambda row: f"{row.macs / 1e6:,.1f} M",
        "bytes": lambda row: f"{row.bytes:,.0f} ({row.bytes_ratio:.3f})",
        **{f"time, batch {batch(name)}": lambda row, name=name: timed(row, name) for name in latencies},
        "lines": lambda row: "" if row.lines is None else str(row.lines),
        "CPU minutes": lambda row: f"{row.cpu_minutes:.1f}",
    }
    return grid(list(columns), [[column(row) for column in columns.values()] for row in rows])


def score(row: Row) -> str:
    values = list(row.scores.values())
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def timed(row: Row, name: str) -> str:
    return f"{row.times[name]:.3f}" if name in row.times else ""


def batch(name: str) -> int:
    return int(name.rpartition("_")[2])


def reload_table(rows: list[Row]) -> str:
    """Whether each way of loading works; what fails, in the words of its error."""
    lines = []
    for row in rows:
        cells = [said(row.reloads.get(way)) for way in WAYS]
        lines.append([f"{TITLES[row.task]}, {row.level:.0%}", row.label, *cells])
    return grid(["", "way", *WAYS.values()], lines)


def said(error: str | None) -> str:
    if error is None:
        return "not tried"
    return "yes" if not error else f"no: {' '.join(error.split())[:90].replace('|', '/')}"


def findings(rows: list[Row]) -> list[str]:
    """Who is better than ours, and who is worse, where that is more than chance; and who is faster."""
    sentences = [sentence for row in rows if row.method in ALL for sentence in faster(row, rows)]
    for row in rows:
        difference = row.over_ours
        if difference is not None and row.method in ALL:
            verdict = "is not separable from ours"
            if difference.separable:
                verdict = "**is better than ours**" if difference.mean > 0 else "is worse than ours"
            seeds = f"{difference.seeds} seed{'s' if difference.seeds > 1 else ''}"
            told = write(Difference(-difference.mean, -difference.high, -difference.low, difference.seeds), ACCURACY)
            sentences.append(f"{TITLES[row.task]}, {row.level:.0%}: {row.label} {verdict} ({told}; {seeds}).")
    return sentences


def faster(row: Row, rows: list[Row]) -> list[str]:
    """At which batch sizes it takes less time than ours of the same level, by more than timings scatter."""
    ours = next((own.times for own in rows if (own.method, own.level) == (OWN, row.level)), {})
    return [
        f"{TITLES[row.task]}, {row.level:.0%}: {row.label} **is faster than ours** at batch {batch(name)}: "
        f"{row.times[name]:.3f} of dense's time, where ours takes {ours[name]:.3f}."
        for name in sorted(row.times.keys() & ours.keys(), key=batch)
        if row.times[name] < (1 - SCATTER) * ours[name]
    ]


def described(recipe: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in recipe.items() if value is not None)


def environment_line(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    return f"{environment['device']}, {environment['threads']} thread; {versions}"
