"""The model cards of the benchmarks' models, as they would stand on the Hub: one command makes them all anew.

    python examples/benchmarks/cards.py                 # of every model that is there; wants a quiet machine
    python examples/benchmarks/cards.py --no-measure    # what it costs as it was measured last
    python examples/benchmarks/cards.py --from-tables   # without the models, from what is committed of them

Each model is the first seed's of its table (`mnist.py`, `sst2.py`, `cifar10.py`, … train). Its card goes to
`model_cards/<name>/`: README.md, efficiency.json and figures. The score, that of the dense model which was trained as
long, and the costs are those of the table.
"""

import argparse
import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar10 import CLASSES
from tqdm import tqdm
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from optimum.dendritic.huggingface.card.provenance import CONTROL
from optimum.dendritic.huggingface.card.write import write_card, write_record
from optimum.dendritic.huggingface.checkpoint.auto_class import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the architectures of the examples

BASELINE = "the dense model that it was made from"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model that a benchmark makes.

    Attributes:
        folder: Where it lies, below the folder of all runs.
        table: The table in `model_cards` that it is the first seed of, at `level`.
        level: Its level there.
        judged: The dataset, the split and the number of samples (0 if it is not counted) that the scores are of.
        dataset: What it was trained on, as the Hub calls it, where that is known to be the same.
        metric: The name of the score, and what a score of the table is divided by for it.
        license: Of the weights: that of the base model, or of this repository for what it trained from scratch.
        base: The id on the Hub of what it was fine-tuned from.
        labels: The names of its classes.
        tokenizer: Whether its tokenizer lies beside it.
        module: The module of `examples` that has its architecture, if it is there.
        batch_size: The batch size of the second latency.
    """

    folder: str
    table: str
    level: float
    judged: tuple[str, str, int]
    dataset: str | None = None
    metric: tuple[str, float] = ("accuracy", 100)
    license: str = "apache-2.0"
    base: str | None = None
    labels: tuple[str, ...] = ()
    tokenizer: bool = False
    module: str | None = None
    batch_size: int = 8


SST2: dict[str, Any] = {"table": "minilm-sst2", "judged": ("sst2", "validation", 872), "tokenizer": True}
SST2 |= {"base": "sentence-transformers/all-MiniLM-L6-v2", "labels": ("negative", "positive")}
CIFAR10: dict[str, Any] = {"level": 0.5, "judged": ("cifar10", "validation", 5000), "batch_size": 64}
CIFAR10 |= {"dataset": "uoft-cs/cifar10", "labels": CLASSES}
MODELS = {
    "mnist-convnet-60": Made(
        folder="mnist/dendritic-0.6-seed0",
        table="mnist-convnet",
        level=0.6,
        judged=("mnist", "test", 10000),
        dataset="ylecun/mnist",
        labels=tuple("0123456789"),
        module="convnet",
        batch_size=64,
    ),
    "minilm-sst2-60": Made(folder="sst2/dendritic-0.6-seed0", level=0.6, **SST2),
    "minilm-sst2-80": Made(folder="sst2/dendritic-0.8-seed0", level=0.8, **SST2),
    "resnet20-cifar10-50": Made(
        folder="cifar10-resnet20/dendritic-0.5-seed0", table="resnet20-cifar10", module="resnet20", **CIFAR10
    ),
    "vit-cifar10-50": Made(folder="cifar10-vit/dendritic-0.5-seed0", table="vit-cifar10", **CIFAR10),
    "gpt2-tinyshakespeare-60": Made(
        folder="shakespeare/dendritic-0.6-seed0",
        table="gpt2-tinyshakespeare",
        level=0.6,
        judged=("tinyshakespeare", "validation", 0),
        metric=("bits_per_character", 1),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the tables have their runs")
    parser.add_argument("--output", type=Path, default=Path("model_cards"))
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--no-measure", action="store_true")
    parser.add_argument("--from-tables", action="store_true")
    args = parser.parse_args()
    logging.disable_progress_bar()
    if args.from_tables:
        for name in tqdm(args.models):
            from_table(MODELS[name], args.output, args.output / name)
        return
    for name in tqdm([name for name in args.models if (args.runs / MODELS[name].folder / "config.json").exists()]):
        measuring = {"threads": 1, "large_batch": MODELS[name].batch_size}
        card(MODELS[name], args.runs, args.output / name, False if args.no_measure else measuring)
    missing = [name for name in args.models if not (args.output / name / "README.md").exists()]
    if missing:
        print(f"No runs, hence no card: {', '.join(missing)}", file=sys.stderr)


def card(made: Made, runs: Path, folder: Path, measuring: dict[str, int] | bool) -> None:
    """Load as any user does, and write the card of the model into `folder`."""
    if made.module is not None:
        importlib.import_module(made.module)
    folder.mkdir(parents=True, exist_ok=True)
    write_card(load(str(runs / made.folder)), folder, measuring=measuring, license=made.license, base_model=made.base)


def from_table(made: Made, tables: Path, folder: Path) -> None:
    """Write the card from the `efficiency.json` in `folder` and the table, for whoever has not got the model."""
    record = json.loads((folder / "efficiency.json").read_text())
    table = json.loads((tables / f"{made.table}.json").read_text())
    model = stock(made, record["model"]["class"])
    write_record(model, updated(record, made, table), folder, license=made.license, has_processor=made.tokenizer)


def updated(record: dict[str, Any], made: Made, table: dict[str, Any]) -> dict[str, Any]:
    """The record of a model with the score, the dense control and the costs that its table has of the same run."""
    report = next(timing["report"] for timing in table["measured"] if _is_of(timing, made))
    if report["parameters"] != record["efficiency"]["parameters"]:
        raise ValueError(f"{made.table}: the run of seed 0 at {made.level} is another model than that of the card.")
    own, dense = score_in(table, made, "dendritic", made.level), score_in(table, made, "dense", 0.0)
    name, split, samples = made.judged
    judged = {"name": name, "on_hub": False, "split": split} | ({"samples": samples} if samples else {})
    seen = {"name": made.dataset or name, "on_hub": made.dataset is not None}
    control = {"metrics": dense, "weights": CONTROL, "sparsity": 0.0}
    training = {"hyperparameters": hyperparameters(table["recipe"])} | record.get("training", {}) | {"data": seen}
    base = {"base": {"name": made.base, "on_hub": True}} if made.base else {}
    return (
        record
        | base
        | {
            "efficiency": report | {"dense": BASELINE},
            "evaluations": [control, {"metrics": own, "weights": record["model"]["weights"], "data": judged}],
            "training": training,
        }
    )


def hyperparameters(recipe: dict[str, Any]) -> dict[str, Any]:
    """Those of the training that pruned, by the names that a card has for them."""
    names = {"epochs": "epochs1", "steps": "steps1", "batch_size": "batch_size", "learning_rate": "learning_rate1"}
    found = {name: recipe[field] for name, field in names.items() if field in recipe}
    return {"learning_rate": recipe["learning_rate"]} | found | {"precision": "bf16" if recipe["bf16"] else "fp32"}


def score_in(table: dict[str, Any], made: Made, method: str, level: float) -> dict[str, float]:
    """The score of the first seed, by the name of the metric."""
    asked = (method, level, "")
    rows = [row for row in table["rows"] if (row["method"], row["level"], row.get("variant", "")) == asked]
    (metric, unit), (row,) = made.metric, rows
    return {metric: round(row.get("scores", row.get("accuracies"))["0"] / unit, 6)}


def _is_of(timing: dict[str, Any], made: Made) -> bool:
    level = timing.get("level", timing.get("sparsity"))
    return (timing["method"], level, timing["seed"]) == ("dendritic", made.level, 0) and not timing.get("variant")


def stock(made: Made, kind: str) -> PreTrainedModel:
    """A model of the class, of any size, with the names of the classes."""
    labels: dict[str, Any] = {"id2label": dict(enumerate(made.labels))} if made.labels else {}
    if made.module is not None:
        model = vars(importlib.import_module(made.module))[kind]
        return model(model.config_class(**labels))
    small: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    match kind:
        case "BertForSequenceClassification":
            return BertForSequenceClassification(BertConfig(vocab_size=8, **small, **labels))
        case "ViTForImageClassification":
            return ViTForImageClassification(ViTConfig(image_size=16, **small, **labels))
        case "GPT2LMHeadModel":
            return GPT2LMHeadModel(
                GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
            )
    raise ValueError(f"{kind} is the class of none of these models.")


if __name__ == "__main__":
    main()
