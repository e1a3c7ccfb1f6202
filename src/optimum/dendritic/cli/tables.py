"""Tables for the terminal: a model before and after, and several models beside each other."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..efficiency.words import in_words

LABELS = {"parameters": "parameters", "bytes": "safetensors file, bytes", "macs": "MACs, one sample"}


def before_and_after(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A row for each figure, and the ratios of whole numbers, also in words."""
    rows = [["", "before", "after", "ratio"]]
    for name, value in before.items():
        rows.append([LABELS.get(name, name), _cell(value), _cell(after[name]), _ratio(after[name], value)])
    ratios = {name: after[name] / before[name] for name in ("bytes", "macs") if before[name]}
    return f"{aligned(rows)}\n\n{in_words(ratios)}"


def side_by_side(before: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """A row for each model, the first of which is the dense one: what is left of each figure, and the score."""
    names = list(before)
    rows = [["sparsity", *(LABELS.get(name, name) for name in names), "saved in"]]
    rows.append(["dense", *(_cell(before[name]) for name in names), ""])
    for result in results:
        after = result["after"]
        cells = [_ratio(after[name], before[name]) or _cell(after[name]) for name in names]
        rows.append([f"{result['config']['sparsity']:g}", *cells, result["output"]])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the header; the first column stands to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _ratio(after: float, before: float) -> str:
    return f"{after / before:.3f}" if isinstance(before, int) and before else ""
