"""How the numbers of a card came about: recipe, devices, versions, and the commands that make them again."""

from typing import Any

from optimum.dendritic import DendriticConfig

from .runs import PRUNED
from .summary import Row, Table
from .task import Card


def conditions(table: Table, card: Card, control: dict[str, Any]) -> dict[str, str]:
    """The texts of the template that tell how the numbers came about."""
    runs, rows = table.runs, table.rows
    seeds = sorted({run["seed"] for run in runs})
    pruned = {run["method"]: run["pruning"] for run in runs if run["pruning"] and not run["variant"]}
    contexts = distinct([timing["report"]["context"] for timing in table.timings])
    return {
        "validation": f"{len(runs[0]['examples']):,}",
        "first_seed": str(seeds[0]),
        "recipe": ", ".join(f"{name} {value}" for name, value in table.recipe.items() if value is not None),
        "pruning": _pruning(pruned),
        "seeds": " ".join(map(str, seeds)),
        "environments": "\n".join(
            f"* Trained on {_environment(e)}." for e in distinct([r["environment"] for r in runs])
        ),
        "timings": "\n".join(
            f"* Measured on {c['device_name']}, {c['threads']} threads, {c['dtype']}, torch {c['torch']}, one sample: "
            f"{', '.join(f'{name} {shape}' for name, shape in c['input_shapes'].items())}."
            for c in contexts
        )
        or "* Bytes, times and memory: not measured.",
        "count": str(len(runs)),
        "minutes": f"{sum(run['train_seconds'] for run in runs) / 60:.0f}",
        "control": _control(control),
        "dense": table.dense.label,
        "shrinkage": ", ".join(map(str, distinct([run["shrinkage"] for run in runs if "shrinkage" in run])))
        or "unused",
        "teacher": "a teacher, the base" if table.recipe.get("distillation") else "no teacher",
        "commands": "\n".join(_commands(table, rows, card)),
    }


def _shrinkage(runs: list[dict[str, Any]]) -> str:
    strengths = distinct([run["shrinkage"] for run in runs if "shrinkage" in run])
    return ", ".join(map(str, strengths)) or "not run"


def _control(settings: dict[str, Any]) -> str:
    """What the second dense control has otherwise."""
    if not settings:
        return "There is no **dense own rate** here: the learning rate is the same."
    listed = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"**dense own rate** differs by {listed}."


def _pruning(pruned: dict[str, dict[str, Any]]) -> str:
    """What differs from the defaults, but for level and seed; of a control, what differs from the method."""
    if "dendritic" not in pruned:
        return "not run"
    fields = DendriticConfig().to_dict() | pruned["dendritic"]
    changed = _changes(fields, DendriticConfig().to_dict())
    controls = {method: _changes(own, fields) for method, own in pruned.items()}
    others = "".join(f"; {method} {', '.join(changes)}" for method, changes in controls.items() if changes)
    return (f"defaults but {', '.join(changed)}" if changed else "defaults") + others


def _changes(fields: dict[str, Any], others: dict[str, Any]) -> list[str]:
    own = (name for name in fields if name not in ("sparsity", "seed", "importance") and fields[name] != others[name])
    return [f"{name}={fields[name]}" for name in own]


def _environment(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    return f"{environment['device']}, {environment['threads']} threads; {versions}"


def _commands(table: Table, rows: list[Row], card: Card) -> list[str]:
    script = f"python examples/benchmarks/{card.script}"
    seeds = f"--seeds {' '.join(str(seed) for seed in sorted({run['seed'] for run in table.runs}))}"
    options = " ".join(_option(name, value) for name, value in table.recipe.items() if value is not None)
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
    selected = " ".join(_option(name, table.recipe[name]) for name in card.selects)
    return [
        *commands,
        " ".join(filter(None, (script, "time", seeds, f"--levels {_levels(rows)}", selected))),
        " ".join(filter(None, (script, "render", selected))),
    ]


def _levels(rows: list[Row]) -> str:
    return " ".join(f"{level:g}" for level in sorted({row.level for row in rows if row.level}))


def _option(name: str, value: object) -> str:
    return f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {value}"


def distinct(items: list) -> list:
    """Each item once, in order; they need not be hashable."""
    return [item for i, item in enumerate(items) if item not in items[:i]]
