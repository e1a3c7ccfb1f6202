"""The cards of the benchmarks' models have the numbers of their tables, which are those of README."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from optimum.dendritic.huggingface.card.text import number

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "benchmarks"))

cards = importlib.import_module("cards")


@pytest.mark.parametrize("name", cards.MODELS)
def test_a_card_has_the_numbers_of_its_table(name: str):
    remedy = "python examples/benchmarks/cards.py --from-tables"
    folder, made = ROOT / "model_cards" / name, cards.MODELS[name]
    record = json.loads((folder / "efficiency.json").read_text())
    table = json.loads((ROOT / f"model_cards/{made.table}.json").read_text())
    assert cards.updated(record, made, table) == record, remedy
    card, metric = (folder / "README.md").read_text(), made.metric[0]
    scores = [cards.score_in(table, made, *row)[metric] for row in (("dendritic", made.level), ("dense", 0.0))]
    ratios = [ratio for figure, ratio in record["efficiency"]["ratios"].items() if figure != "energy_joules"]
    shown = [*(f"| {number(score)} " for score in scores), *(f"| {ratio:.3f} |" for ratio in ratios)]
    assert [part for part in [*shown, f"license: {made.license}"] if part not in card] == [], remedy
