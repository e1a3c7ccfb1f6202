"""Labelled sentences as token ids in memory, padded batch by batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

SENTENCE, LABEL = ("sentence", "text"), ("label", "labels")


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
