"""The head of a model: the layers that make its outputs, found by running it with marks."""

from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .channel_reach import SAMPLES
from .example_inputs import as_mapping
from .nan_tracing import OUTPUTS, Tracer
from .probing import quiet

logger = logging.get_logger(__name__)


@torch.no_grad()
def output_layers(model: nn.Module, example_inputs: Any) -> set[str] | None:
    """Names of the layers of one weight whose channels arrive at the model's outputs and at no other such layer.

    A layer that others read, too, is part of the body: every layer that adds to a residual stream arrives at what comes
    out of it. One pass marks all channels of up to `SAMPLES` layers, each in a sample of its own.

    Returns:
        None where the forward pass cannot be traced.
    """
    with quiet(model):
        try:
            tracer = Tracer(model, as_mapping(model, example_inputs))
            positions = tracer.positions()
            called = [name for name in tracer.layers if name in positions]
            found = [_of(tracer, called[start : start + SAMPLES]) for start in range(0, len(called), SAMPLES)]
        except Exception as error:  # any model may fail in any way on NaN
            logger.info(f"What makes the outputs could not be traced: {type(error).__name__}: {error}")
            return None
    return set().union(*found)


def _of(tracer: Tracer, names: list[str]) -> set[str]:
    patterns = {name: torch.zeros(len(names), tracer.widths[name], dtype=torch.bool) for name in names}
    for sample, pattern in enumerate(patterns.values()):
        pattern[sample] = True
    seen = tracer.mark(patterns, len(names))
    passing = {*tracer.followers.values(), *tracer.norms.values()}
    readers = {reader for reader in seen.keys() - passing}
    arrived = {name: {reader for reader in readers if seen[reader][sample].any()} for sample, name in enumerate(names)}
    return {name for name, reached in arrived.items() if reached == {OUTPUTS}}
