"""The model cards of the benchmarks' models, as they would stand on the Hub: one command makes them all anew.

    python examples/benchmarks/cards.py                 # of every model that is there; wants a quiet machine
    python examples/benchmarks/cards.py --no-measure    # what it costs as it was measured last

Each model is the first seed's of its table (`mnist.py`, `sst2.py`, `cifar10.py`, … train). Its card goes to
`model_cards/<name>/`: README.md, efficiency.json and figures.
"""

import argparse
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging

from optimum.dendritic.huggingface.card.write import write_card
from optimum.dendritic.huggingface.checkpoint.auto_class import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the architectures of the examples


@dataclass(frozen=True)
class Made:
    """A model that a benchmark makes.

    Attributes:
        folder: Where it lies, below the folder of all runs.
        module: The module of `examples` that has its architecture, if it is there.
        batch_size: The batch size of the second latency.
    """

    folder: str
    module: str | None = None
    batch_size: int = 8


MODELS = {
    "mnist-convnet-60": Made("mnist/dendritic-0.6-seed0", "convnet", 64),
    "minilm-sst2-60": Made("sst2/dendritic-0.6-seed0"),
    "minilm-sst2-80": Made("sst2/dendritic-0.8-seed0"),
    "resnet20-cifar10-50": Made("cifar10-resnet20/dendritic-0.5-seed0", "resnet20", 64),
    "vit-cifar10-50": Made("cifar10-vit/dendritic-0.5-seed0", "compact_vit", 64),
    "gpt2-tinyshakespeare-50": Made("shakespeare/dendritic-0.5-seed0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the tables have their runs")
    parser.add_argument("--output", type=Path, default=Path("model_cards"))
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--no-measure", action="store_true")
    args = parser.parse_args()
    logging.disable_progress_bar()
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
    write_card(load(str(runs / made.folder)), folder, measuring=measuring)


if __name__ == "__main__":
    main()
