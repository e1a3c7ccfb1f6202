"""What a model costs, measured: parameters, bytes, MACs, latency and peak memory, beside those of a baseline."""

from .measure import measure as measure
from .report import EfficiencyReport as EfficiencyReport
