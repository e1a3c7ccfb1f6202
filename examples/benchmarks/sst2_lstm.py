"""SST-2 with a bidirectional LSTM over words, several seeds: dendritic pruning against dense training and controls.

    python examples/benchmarks/sst2_lstm.py train
    python examples/benchmarks/sst2_lstm.py time      # the first seed, in turn with its dense model; a quiet machine
    python examples/benchmarks/sst2_lstm.py render    # model_cards/lstm-sst2.md, .json and figures

Every phase resumes, and processes with the same options share the work. The vocabulary is that of the training
sentences. `--dataset` and ablations: see sst2.py.
"""

import argparse
import sys
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.budget import widest_within
from harness.cli import main
from harness.task import Card
from harness.text import SENTENCE, Pad, SentenceTask, column
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recurrent import RecurrentConfig, RecurrentForSequenceClassification  # noqa: E402

PADDING, UNKNOWN = 0, 1
RARE = 2  # a word that is seen less often is unknown


class Sst2Lstm(SentenceTask):
    """Trained from scratch for 5 epochs, then 3 more by every method."""

    default_levels = (0.6, 0.8)
    default_output_dir = "runs/sst2-lstm"
    default_card = "model_cards/lstm-sst2.md"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        SentenceTask.add_sentence_options(parser)
        parser.add_argument("--cell", choices=["lstm", "gru"], default="lstm")
        parser.add_argument("--embedding_size", type=int, default=128)
        parser.add_argument("--hidden_size", type=int, default=256)
        parser.add_argument("--layers", type=int, default=1)
        parser.add_argument("--epochs0", type=float, default=5, help="of the base")
        parser.add_argument("--epochs1", type=float, default=3, help="of every method, from the base")
        parser.add_argument("--learning_rate", type=float, default=1e-3)
        parser.add_argument("--learning_rate1", type=float, default=1e-3, help="of the epochs1")
        parser.add_argument("--distillation", type=float, default=0.0, help="from the base")
        parser.set_defaults(bf16=False)  # recurrent kernels gain nothing from it

    def recipe(self) -> dict[str, Any]:
        names = ("cell", "embedding_size", "hidden_size", "layers", "epochs0", "epochs1", "batch_size", "learning_rate")
        names += ("learning_rate1", "distillation", "max_length", "bf16", "max_steps")
        return {name: getattr(self.args, name) for name in names}

    def control(self) -> dict[str, Any]:
        return {"learning_rate": self.args.learning_rate1 / 10}

    def pruning(self, importance: str = "dendritic") -> dict[str, Any]:
        return {"distillation": self.args.distillation}

    def fresh(self) -> nn.Module:
        return self._model(self.args.hidden_size)

    def smaller(self, level: float, base: Path) -> tuple[nn.Module, bool]:
        """The widest state within the parameters that pruning leaves, trained from scratch by both stages."""
        make = [lambda width=width: self._model(width) for width in range(self.args.hidden_size - 1, 0, -1)]
        return widest_within(self, self.load(base), level, "params", make), True

    def card(self) -> Card:
        cell = self.args.cell.upper()
        return Card(
            script="sst2_lstm.py",
            title=f"Dendritic pruning of a bidirectional {cell} on SST-2",
            description=(
                f"Word embeddings of {self.args.embedding_size}, a bidirectional {cell} of {self.args.hidden_size} "
                "units, the mean over the words and a linear head, trained from scratch on the whole sentences of "
                "SST-2: 6,920 to train on, 872 to validate. The set on the Hub also has their phrases; its results "
                "will differ."
            ),
            pipeline_tag="text-classification",
            dataset_id="stanfordnlp/sst2",
            metric_id="accuracy",
            budget="params",
            tolerances={0.6: 1.0},
            base=f"trained from scratch for {self.args.epochs0:g} epochs",
            second=f"{self.args.epochs1:g} epochs",
            smaller="fewer hidden units, no more parameters than that level leaves; from scratch, through both stages.",
            optimizer="AdamW, linear warm-up over 6 % of the steps, then linear decay",
            targets=f"the {cell}; not the embeddings and not the head",
            selection="Hyper-parameters were not searched for this table.",
            shape=" of 128 words",
        )

    def _model(self, hidden_size: int) -> nn.Module:
        config = RecurrentConfig(
            vocab_size=len(self._words) + 2,
            embedding_size=self.args.embedding_size,
            hidden_size=hidden_size,
            num_hidden_layers=self.args.layers,
            cell=self.args.cell,
            num_labels=2,
        )
        return RecurrentForSequenceClassification(config)

    def encode(self, sentences: list[str]) -> list[list[int]]:
        number = {word: i for i, word in enumerate(self._words, start=2)}
        words = (sentence.lower().split()[: self.args.max_length] for sentence in sentences)
        return [[number.get(word, UNKNOWN) for word in sentence] or [UNKNOWN] for sentence in words]

    @property
    def pad(self) -> Pad:
        return Pad(PADDING)

    @cached_property
    def _words(self) -> list[str]:
        counts = Counter(w for text in column(self.tables["train"], SENTENCE) for w in text.lower().split())
        return sorted(word for word, count in counts.items() if count >= RARE)


if __name__ == "__main__":
    main(Sst2Lstm, __doc__)
