"""An `EfficiencyReport` as a table for the terminal, in ASCII."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import EfficiencyReport

ABSENT = "not measured"


def render(report: EfficiencyReport) -> str:
    """One row per figure, then the conditions."""
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
    return "\n".join([*(line.rstrip() for line in lines), "", *_conditions(report)])


def _line(cells: list[str], widths: list[int]) -> str:
    """The label to the left, the figures to the right."""
    figures = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *figures])


def _labels(report: EfficiencyReport) -> dict[str, str]:
    labels = {"parameters": "parameters", "bytes": "safetensors file", "macs": "MACs, batch 1"}
    for size in report.latency_ms:
        labels[f"latency_ms_batch_{size}"] = f"latency, batch {size}"
        labels[f"latency_ms_batch_{size}_p95"] = "  95th percentile"
    return labels | {"peak_memory_bytes": "peak memory, batch 1", "energy_joules": "energy"}


def _cells(report: EfficiencyReport) -> dict[str, str]:
    cells = {
        "parameters": scaled(report.parameters),
        "bytes": scaled(report.bytes, "B"),
        "macs": scaled(report.macs),
        "peak_memory_bytes": ABSENT if report.peak_memory_bytes is None else scaled(report.peak_memory_bytes, "B"),
        "energy_joules": ABSENT if report.energy_joules is None else f"{report.energy_joules:.4g} J",
    }
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
        f"{context.device} ({context.device_name}), {dtype}, {context.threads} thread(s); inputs {shapes}",
        f"torch {context.torch}, transformers {context.transformers}, optimum-dendritic {context.optimum_dendritic}",
    ]
