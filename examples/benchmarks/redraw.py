"""The figures of the tables in `model_cards/`, drawn anew from their JSON files: no run is needed.

python examples/benchmarks/redraw.py
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from harness.figures import draw
from harness.summary import Table

CARDS = Path(__file__).parents[2] / "model_cards"
SHOWN = {  # what is on the vertical axis, and the budget
    "minilm-sst2": ("accuracy %", "params"),
    "minilm-sst2-replaced": ("accuracy %", "params"),
    "resnet20-cifar10": ("accuracy %", "macs"),
    "vit-cifar10": ("accuracy %", "params"),
    "gpt2-tinyshakespeare": ("bits per character", "params"),
    "lstm-sst2": ("accuracy %", "params"),
}


def table(card: str, metric: str) -> Table:
    """What `draw` reads of a table."""
    rows: list[dict[str, Any]] = json.loads((CARDS / f"{card}.json").read_text())["rows"]
    plain = [SimpleNamespace(**row) for row in rows if not row["variant"]]
    return cast(Table, SimpleNamespace(rows=plain, metric=SimpleNamespace(name=metric)))


def main() -> None:
    for card, (metric, budget) in SHOWN.items():
        for figure in draw(table(card, metric), budget, CARDS / f"{card}.md").values():
            print(figure.name)


if __name__ == "__main__":
    main()
