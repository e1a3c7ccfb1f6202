"""`EfficiencyReport`: what a model costs, under which conditions, and what share of a baseline's cost that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from .conditions import Context
from .table import render

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Latency:
    """Milliseconds per forward call, over `blocks` timed blocks of one or more calls each."""

    median: float
    p95: float
    blocks: int


@dataclass(frozen=True)
class EfficiencyReport:
    """Every figure is measured, or None.

    Attributes:
        parameters: elements of the unique parameters.
        bytes: size of the safetensors file.
        macs: multiply-accumulates of a forward pass of one sample.
        latency_ms: batch size -> `Latency` of a forward pass of the whole batch, in milliseconds.
        peak_memory_bytes: what loading the model and a forward pass of one sample add to a fresh process, at its peak.
        energy_joules: None, because no counter is read at present.
        context: the conditions.
        baseline: the report of the baseline, measured in turn with this model.
        ratios: this model's figure divided by the baseline's (0.4 is 40 % of the cost), for each figure that both have:
            "parameters", "bytes", "macs", "latency_ms_batch_1", "latency_ms_batch_<large>" and "peak_memory_bytes".
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
            "context": asdict(self.context)
            | {
                "batch_sizes": list(self.context.batch_sizes),
                "input_shapes": {name: list(shape) for name, shape in self.context.input_shapes.items()},
            },
            "ratios": dict(self.ratios),
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
        }

    def table(self) -> str:
        """A table for the terminal: one row per figure, with the baseline and the ratio where there is a baseline."""
        return render(self)
