"""Example inputs out of a Trainer's own data, made without touching its samplers or anybody's random state."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers.utils import logging

from ...config import DendriticConfig
from ...errors import DendriticError
from ...process_state import kept_random_state
from ...structure.batch_inputs import inputs_from_batch
from ...structure.made_inputs import timed_inputs_for
from ...unofficial import calling, used_columns

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.get_logger(__name__)

SAMPLES = 2  # of which the first is traced; some collators need a second one to compare with


def example_inputs_of_trainer(model: nn.Module, wrapper: nn.Module) -> dict[str, Any] | None:
    """Keyword arguments of `model.forward`, from the first samples of the Trainer whose callbacks are running.

    Args:
        wrapper: what the Trainer calls: `model` itself, or a module that holds it.

    Returns:
        None where it has no training data that can be looked into, or the model runs on nothing of them.
    """
    from transformers import Trainer  # here, since it takes its time and every Trainer has brought it already

    trainer = calling(Trainer)
    if trainer is None:
        return None
    for batch in _first_batches(trainer):
        inputs = inputs_from_batch(model, wrapper, batch)
        if inputs is not None:
            return inputs
    return None


def timed_inputs(model: nn.Module, config: DendriticConfig) -> dict[str, Any] | None:
    """What a model is timed on where the target is a time and nobody says: one sample of the usual size, since those of
    the training data are cut short. None where that cannot be made, or no time is needed."""
    if config.counted != "time":
        return None
    try:
        return timed_inputs_for(model)
    except DendriticError:
        logger.warning("The model is timed on a small sample of the training data: pass example_inputs to say on what.")
        return None


def _first_batches(trainer: "Trainer") -> Iterator[Any]:
    """The first batch of the columns that the Trainer keeps, then that of all columns."""
    dataset, collate = trainer.train_dataset, copy.copy(trainer.data_collator)  # a seeded collator counts its calls
    for kept in (used_columns, lambda trainer, dataset, collate: (dataset, collate)):
        with untouched_random_states():
            try:
                batch = _collated(*kept(trainer, first_dataset(dataset), collate))
            except Exception as error:  # any dataset or collator may fail in any way on samples in another order
                logger.info(f"No example inputs were made of the training data: {type(error).__name__}: {error}")
                continue
        if batch is not None:
            yield batch


def first_dataset(dataset: Any) -> Any:
    """The first one of several datasets, as sentence-transformers trains on them."""
    return next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset


def _collated(dataset: Any, collate: Callable[[list[Any]], Any]) -> Any:
    """None of a stream of samples, which looking at it would use up."""
    if dataset is None or isinstance(dataset, IterableDataset):
        return None
    samples = [dataset[index] for index in range(min(SAMPLES, len(dataset)))]
    return collate(samples) if samples else None


@contextmanager
def untouched_random_states() -> Iterator[None]:
    """Whatever is drawn inside, Python, numpy and PyTorch go on afterwards as if it had not been."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with kept_random_state(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
