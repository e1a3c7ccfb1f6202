"""The render phase: the card of a table, its JSON and its figures, from whatever runs are there."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optimum.dendritic import DendriticConfig

from .claims import claims, findings, score, write
from .figures import draw
from .runs import PRUNED
from .summary import Row, Table
from .task import Card, Task

TEMPLATE = Path(__file__).with_name("card.md")
VERDICTS = {True: "holds", False: "**fails**", None: "not measured"}


def render(task: Task, output_dir: Path, path: Path) -> None:
    """Write the card at `path`, with its JSON and its figures beside it."""
    table, card = read(task, output_dir), task.card()
    path.parent.mkdir(parents=True, exist_ok=True)
    found = claims(table, card.budget, card.tolerances)
    content = {
        "rows": [
            asdict(row) | {"label": row.label, "mean": row.mean, "std": row.std} for row in table.rows + table.variants
        ],
        "claims": [asdict(claim) for claim in found],
        "recipe": table.runs[0]["recipe"],
        "environments": _distinct([run["environment"] for run in table.runs]),
        "measured": table.timings,
    }
    path.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    figures = draw(table, card.budget, path)
    path.write_text(
        TEMPLATE.read_text().format(
            **card.texts(),
            **_conditions(table, card),
            claims=_grid(["claim", "measured", ""], [[c.text, c.measured, VERDICTS[c.holds]] for c in found]),
            table=_grid(*_results(table)),
            findings="\n".join(f"* {sentence}" for sentence in findings(table)),
            figures="\n\n".join(f"![{caption}]({figure.name})" for caption, figure in figures.items()),
            ablations=_ablations(table),
            extra=task.extra(table.runs),
        )
    )


def read(task: Task, output_dir: Path) -> Table:
    """All runs and timings in `output_dir`.

    Raises:
        ValueError: they do not belong in one table.
    """
    files = sorted(output_dir.glob("*.json"))
    timings = [json.loads(file.read_text()) for file in files if file.name.endswith(".time.json")]
    runs = [json.loads(file.read_text()) for file in files if not file.name.endswith(".time.json")]
    for name in ("recipe", "samples"):
        if len(found := _distinct([run[name] for run in runs])) > 1:
            raise ValueError(f"{output_dir} mixes runs of several kinds of {name}: {found}.")
    return Table(runs, timings, task.metric)


def _results(table: Table) -> tuple[list[str], list[list[str]]]:
    latencies = sorted({n for t in table.timings for n in t["report"]["ratios"] if n.startswith("latency")}, key=_batch)
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row.label,
        "removed": lambda row: f"{row.level:.0%}" if row.level else "",
        table.metric.name: lambda row: score(row, table.metric),
        "against dense": lambda row: "" if row.against_dense is None else write(row.against_dense, table.metric),
        "seeds": lambda row: str(len(row.scores)),
        "parameters": lambda row: f"{row.parameters:,}",
        "target parameters": lambda row: f"-{row.target_removed:.1%}" if row.level else "",
        "MACs": lambda row: f"{row.macs / 1e6:,.1f} M",
        "target MACs": lambda row: f"-{row.target_macs_removed:.1%}" if row.level else "",
        **{f"time, batch {_batch(name)}": lambda row, name=name: _number(row, name) for name in latencies},
        "bytes": lambda row: _number(row, "bytes"),
        "peak memory": lambda row: _number(row, "peak_memory_bytes"),
    }
    return list(columns), [[column(row) for column in columns.values()] for row in table.rows]


def _ablations(table: Table) -> str:
    if not table.variants:
        return ""
    rows = []
    for row in table.variants:
        plain = table.find(row.method, row.level)
        difference = None if plain is None else table.difference(row, plain)
        changes = ", ".join(f"{name}={value}" for name, value in table.of(row)[0]["changes"].items())
        compared = "" if difference is None else write(difference, table.metric)
        seeds = str(len(row.scores))
        rows.append(
            [
                row.label,
                changes,
                f"{row.level:.0%}",
                score(row, table.metric),
                compared,
                seeds,
                f"{row.parameters:,}",
                f"{row.macs / 1e6:,.1f} M",
            ]
        )
    header = [
        "variant",
        "changed",
        "removed",
        table.metric.name,
        "against the recipe itself",
        "seeds",
        "parameters",
        "MACs",
    ]
    return f"\n## Ablations\n\n{_grid(header, rows)}\n"


def _conditions(table: Table, card: Card) -> dict[str, Any]:
    runs, rows = table.runs, table.rows
    seeds = sorted({run["seed"] for run in runs})
    pruned = [run["pruning"] for run in runs if run["method"] == "dendritic" and not run["variant"]]
    contexts = _distinct([timing["report"]["context"] for timing in table.timings])
    return {
        "validation": f"{len(runs[0]['examples']):,}",
        "first_seed": seeds[0],
        "recipe": ", ".join(f"{name} {value}" for name, value in runs[0]["recipe"].items() if value is not None),
        "pruning": _pruning(pruned[0]) if pruned else "not run",
        "seeds": " ".join(map(str, seeds)),
        "environments": "\n".join(
            f"* Trained on {_environment(e)}." for e in _distinct([r["environment"] for r in runs])
        ),
        "timings": "\n".join(
            f"* Measured on {c['device_name']}, {c['threads']} threads, {c['dtype']}, torch {c['torch']}, one sample: "
            f"{', '.join(f'{name} {shape}' for name, shape in c['input_shapes'].items())}."
            for c in contexts
        )
        or "* Bytes, times and memory: not measured.",
        "count": len(runs),
        "minutes": f"{sum(run['train_seconds'] for run in runs) / 60:.0f}",
        "commands": "\n".join(_commands(table, rows, card)),
    }


def _pruning(fields: dict[str, Any]) -> str:
    """What differs from the defaults, but for level and seed."""
    default = DendriticConfig().to_dict()
    changed = [f"{n}={v}" for n, v in fields.items() if n not in ("sparsity", "seed") and v != default[n]]
    return f"defaults but {', '.join(changed)}" if changed else "defaults"


def _environment(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    return f"{environment['device']}, {environment['threads']} threads; {versions}"


def _commands(table: Table, rows: list[Row], card: Card) -> list[str]:
    script = f"python examples/benchmarks/{card.script}"
    seeds = f"--seeds {' '.join(str(seed) for seed in sorted({run['seed'] for run in table.runs}))}"
    options = " ".join(_option(name, value) for name, value in table.runs[0]["recipe"].items() if value is not None)
    commands = [f"{script} train {seeds} --levels {_levels(rows)} {options}"]
    for variant in sorted({row.variant for row in table.variants}):
        own = [row for row in table.variants if row.variant == variant]
        methods = " ".join(method for method in PRUNED if any(row.method == method for row in own))
        seeds_of = " ".join(map(str, sorted({seed for row in own for seed in row.scores})))
        changes = " ".join(f"{name}={value}" for name, value in table.of(own[0])[0]["changes"].items())
        commands.append(
            f"{script} train --methods {methods} --variant {variant} --config {changes} --seeds {seeds_of} "
            f"--levels {_levels(own)} {options}"
        )
    selected = " ".join(_option(name, table.runs[0]["recipe"][name]) for name in card.selects)
    return [
        *commands,
        " ".join(filter(None, (script, "time", seeds, f"--levels {_levels(rows)}", selected))),
        " ".join(filter(None, (script, "render", selected))),
    ]


def _levels(rows: list[Row]) -> str:
    return " ".join(f"{level:g}" for level in sorted({row.level for row in rows if row.level}))


def _option(name: str, value: object) -> str:
    return f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {value}"


def _number(row: Row, name: str) -> str:
    return f"{row.ratios[name]:.3f}" if name in row.ratios else ""


def _batch(name: str) -> int:
    return int(name.rpartition("_")[2])


def _distinct(items: list) -> list:
    return [item for i, item in enumerate(items) if item not in items[:i]]


def _grid(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
