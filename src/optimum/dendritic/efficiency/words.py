"""Ratios to a baseline as one says them: "3.9 × faster, 38 % smaller"."""

from collections.abc import Mapping

EQUAL = 0.02  # a ratio this near to 1 is told as equal
LATENCY = "latency_ms_batch_"


def faster(ratio: float, times: str = "×") -> str:
    """What a share of the baseline's time is as a speed-up.

    >>> faster(0.256), faster(1.0), faster(1.25)
    ('3.9 × faster', 'as fast', '1.2 × slower')
    """
    if abs(ratio - 1) <= EQUAL:
        return "as fast"
    return f"{_factor(1 / ratio)} {times} faster" if ratio < 1 else f"{_factor(ratio)} {times} slower"


def smaller(ratio: float) -> str:
    """What a share of the baseline's size is as a reduction.

    >>> smaller(0.62), smaller(1.0), smaller(1.1)
    ('38 % smaller', 'as large', '10 % larger')
    """
    if abs(ratio - 1) <= EQUAL / 2:
        return "as large"
    return f"{100 * abs(1 - ratio):.0f} % {'smaller' if ratio < 1 else 'larger'}"


def in_words(ratios: Mapping[str, float], times: str = "×") -> str:
    """The ratios of a report in one sentence without a full stop; empty where there are none.

    >>> in_words({"bytes": 0.62, "macs": 0.195, "latency_ms_batch_1": 0.256, "latency_ms_batch_8": 0.208})
    '3.9 × faster at batch 1, 4.8 × faster at batch 8, file 38 % smaller, 80 % fewer MACs'
    """
    sizes = sorted((int(name.removeprefix(LATENCY)), name) for name in ratios if name.startswith(LATENCY))
    told = [f"{faster(ratios[name], times)} at batch {size}" for size, name in sizes]
    if "bytes" in ratios:
        told.append(f"file {smaller(ratios['bytes'])}")
    if "macs" in ratios and ratios["macs"] < 1 - EQUAL / 2:
        told.append(f"{100 * (1 - ratios['macs']):.0f} % fewer MACs")
    if "peak_memory_bytes" in ratios:
        told.append(f"peak memory {smaller(ratios['peak_memory_bytes'])}")
    return ", ".join(told)


def _factor(value: float) -> str:
    """With one decimal, two where it is near 1.

    >>> _factor(3.906), _factor(1.25), _factor(1.06), _factor(12.3)
    ('3.9', '1.2', '1.06', '12')
    """
    return f"{value:.2f}" if value < 1.1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"
