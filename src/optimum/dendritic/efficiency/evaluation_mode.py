"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """All modules of these models in evaluation mode, and afterwards each in the mode that it had.

    Every module's flag is set by hand: `eval()` and `train()` would overwrite modules that are frozen on purpose.
    """
    flags = {module: module.training for model in models for module in model.modules()}
    try:
        for module in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
