"""The rows of the MNIST table, and the claims and sentences that follow from them. Reads and writes no file."""

import statistics
from dataclasses import dataclass

LABELS = {
    "dense": "dense",
    "dendritic": "dendritic",
    "dendritic-macs": "dendritic (macs)",
    "magnitude": "magnitude",
    "random": "random",
    "smaller-dense": "smaller dense",
}
CONTROLS = {  # variant -> the controls that are held to the same budget
    "dendritic": ("magnitude", "random", "smaller-dense"),
    "dendritic-macs": ("smaller-dense",),  # of about as many multiplications; the table has the numbers
}


@dataclass(frozen=True)
class Row:
    """One method at one level, over its seeds. Accuracies in percent; what is measured is a share of dense, or None."""

    method: str
    level: float
    accuracies: dict[int, float]  # by seed
    drop: float | None  # mean of the drops against the dense model of the same seed, in points
    parameters: int
    removed: float  # share of all parameters of the dense model
    layers: dict[str, float]  # share of the layer's parameters that is left
    macs: float | None = None
    bytes: float | None = None
    peak_memory: float | None = None
    latency_1: float | None = None
    latency_64: float | None = None

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies.values())

    @property
    def std(self) -> float | None:
        """Of the sample of seeds; None for one seed."""
        return statistics.stdev(self.accuracies.values()) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class Claim:
    text: str
    measured: str
    holds: bool | None  # None: not measured


def summarise(runs: list[dict], timings: list[dict]) -> list[Row]:
    """Rows in the order of `LABELS`, then by level."""
    dense = {run["seed"]: run for run in runs if run["method"] == "dense"}
    if not dense:
        raise ValueError("There is no dense run to compare with: run the train phase with the method dense first.")
    measured = {(timing["method"], timing["sparsity"]): timing["report"]["ratios"] for timing in timings}
    full = next(iter(dense.values()))
    rows = []
    groups = {(run["method"], run["sparsity"]) for run in runs}
    for method, level in sorted(groups, key=lambda group: (list(LABELS).index(group[0]), group[1])):
        own = {r["seed"]: r for r in runs if (r["method"], r["sparsity"]) == (method, level)}
        shared = [100 * (dense[seed]["accuracy"] - own[seed]["accuracy"]) for seed in own if seed in dense]
        parameters = round(statistics.mean(r["parameters"] for r in own.values()))
        ratios = measured.get((method, level), {})
        rows.append(
            Row(
                method=method,
                level=level,
                accuracies={seed: 100 * own[seed]["accuracy"] for seed in sorted(own)},
                drop=statistics.mean(shared) if shared and method != "dense" else None,
                parameters=parameters,
                removed=1 - parameters / full["parameters"],
                layers={
                    name: statistics.mean(r["layer_parameters"][name] for r in own.values()) / count
                    for name, count in full["layer_parameters"].items()
                },
                macs=ratios.get("macs"),
                bytes=ratios.get("bytes"),
                peak_memory=ratios.get("peak_memory_bytes"),
                latency_1=ratios.get("latency_ms_batch_1"),
                latency_64=ratios.get("latency_ms_batch_64"),
            )
        )
    return rows


def claims(rows: list[Row]) -> list[Claim]:
    """What the method promises on this network at 60 %, each held against the number."""
    dense = next(row for row in rows if row.method == "dense")
    found = [Claim("the dense control reaches at least 98.9 %", f"{dense.mean:.2f} %", dense.mean >= 98.9)]
    for row in (row for row in rows if row.method in CONTROLS and row.level == 0.6):
        label = LABELS[row.method]
        limits = [
            ("loses at most 0.12 points of accuracy", row.drop, 0.12, "{:.2f} points"),
            (
                "needs at least 57.1 % less memory for weights",
                None if row.bytes is None else row.bytes,
                0.429,
                "{:.3f} x dense",
            ),
            ("takes at most 0.6 x the time of dense at batch 1", row.latency_1, 0.6, "{:.3f} x dense"),
            ("takes at most 0.6 x the time of dense at batch 64", row.latency_64, 0.6, "{:.3f} x dense"),
        ]
        for text, value, limit, form in limits:
            measured = "not measured" if value is None else form.format(value)
            found.append(
                Claim(f"{label} at 60 % {text}", measured, None if value is None else round(value, 9) <= limit)
            )
    return found


def compare(row: Row, other: Row) -> str:
    """The difference on the same seeds, and whether all seeds agree on its sign.

    >>> base = dict(method="dendritic", level=0.6, drop=0.0, parameters=1, removed=0.0, layers={})
    >>> row = Row(accuracies={0: 99.0, 1: 99.2}, **base)
    >>> compare(row, Row(accuracies={0: 98.0, 1: 98.0}, **base | {"method": "random"}))
    '1.10 points above random in each of 2 seeds'
    """
    differences = [row.accuracies[seed] - other.accuracies[seed] for seed in row.accuracies if seed in other.accuracies]
    if not differences:
        return f"not compared with {LABELS[other.method]}, which shares no seed"
    mean = statistics.mean(differences)
    if all(d > 0 for d in differences) or all(d < 0 for d in differences):
        side = "above" if mean > 0 else "below"
        seeds = f"each of {len(differences)} seeds" if len(differences) > 1 else "the one seed that was run"
        return f"{abs(mean):.2f} points {side} {LABELS[other.method]} in {seeds}"
    return f"not separable from {LABELS[other.method]} ({mean:+.2f} points; the seeds disagree)"


def findings(rows: list[Row]) -> list[str]:
    """One sentence for each variant and level, against dense and every control at that level."""
    dense = next(row for row in rows if row.method == "dense")
    sentences = []
    for row in (row for row in rows if row.method in CONTROLS):
        others = [dense, *(r for r in rows if r.method in CONTROLS[row.method] and r.level == row.level)]
        compared = "; ".join(compare(row, other) for other in others)
        sentences.append(f"{LABELS[row.method].capitalize()}, {row.level:.0%}: {accuracy(row)} % is {compared}.")
    return sentences


def accuracy(row: Row) -> str:
    return f"{row.mean:.2f}" + ("" if row.std is None else f" ± {row.std:.2f}")
