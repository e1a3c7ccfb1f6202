"""`EfficiencyReport`: what a model costs, under which conditions, and what share of a baseline's cost that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from .conditions import Context
from .energy import Energy
from .words import in_words

FORMAT_VERSION = 1
ABSENT = "not measured"


@dataclass(frozen=True)
class Latency:
    """Milliseconds per forward call.

    Attributes:
        median: The median over the blocks.
        p95: The 95th percentile over the blocks.
        blocks: The number of timed blocks, each of one or more calls.
    """

    median: float
    p95: float
    blocks: int


@dataclass(frozen=True)
class EfficiencyReport:
    """Every figure is measured, or None.

    Attributes:
        parameters: The elements of the unique parameters.
        bytes: The size of the safetensors file.
        macs: The multiply-accumulates of a forward pass of one sample.
        latency_ms: Batch size -> `Latency` of a forward pass of the whole batch, in milliseconds.
        peak_memory_bytes: What loading the model and a forward pass of one sample add to a fresh process, at its peak.
        energy_joules: What a forward pass of one sample takes; None where it was not asked for or nothing counts it.
        energy: The run that it was measured in.
        wake_rate: The mean share of the inputs for which what is dormant was computed; None of a model without. Its
            MACs and its latency of one sample are means over all of the example inputs.
        context: The conditions of the measurement.
        baseline: The report of the baseline, measured in turn with this model.
        ratios: This model's figure divided by the baseline's (0.4 is 40 % of the cost), for each figure that both have:
            "parameters", "bytes", "macs", "latency_ms_batch_1", "latency_ms_batch_<large>", "peak_memory_bytes" and
            "energy_joules".
            That of a latency is the median over neighbouring blocks, hence not exactly the ratio of the medians.
    """

    parameters: int
    bytes: int
    macs: int
    latency_ms: Mapping[int, Latency]
    peak_memory_bytes: int | None
    context: Context
    energy_joules: float | None = None
    baseline: EfficiencyReport | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    energy: Energy | None = None
    wake_rate: float | None = None

    def figures(self) -> dict[str, int | float | None]:
        """Every figure under the name that it has in `ratios`; a latency as its median."""
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "macs": self.macs,
            **{f"latency_ms_batch_{size}": latency.median for size, latency in self.latency_ms.items()},
            "peak_memory_bytes": self.peak_memory_bytes,
            "energy_joules": self.energy_joules,
        }

    def to_dict(self) -> dict:
        """Plain JSON types, with the version of this format. Batch sizes become strings, as JSON wants its keys."""
        return {
            "format_version": FORMAT_VERSION,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "macs": self.macs,
            "latency_ms": {str(size): asdict(latency) for size, latency in self.latency_ms.items()},
            "peak_memory_bytes": self.peak_memory_bytes,
            "energy_joules": self.energy_joules,
            "energy": None if self.energy is None else asdict(self.energy),
            "context": asdict(self.context)
            | {
                "batch_sizes": list(self.context.batch_sizes),
                "input_shapes": {name: list(shape) for name, shape in self.context.input_shapes.items()},
            },
            "ratios": dict(self.ratios),
            **({} if self.wake_rate is None else {"wake_rate": self.wake_rate}),
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
        }

    def table(self) -> str:
        """A table for the terminal: one row per figure, with the baseline and the ratio if there is a baseline."""
        return render(self)


def render(report: EfficiencyReport) -> str:
    """A table for the terminal, in ASCII: one row per figure, then the conditions."""
    baseline = report.baseline
    columns = [_cells(report)] if baseline is None else [_cells(baseline), _cells(report)]
    rows = [["", "model"] if baseline is None else ["", "baseline", "model", "ratio"]]
    for key, label in _labels(report).items():
        row = [label, *(cells[key] for cells in columns)]
        if baseline is not None:
            row.append(f"{report.ratios[key]:.3f}" if key in report.ratios else "")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    words = [in_words(report.ratios, times="x"), ""] if report.ratios else []
    return "\n".join([*(line.rstrip() for line in lines), "", *words, *_conditions(report)])


def _line(cells: list[str], widths: list[int]) -> str:
    """The label to the left, the figures to the right."""
    figures = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *figures])


def _labels(report: EfficiencyReport) -> dict[str, str]:
    labels = {"parameters": "parameters", "bytes": "safetensors file", "macs": "MACs, batch 1"}
    for size in report.latency_ms:
        labels[f"latency_ms_batch_{size}"] = f"latency, batch {size}"
        labels[f"latency_ms_batch_{size}_p95"] = "  95th percentile"
    labels |= {"peak_memory_bytes": "peak memory, batch 1", "energy_joules": "energy, batch 1"}
    awake = [each for each in (report, report.baseline) if each is not None and each.wake_rate is not None]
    return labels | ({"wake_rate": "wake rate"} if awake else {})


def _cells(report: EfficiencyReport) -> dict[str, str]:
    cells = {
        "parameters": scaled(report.parameters),
        "bytes": scaled(report.bytes, "B"),
        "macs": scaled(report.macs),
        "peak_memory_bytes": ABSENT if report.peak_memory_bytes is None else scaled(report.peak_memory_bytes, "B"),
        "energy_joules": ABSENT if report.energy_joules is None else f"{report.energy_joules:.4g} J",
    }
    cells["wake_rate"] = "" if report.wake_rate is None else f"{report.wake_rate:.3f}"
    for size, latency in report.latency_ms.items():
        cells[f"latency_ms_batch_{size}"] = f"{latency.median:.4g} ms"
        cells[f"latency_ms_batch_{size}_p95"] = f"{latency.p95:.4g} ms"
    return cells


def scaled(value: int | float, unit: str = "") -> str:
    """Decimal prefixes.

    >>> scaled(22_713_216), scaled(90_868_376, "B"), scaled(12)
    ('22.7 M', '90.9 MB', '12')
    """
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}".rstrip()
        value /= 1000
    return f"{value:.3g} T{unit}"


def _conditions(report: EfficiencyReport) -> list[str]:
    context, baseline = report.context, report.baseline
    dtype = context.dtype
    if baseline is not None and baseline.context.dtype != dtype:
        dtype = f"{dtype} (baseline {baseline.context.dtype})"
    shapes = ", ".join(f"{name} {tuple(shape)}" for name, shape in context.input_shapes.items())
    return [
        f"{context.device} ({context.device_name}), {dtype}, {context.threads} thread(s)"
        f"{', compiled' if context.compiled else ''}; inputs {shapes}",
        *(f"energy of the {name}: {energy_words(e)}" for name, e in _energies(report).items()),
        f"torch {context.torch}, transformers {context.transformers}, optimum-dendritic {context.optimum_dendritic}",
    ]


def _energies(report: EfficiencyReport) -> dict[str, Energy]:
    of = {"baseline": None if report.baseline is None else report.baseline.energy, "model": report.energy}
    return {name: energy for name, energy in of.items() if energy is not None}


def energy_words(energy: Energy) -> str:
    """The run that an energy was measured in."""
    return (
        f"{energy.source}, {energy.calls} calls in {energy.seconds:.1f} s, {energy.milliseconds:.4g} ms each, at "
        f"{energy.watts:.3g} W; {energy.idle_watts:.3g} W idle in the {energy.idle_seconds:.1f} s before"
    )
