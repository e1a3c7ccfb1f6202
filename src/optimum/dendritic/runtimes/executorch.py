"""ExecuTorch: a packed or dense model as a program for phones and boards, on the CPU by XNNPACK, checked before it is
kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .comparison import bounded_axes, check_on_cpu
from .exporters import Runtime, export_to

EXECUTORCH = Runtime(
    format="executorch",
    what="ExecuTorch program",
    file="model.pte",
    packages=("executorch",),
    dtypes=(torch.float32,),
    axes=bounded_axes,
)


def export_executorch(
    model: nn.Module, example_inputs: Mapping[str, Any], folder: str | Path, *, processor: Any = None
) -> Path:
    """Write the program `model.pte`, `config.json` and `export.json` into `folder`.

    The memory of a program is planned when it is written: the batch is that of the example, and the sequence of token
    ids and masks may be as long as in the example. The ExecuTorch runtime runs the program on the example and on a
    shorter sequence, and it is kept only if its outputs are those of the model.

    Args:
        model: packed, loaded or stock, in float32, on the CPU; it is not changed.
        example_inputs: keyword arguments of `model.forward`, each tensor `(batch, ...)`; labels are left out.
        folder: created if it does not exist; files of these names are replaced.
        processor: a tokenizer or image processor to save beside it.

    Returns:
        Path of `model.pte`.

    Raises:
        DendriticError: the model is injected and not yet packed, of another dtype or on another device; or the program
            has other outputs, and nothing was written.
        ImportError: the extra `executorch`, or a transformers with exporters, is missing.
    """
    check_on_cpu(model, "XNNPACK")
    return export_to(EXECUTORCH, model, example_inputs, folder, processor)
