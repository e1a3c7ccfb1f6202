"""Batches to calibrate and to judge by: keyword arguments of a model's forward, with labels where a loss is needed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import invalid
from .example_inputs import is_empty, shapes

LabelledBatch = Mapping[str, Any]
REMEDY = "Put labels into every batch (for a causal language model: labels = input_ids)."


def as_batches(batches: Any) -> list[LabelledBatch]:
    """The batches as a list of keyword arguments.

    Raises:
        DendriticError: `batches` is not an iterable, is empty, or holds anything but mappings with tensors of
            at least one sample.
    """
    remedy = "Pass a list of batches, each with keyword arguments of model.forward, or a DataLoader of them."
    try:
        found = [] if isinstance(batches, Mapping | Tensor) else list(batches)
    except TypeError:
        raise invalid("batches", type(batches).__name__, "must be an iterable of batches", remedy) from None
    if not found:
        raise invalid("batches", type(batches).__name__, "holds no batches", remedy)
    for batch in found:
        if not isinstance(batch, Mapping) or not any(isinstance(value, Tensor) for value in batch.values()):
            raise invalid("batches", type(batch).__name__, "every batch must be a mapping with tensors", remedy)
        if is_empty(batch):
            raise invalid("batches", shapes(batch), "every batch must hold a sample", "Leave the empty ones out.")
    return found


def on_device(model: nn.Module, batch: LabelledBatch) -> dict[str, Any]:
    """A batch with its tensors on the device of the model."""
    device = next(model.parameters()).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
