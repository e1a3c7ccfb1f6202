"""The words and cells of a card, from the content of `efficiency.json`. What is unknown is left out."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ...config import TARGETS, DendriticConfig
from ...efficiency.report import ABSENT, scaled
from .escape import Markdown, code, in_cell, on_hub, python, words
from .interval import interval_of
from .provenance import CONTROL

Content = Mapping[str, Any]

FIGURES = {
    "parameters": "parameters",
    "bytes": "safetensors file",
    "macs": "MACs, one sample",
    "peak_memory_bytes": "peak memory, batch 1",
    "energy_joules": "energy",
}
WIDE = 88  # characters that a page shows without scrolling
DATA = "evaluated on"  # the name of a column
FORMS = {
    "plain": "became plain smaller layers",
    "gather": "pick their inputs from a tensor that stays wide",
    "scatter": "put their rows into a tensor that stays wide",
    "gather, scatter": "do both: they pick inputs and place rows",
    "whole": "lost nothing",
    "injected": "are masked",
}
WORDS = {
    "steps": "steps",
    "epochs": "epochs",
    "batch_size": "samples a step",
    "learning_rate": "learning rate",
    "lr_scheduler": "schedule",
    "warmup_steps": "warm-up steps",
    "optimizer": "optimizer",
    "weight_decay": "weight decay",
    "precision": "precision",
    "processes": "processes",
    "seed": "seed",
    "sizes": "sparsities in turn",
}


def batches(report: Content) -> list[str]:
    """The batch sizes of its latencies, ascending, as JSON keys."""
    return sorted(report["latency_ms"], key=int)


def shapes_of(report: Content) -> str:
    """The inputs of one sample.

    >>> shapes_of({"context": {"input_shapes": {"input_ids": [1, 128], "attention_mask": [1, 128]}}})
    'input_ids 1 × 128, attention_mask 1 × 128'
    """
    shapes = report["context"]["input_shapes"]
    return ", ".join(f"{name} {' × '.join(map(str, shape))}" for name, shape in shapes.items())


def percent(share: float) -> str:
    """`share` as a percentage with one decimal.

    >>> percent(0.6004)
    '60.0 %'
    """
    return f"{100 * share:.1f} %"


def alternatives(shares: list[float]) -> str:
    """Percentages of which one is meant.

    >>> alternatives([0.5]), alternatives([0.5, 0.8, 0.9])
    ('50.0 %', '50.0 %, 80.0 % or 90.0 %')
    """
    *others, last = map(percent, shares)
    return f"{', '.join(others)} or {last}" if others else last


def number(value: float) -> str:
    """`value` with four significant digits, and with separators of thousands.

    >>> number(0.875612), number(22713216.0), number(2e-5)
    ('0.8756', '22,713,216', '2e-05')
    """
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def cost_rows(report: Content | None) -> list[list[str]]:
    """Figure, dense, this model, ratio; without a baseline the second and the last are left out. First the header."""
    if report is None:
        return []
    dense, ratios = report.get("baseline"), report.get("ratios", {})
    own, theirs = _costs(report), {} if dense is None else _costs(dense)
    rows = [["", "this model"] if dense is None else ["", "dense", "this model", "ratio"]]
    for name, (label, cell) in own.items():
        if cell == ABSENT and (name not in theirs or theirs[name][1] == ABSENT):
            continue
        beside = [] if dense is None else [theirs[name][1] if name in theirs else ""]
        ratio = [] if dense is None else [f"{ratios[name]:.3f}" if name in ratios else ""]
        rows.append([label, *beside, cell, *ratio])
    return rows


def score_rows(record: Content) -> list[list[str]]:
    """Step, share removed and scores of the evaluations to compare: the last one of the model while it was dense, and
    those of its present weights. First the names of the columns."""
    weights = record["model"]["weights"]
    own = [entry for entry in record.get("evaluations", []) if entry["weights"] == weights]
    if not own:
        return []
    dense = dense_evaluation(record)
    metrics = list(dict.fromkeys(name for entry in own for name in entry["metrics"]))
    rows = [["", DATA, "after step", *metrics]]
    for label, entry in (("dense", dense), ("this model", own[-1])):
        if entry is None:
            continue
        step = f"{entry['step']:,}" if "step" in entry else ""
        data = own[-1].get("data") if is_control(entry) else entry.get("data")
        samples = (data or {}).get("samples")
        values = [_score(name, entry["metrics"][name], samples) if name in entry["metrics"] else "" for name in metrics]
        rows.append([label, data_words(data), step, *values])
    return [
        list(row) for row in zip(*(column for column in zip(*rows, strict=True) if _has_entries(column)), strict=True)
    ]


def _score(metric: str, value: float, samples: int | None) -> str:
    """A score, with its interval where the samples are few."""
    ends = interval_of(metric, value, samples)
    return number(value) if ends is None else f"{number(value)} ({ends[0]:.3f} … {ends[1]:.3f})"


def dense_evaluation(record: Content) -> Content | None:
    """That of a dense control that was trained as long, else the last of the model while nothing of it was removed."""
    weights = record["model"]["weights"]
    before = [e for e in record.get("evaluations", []) if e.get("sparsity", 1) <= 0 and e["weights"] != weights]
    return next(filter(is_control, before), before[-1] if before else None)


def is_control(entry: Content) -> bool:
    """Whether an evaluation is that of a dense model that was trained as long."""
    return entry["weights"] == CONTROL


def data_words(data: Content | None) -> Markdown:
    """A dataset with its configuration, split and size, linked where the Hub has it."""
    if data is None:
        return Markdown()
    name = words(data["name"])
    name = f"[{name}](https://huggingface.co/datasets/{data['name']})" if on_hub(data) else name
    config = f" ({words(data['config'])})" if "config" in data else ""
    split = f", {words(data['split'])} split" if "split" in data else ""
    samples = f", {data['samples']:,} samples" if "samples" in data else ""
    return Markdown(f"{name}{config}{split}{samples}")


def source_words(source: Content | None) -> Markdown:
    """A model, linked where the Hub has it."""
    if source is None:
        return Markdown()
    name = source["name"]
    linked = f"[{words(name)}](https://huggingface.co/{name})"
    return Markdown(linked if on_hub(source) else f"the local model {code(name)}")


def config_words(config: Content) -> Markdown:
    """The config as one would write it: `sparsity`, then what differs from the default.

    >>> config_words(DendriticConfig(sparsity=0.8, budget="macs").to_dict())
    'DendriticConfig(sparsity=0.8, budget="macs")'
    """
    default = DendriticConfig().to_dict()
    named = [name for name in config if name in default and (name in TARGETS or config[name] != default[name])]
    named = [name for name in named if name not in TARGETS or config[name] is not None]
    fields = [f"{name}={python(config[name])}" for name in named]
    line = f"DendriticConfig({', '.join(fields)})"
    return Markdown(line if len(line) <= WIDE else "DendriticConfig(\n    " + ",\n    ".join(fields) + ",\n)")


def sizes_words(config: Content) -> str | None:
    """What each of several sizes has lost, as alternatives; None of one size."""
    sizes = config.get("sizes") or []
    return alternatives([config["sparsity"], *sizes]) if sizes else None


def asked_words(config: Content) -> str:
    """What was asked for, as a sentence.

    >>> asked_words(DendriticConfig(speedup=2).to_dict())
    'The model was to become 2 times as fast.'
    """
    asked = {name: config[name] for name in TARGETS if config.get(name) is not None}
    match asked:
        case {"speedup": times}:
            return f"The model was to become {times:g} times as fast."
        case {"latency_ms": limit}:
            return f"The model was to take {limit:g} ms."
        case {"parameters": limit}:
            return f"The model was to have at most {int(limit):,} parameters."
        case {"megabytes": limit}:
            return f"The model was to have at most {limit:g} MB."
    whose = "The model was" if config.get("scope") == "model" else "The target layers were"
    budget = "MACs" if config["budget"] == "macs" else "parameters"
    several = alternatives([asked["sparsity"], *config.get("sizes", ())])
    return f"{whose} to lose {several} of {'its' if 'model' in whose else 'their'} {budget}."


def form_counts(layers: Mapping[str, Content]) -> list[str]:
    """How many layers took which form."""
    whole = {name for name, of in layers.items() if of["parameters"] == of["dense_parameters"]}
    forms = Counter("whole" if name in whole else of["form"].partition(":")[0] for name, of in layers.items())
    return [f"{count} {FORMS.get(form, f'({form})')}" for form, count in forms.most_common()]


def hyperparameter_words(hyperparameters: Content) -> Markdown:
    """The hyperparameters in one line."""
    named = [
        f"{WORDS[name]} {words(number(value) if isinstance(value, float) else value)}"
        for name, value in hyperparameters.items()
        if name in WORDS
    ]
    return Markdown(", ".join(named))


def table(rows: list[list[str]]) -> Markdown:
    """A table in Markdown. The first row is the header; words are aligned left, numbers right."""
    rule = ["---" if name in ("", DATA) else "---:" for name in rows[0]]
    lines = [[in_cell(name) for name in rows[0]], rule, *([in_cell(value) for value in row] for row in rows[1:])]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


def energy_words(report: Content) -> Markdown:
    """The run that the energy was measured in, and by which counters; empty where there was none."""
    energy = report.get("energy")
    if energy is None:
        return Markdown()
    busy = f"{energy['calls']:,} passes in {energy['seconds']:.1f} s, {energy['milliseconds']:.4g} ms each"
    idle = f"{energy['idle_watts']:.3g} W idle in the {energy['idle_seconds']:.1f} s before"
    return Markdown(f"{busy}, at {energy['watts']:.3g} W by {words(energy['source'])}; {idle}")


def _has_entries(column: tuple[str, ...]) -> bool:
    """Whether there is anything in a column under its header; the first holds the labels."""
    return any(column[1:])


def _costs(report: Content) -> dict[str, tuple[str, str]]:
    """Name of a figure -> its label and its cell."""
    cells = {"parameters": f"{report['parameters']:,}", "bytes": scaled(report["bytes"], "B")}
    cells["macs"] = scaled(report["macs"])
    costs = {name: (FIGURES[name], cell) for name, cell in cells.items()}
    for size in batches(report):
        latency = report["latency_ms"][size]
        cell = f"{latency['median']:.3g} ms (p95 {latency['p95']:.3g})"
        costs[f"latency_ms_batch_{size}"] = (f"latency, batch {size}", cell)
    memory, energy = report.get("peak_memory_bytes"), report.get("energy_joules")
    costs["peak_memory_bytes"] = (FIGURES["peak_memory_bytes"], ABSENT if memory is None else scaled(memory, "B"))
    costs["energy_joules"] = (FIGURES["energy_joules"], ABSENT if energy is None else f"{energy:.4g} J")
    return costs
