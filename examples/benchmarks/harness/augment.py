"""Sentences whose tokens change from epoch to epoch, so that a teacher is asked about more than it was trained on.

Every token is replaced, with some probability, by one of the tokens whose embeddings are nearest (Jiao et al. 2020,
TinyBERT, section 3.3; the nearest by the pretrained model's own embeddings, not GloVe's). The label stays.
"""

import argparse
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from .text import Sentences

NEIGHBOURS = 10
ROWS = 1024  # tokens compared with the vocabulary at once


class Replaced(Dataset):
    """`sentences`, each token replaced with probability `share` by one of its row in `table`, drawn anew every time."""

    def __init__(self, sentences: Sentences, table: Int[Tensor, "vocabulary neighbours"], share: float):
        self.sentences, self.table, self.share = sentences, table, share

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.sentences[index]
        ids = torch.tensor(sample["input_ids"])
        drawn = self.table[ids, torch.randint(self.table.shape[1], ids.shape)]
        return sample | {"input_ids": torch.where(torch.rand(ids.shape) < self.share, drawn, ids).tolist()}


def share(text: str) -> float:
    """A probability from the command line.

    >>> share("0.3")
    0.3
    """
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be in [0, 1]: it is a share, 0.3 and not 30")
    return value


@torch.no_grad()
def nearest_tokens(
    embeddings: Float[Tensor, "vocabulary width"], sentences: Sequence[Collection[int]], fixed: Collection[int]
) -> Int[Tensor, "vocabulary neighbours"]:
    """The tokens of highest cosine similarity to each token of `sentences`; one in `fixed` is not a neighbour of any
    other, and it, like a token of no sentence, has itself alone.
    """
    directions = F.normalize(embeddings, dim=1)
    table = torch.arange(len(directions))[:, None].repeat(1, NEIGHBOURS)
    barred = torch.tensor(sorted(fixed), dtype=torch.long)
    replaceable = sorted({token for ids in sentences for token in ids}.difference(fixed))
    for rows in torch.tensor(replaceable, dtype=torch.long).split(ROWS):
        similarity = directions[rows] @ directions.T
        similarity[:, barred] = -1
        similarity[torch.arange(len(rows)), rows] = -1
        table[rows] = similarity.topk(NEIGHBOURS).indices
    return table
