"""Writes `model_cards/mnist-convnet.md` with its JSON and figures from the files of the runs."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from mnist_figures import draw
from mnist_summary import LABELS, Row, accuracy, claims, findings, summarise

TEMPLATE = Path(__file__).with_name("mnist_card.md")
COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: LABELS[row.method],
    "removed": lambda row: f"{row.level:.0%}" if row.level else "",
    "accuracy %": accuracy,
    "drop": lambda row: _number(row.drop, 2),
    "seeds": lambda row: str(len(row.accuracies)),
    "parameters": lambda row: f"{row.parameters:,}",
    "bytes": lambda row: _number(row.bytes),
    "MACs": lambda row: _number(row.macs),
    "time, batch 1": lambda row: _number(row.latency_1),
    "time, batch 64": lambda row: _number(row.latency_64),
    "peak memory": lambda row: _number(row.peak_memory),
}


def render(output_dir: Path, card: Path) -> None:
    """Write the card, its JSON and its figures from whatever runs `output_dir` holds."""
    files = sorted(output_dir.glob("*.json"))
    timings = [json.loads(path.read_text()) for path in files if path.name.endswith(".time.json")]
    runs = [json.loads(path.read_text()) for path in files if not path.name.endswith(".time.json")]
    rows = summarise(runs, timings)
    card.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "rows": [asdict(row) | {"mean": row.mean, "std": row.std} for row in rows],
        "claims": [asdict(claim) for claim in claims(rows)],
        "recipe": runs[0]["recipe"],
        "environments": _distinct([run["environment"] for run in runs]),
        "measured": timings,
    }
    card.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    figures = draw(rows, LABELS, card)
    card.write_text(_text(rows, runs, timings, figures))


def _text(rows: list[Row], runs: list[dict], timings: list[dict], figures: dict[str, Path]) -> str:
    recipe, samples = runs[0]["recipe"], runs[0]["samples"]
    seeds = sorted({run["seed"] for run in runs})
    dense = next(row for row in rows if row.method == "dense")
    verdicts = {True: "holds", False: "**fails**", None: "not measured"}
    header, cells = list(COLUMNS), [[column(row) for column in COLUMNS.values()] for row in rows]
    conditions = [_conditions(environment) for environment in _distinct([run["environment"] for run in runs])]
    timed = _distinct([[t["report"]["context"], t["channels_last"]] for t in timings])
    return TEMPLATE.read_text().format(
        claims=_table(["claim", "measured", ""], [[c.text, c.measured, verdicts[c.holds]] for c in claims(rows)]),
        findings="\n".join(f"* {sentence}" for sentence in findings(rows)),
        table=_table(header, cells),
        figures="\n\n".join(f"![{caption}]({path.name})" for caption, path in figures.items()),
        parameters=f"{dense.parameters:,}",
        train=f"{samples[0]:,}",
        test=f"{samples[1]:,}",
        recipe=", ".join(f"{name} {value}" for name, value in recipe.items() if value is not None),
        seeds=" ".join(map(str, seeds)),
        levels=" ".join(f"{level:g}" for level in sorted({row.level for row in rows if row.level})),
        options=" ".join(_option(name, value) for name, value in recipe.items() if value is not None),
        environments="\n".join(f"* Trained on {condition}." for condition in conditions),
        timings="\n".join(
            f"* Measured on {context['device_name']}, {context['threads']} threads, {context['dtype']}, "
            f"{'channels-last' if last else 'contiguous'} memory layout for both models, torch {context['torch']}."
            for context, last in timed
        )
        or "* Bytes, MACs, times and memory: not measured.",
        minutes=f"{sum(run['train_seconds'] for run in runs) / 60:.0f}",
        count=len(runs),
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _option(name: str, value: object) -> str:
    return f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {value}"


def _conditions(environment: dict) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    return f"{environment['device']}, {environment['threads']} threads; {versions}"


def _distinct(items: list) -> list:
    return [item for i, item in enumerate(items) if item not in items[:i]]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
