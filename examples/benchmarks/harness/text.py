"""Labelled sentences as token ids in memory, padded batch by batch; and what all tasks on them share."""

import argparse
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification

from .task import Score, Task

SENTENCE, LABEL = ("sentence", "text"), ("label", "labels")
MEASURED = (8, 128)  # batch and tokens of the example inputs


def column(table: Any, names: Sequence[str]) -> list:
    """The first of `names` that `table` has."""
    found = [name for name in names if name in table.column_names]
    if not found:
        raise ValueError(f"The dataset has columns {table.column_names}, none of {list(names)}.")
    return list(table[found[0]])


class Sentences(Dataset):
    """Token ids and a label for each sentence."""

    def __init__(self, ids: list[list[int]], labels: list[int]):
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class Pad:
    """The collator: ids padded on the right to the longest of the batch, with their attention mask."""

    def __init__(self, token: int):
        self.token = token

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        length = max(len(sample["input_ids"]) for sample in samples)
        ids = torch.full((len(samples), length), self.token)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(samples):
            ids[row, : len(sample["input_ids"])] = torch.tensor(sample["input_ids"])
            mask[row, : len(sample["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([s["labels"] for s in samples])}


class SentenceTask(Task):
    """Classification of sentences. A task says how they become ids and what model reads them; its options name the
    epochs and the learning rates of both stages."""

    @staticmethod
    def add_sentence_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dataset", default="stanfordnlp/sst2")
        parser.add_argument("--max_length", type=int, default=64)

    @abstractmethod
    def encode(self, sentences: list[str]) -> list[list[int]]:
        """Token ids of each sentence, at most `max_length`."""

    @property
    @abstractmethod
    def pad(self) -> Pad:
        """The collator."""

    def stages(self) -> tuple[dict[str, Any], dict[str, Any]]:
        shared = {
            "per_device_train_batch_size": self.args.batch_size,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.06,
            "weight_decay": 0.01,
            "optim": "adamw_torch_fused",
            "bf16": self.args.bf16,
            "train_sampling_strategy": "group_by_length",
            "max_steps": self.args.max_steps or -1,
        }
        first = {"num_train_epochs": self.args.epochs0, "learning_rate": self.args.learning_rate}
        second = {"num_train_epochs": self.args.epochs1, "learning_rate": self.args.learning_rate1}
        return {**shared, **first}, {**shared, **second}

    def load(self, folder: Path) -> nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def train_data(self, stage: int) -> tuple[Dataset, Any]:
        return self.splits["train"], self.pad

    def score(self, model: nn.Module) -> Score:
        hits = correct(model, self.splits["validation"], self.pad)
        return Score(hits.count("1") / len(hits), hits)

    def example_inputs(self) -> dict[str, Tensor]:
        """Validation sentences one after the other, without padding: every token costs what it costs."""
        ids = torch.tensor([i for sentence in self.splits["validation"].ids for i in sentence])
        tokens = ids[torch.arange(MEASURED[0] * MEASURED[1]) % len(ids)].view(MEASURED)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def samples(self) -> dict[str, int]:
        return {name: len(split) for name, split in self.splits.items()}

    @cached_property
    def tables(self) -> dict[str, Any]:
        """The splits as they come."""
        return {name: load_dataset(self.args.dataset, split=name) for name in ("train", "validation")}

    @cached_property
    def splits(self) -> dict[str, Sentences]:
        return {
            name: Sentences(self.encode(column(table, SENTENCE)), column(table, LABEL))
            for name, table in self.tables.items()
        }


@torch.inference_mode()
def correct(model: nn.Module, sentences: Sentences, pad: Pad, batch_size: int = 64) -> str:
    """One character for each sentence, in order: 1 where the largest logit is that of its label."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences.ids[i]))
    found = ["0"] * len(sentences)
    for start in range(0, len(order), batch_size):
        own = order[start : start + batch_size]
        batch = pad([sentences[i] for i in own])
        labels = batch.pop("labels")
        for i, hit in zip(own, (model(**batch).logits.argmax(-1) == labels).tolist(), strict=True):
            found[i] = "1" if hit else "0"
    return "".join(found)
