"""How often each token occurs in a Trainer's training data, by which the two factors of an embedding are weighted."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers.utils import logging

from ...config import DendriticConfig
from ...structure.input_embedding import embedding_name
from ...unofficial import calling
from .first_batch import first_dataset, untouched_random_states

logger = logging.get_logger(__name__)

SAMPLES = 20_000  # that are counted at most, spread evenly over the data


def token_counts_of_trainer(model: nn.Module, config: DendriticConfig) -> Tensor | None:
    """Counts of the `input_ids` in the training data of the Trainer whose callbacks are running, `[tokens]`.

    Returns:
        None where the config does not ask for factors, or the data cannot be looked into or is not tokenized yet.
    """
    from transformers import Trainer  # here, since it takes its time and every Trainer has brought it already

    name = None if config.embedding_rank is None else embedding_name(model)
    embedding = None if name is None else model.get_submodule(name)
    trainer = calling(Trainer)
    if not isinstance(embedding, nn.Embedding) or trainer is None:
        return None
    with untouched_random_states():
        try:
            counts = _counted(first_dataset(trainer.train_dataset), embedding.num_embeddings)
        except Exception as error:  # any dataset may fail in any way on samples in another order
            logger.info(f"Tokens are not counted: {type(error).__name__}: {error}")
            return None
    if counts is None or not bool(counts.any()):
        logger.info("Tokens are not counted: the training data has no input_ids. Pass token_counts to weight them.")
        return None
    return counts


def _counted(dataset: Any, tokens: int) -> Tensor | None:
    """None of a stream of samples, which looking at it would use up."""
    if dataset is None or isinstance(dataset, IterableDataset):
        return None
    counts, step = torch.zeros(tokens, dtype=torch.int64), max(1, len(dataset) // SAMPLES)
    for index in range(0, len(dataset), step):
        ids = torch.as_tensor(dataset[index]["input_ids"]).flatten()
        counts += torch.bincount(ids[(ids >= 0) & (ids < tokens)], minlength=tokens)
    return counts
