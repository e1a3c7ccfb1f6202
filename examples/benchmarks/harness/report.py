"""The render phase: the card of a table, its JSON and its figures, from whatever runs are there."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from optimum.dendritic import DendriticConfig

from .claims import claims, findings, score, write
from .conditions import conditions, distinct
from .figures import draw
from .runs import PRUNED
from .statistics import Difference
from .summary import Row, Table
from .task import Task

TEMPLATE = Path(__file__).with_name("card.md")
DEFAULTS = DendriticConfig().to_dict()  # for fields that a later release has added
LEVEL = {"sparsity": 0, "parameters": 0, "seed": 0}  # what may differ between the runs of a table
VERDICTS = {True: "holds", False: "**fails**", None: "not measured"}


def render(task: Task, output_dir: Path, path: Path) -> None:
    """Write the card at `path`, with its JSON and its figures beside it."""
    table = read(task, output_dir)
    for name, value in table.recipe.items():
        setattr(task.args, name, value)  # the card speaks of the runs that are there, whatever the command line says
    card = task.card()
    path.parent.mkdir(parents=True, exist_ok=True)
    found = claims(table, card)
    content = {
        "rows": [
            asdict(row) | {"label": row.label, "mean": row.mean, "std": row.std} for row in table.rows + table.variants
        ],
        "claims": [asdict(claim) for claim in found],
        "recipe": table.recipe,
        "environments": distinct([run["environment"] for run in table.runs]),
        "measured": table.timings,
    }
    path.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    figures = draw(table, card.budget, path)
    path.write_text(
        TEMPLATE.read_text().format(
            **card.texts(),
            **conditions(table, card, task.control()),
            claims=grid(["claim", "measured", ""], [[c.text, c.measured, VERDICTS[c.holds]] for c in found]),
            table=grid(*_results(table)),
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
    recipes = [run["recipe"] for run in runs if run["method"] != "base"]
    bases = [run["recipe"] for run in runs if run["method"] == "base"]
    kinds = {
        "recipe": recipes,
        "recipe of bases": [*bases, *map(task.base_recipe, recipes)],
        "samples": [run["samples"] for run in runs],
    }
    for method in PRUNED:
        own = [run["pruning"] for run in runs if run["method"] == method and not run["variant"]]
        kinds[f"{method} pruning"] = [DEFAULTS | fields | LEVEL for fields in own]
    for name, values in kinds.items():
        if len(found := distinct(values)) > 1:
            raise ValueError(f"{output_dir} mixes runs of several kinds of {name}: {found}.")
    return Table(runs, timings, task.metric)


def _results(table: Table) -> tuple[list[str], list[list[str]]]:
    latencies = sorted({n for t in table.timings for n in t["report"]["ratios"] if n.startswith("latency")}, key=_batch)
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row.label,
        "removed": lambda row: f"{row.level:.0%}" if row.level else "",
        table.metric.name: lambda row: score(row, table.metric),
        "against dense": lambda row: _difference(row.against_dense, table),
        "held out": lambda row: table.metric.write(row.held_out),
        "held out, against dense": lambda row: _difference(row.held_out_against_dense, table),
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


def _difference(difference: Difference | None, table: Table) -> str:
    return "" if difference is None else write(difference, table.metric)


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
    return f"\n## Ablations\n\n{grid(header, rows)}\n"


def _number(row: Row, name: str) -> str:
    return f"{row.ratios[name]:.3f}" if name in row.ratios else ""


def _batch(name: str) -> int:
    return int(name.rpartition("_")[2])


def grid(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
