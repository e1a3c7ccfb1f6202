"""The figures of the tables in `model_cards/`, drawn anew from their JSON files: no run is needed.

python examples/benchmarks/redraw.py
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from analysis import ranking_card
from harness.figures import draw
from harness.summary import Table, label_of

CARDS = Path(__file__).parents[2] / "model_cards"
SHOWN = {  # what is on the vertical axis, and the budget
    "minilm-sst2": ("accuracy %", "params"),
    "minilm-sst2-replaced": ("accuracy %", "params"),
    "minilm-sst2-low-rank": ("accuracy %", "params"),
    "minilm-sst2-whole": ("accuracy %", "params"),
    "mnist-convnet": ("accuracy %", "params"),
    "resnet20-cifar10": ("accuracy %", "macs"),
    "vit-cifar10": ("accuracy %", "params"),
    "gpt2-tinyshakespeare": ("bits per character", "params"),
    "lstm-sst2": ("accuracy %", "params"),
}


def table(card: str, metric: str) -> Table:
    """What `draw` reads of a table."""
    rows: list[dict[str, Any]] = json.loads((CARDS / f"{card}.json").read_text())["rows"]
    plain = [SimpleNamespace(**_named(row)) for row in rows if not row.get("variant")]
    return cast(Table, SimpleNamespace(rows=plain, metric=SimpleNamespace(name=metric)))


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """A row as `summary.Row` has it; the oldest table has its latencies beside its other fields, and no labels."""
    times = {f"latency_ms_batch_{name[8:]}": row[name] for name in row if name.startswith("latency_") and row[name]}
    return {"label": label_of(row["method"]), "ratios": times} | row


def main() -> None:
    for card, (metric, budget) in SHOWN.items():
        for figure in draw(table(card, metric), budget, CARDS / f"{card}.md").values():
            print(figure.name)
    ranking = CARDS / "ranking-resnet20.json"
    ranking_card.draw(json.loads(ranking.read_text()), ranking.with_suffix(".png"))


if __name__ == "__main__":
    main()
