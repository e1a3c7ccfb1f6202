"""What is asked of every exported file: it is run in its own runtime, on several shapes, and answers as the model does.

Files are written to a folder beside the one that is asked for, and moved there only when all of that has been seen.
"""

import importlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import invalid
from ..layout.layout import Layout
from ..state import layout_of
from ..structure.example_inputs import tensors_of
from ..structure.verification import compared

Inputs = dict[str, Tensor]
Axes = dict[str, dict[int, Any]]  # name of an input -> the axes of it that are left open


def check_exportable(model: nn.Module, dtypes: Collection[torch.dtype]) -> None:
    """Refuse a model that is injected and not packed, or has parameters of other dtypes.

    Raises:
        DendriticError: see above.
    """
    layout = layout_of(model)
    if isinstance(layout, Layout) and not layout.packed:
        rule = "is injected and not packed: its masks would be lost and its pruned weights exported as zeros"
        raise invalid("model", type(model).__name__, rule, "Call compress_(model) first.")
    found = {p.dtype for p in model.parameters()}
    if not found <= set(dtypes):
        names, allowed = (sorted(str(d).removeprefix("torch.") for d in group) for group in (found, dtypes))
        raise invalid("dtype", names, f"is exported from {' or '.join(allowed)} alone", "Call model.float() first.")


def check_on_cpu(model: nn.Module, whose: str) -> None:
    """Refuse a model on another device than the CPU.

    Raises:
        DendriticError: see above.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise invalid("model.device", str(device), f"must be the CPU, where {whose} runs", "Call model.cpu() first.")


def needed(module: str, extra: str) -> Any:
    """A module that an extra of this package brings.

    Raises:
        ImportError: it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{error}. Install it: pip install optimum-dendritic[{extra}]") from error


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, whose files replace those of the same names in `folder` if nothing is raised."""
    folder = Path(folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".export-") as staging:
        yield Path(staging)
        folder.mkdir(exist_ok=True)
        for file in Path(staging).iterdir():
            os.replace(file, folder / file.name)


def open_axes(inputs: Mapping[str, Any]) -> tuple[Inputs, Axes]:
    """The tensors of the example as a batch of at least two samples, since an axis of size one is taken for a constant,
    and the axes that are left open: the batch, and of token ids and masks `(batch, sequence)` the sequence."""
    tensors = _tensors(inputs)
    if len(next(iter(tensors.values()))) == 1:
        tensors = {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
    free = torch.export.Dim.DYNAMIC
    return tensors, {name: {0: free, 1: free} if _is_text(tensor) else {0: free} for name, tensor in tensors.items()}


def bounded_axes(inputs: Mapping[str, Any]) -> tuple[Inputs, Axes]:
    """The same for a runtime that plans its memory ahead: the batch is that of the example, and a sequence is at most
    as long as in the example."""
    tensors, free = _tensors(inputs), torch.export.Dim.DYNAMIC
    return tensors, {name: {1: free(max=t.shape[1])} if _is_text(t) else {} for name, t in tensors.items()}


def cases(inputs: Inputs, axes: Axes) -> list[Inputs]:
    """The example, a shorter sequence of it, and, where the batch is open, other batches."""
    shorter = {name: t[:, : (t.shape[1] + 1) // 2] if 1 in axes[name] else t for name, t in inputs.items()}
    if not all(0 in found for found in axes.values()):
        return [inputs, shorter] if any(axes.values()) else [inputs]
    larger = {name: torch.cat([tensor, tensor[:1]]) for name, tensor in inputs.items()}
    return [inputs, larger, {name: tensor[:1] for name, tensor in shorter.items()}]


def verify(
    model: nn.Module, inputs: Inputs, run: Callable[[Inputs], Any], what: str, furthest: float | None = None
) -> None:
    """Run `inputs` through the model and through what it was exported to.

    Args:
        run: from inputs to outputs of the form that the model gives.
        what: the exported thing, for errors, such as "ONNX graph".
        furthest: the difference that is allowed, as a share of the largest output; by default the rounding of reordered
            sums.

    Raises:
        DendriticError: it does not run, or its outputs differ by more.
    """
    with torch.no_grad():
        expected = [tensor.cpu() for tensor in tensors_of(model(**inputs, **without_cache(model)))]
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    remedy = "Nothing was written; please report it with its config."
    try:
        actual = [tensor.cpu() for tensor in tensors_of(run(inputs))]
    except Exception as error:  # the errors of the runtimes have no common class
        rule = f"its {what} does not run on {shapes}: {error}"
        raise invalid("model", type(model).__name__, rule, remedy) from error
    found = compared(expected, actual, like=next(model.parameters()))
    limit = found.limit if furthest is None else furthest
    if not found.value <= limit:
        far = f"{found.value:.1e} of the largest output, more than {limit:.0e}"
        rule = f"its {what} differs by {far}, on {shapes}"
        raise invalid("model", type(model).__name__, rule, remedy)


def without_cache(model: nn.Module) -> dict[str, bool]:
    """The argument that keeps a causal language model from returning a cache, where there is one."""
    return {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}


def _tensors(inputs: Mapping[str, Any]) -> Inputs:
    """The tensors among the inputs, all of one batch size, and no two axes of text as long as each other."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    if len({len(tensor) for tensor in tensors.values()}) != 1:
        sizes = {name: len(tensor) for name, tensor in tensors.items()}
        raise invalid("example_inputs", sizes, "must share their batch size", "Repeat the shorter ones.")
    for name in [name for name in tensors if name.startswith("decoder_") and _is_text(tensors[name])]:
        tensors[name] = tensors[name][:, 1:]  # two axes that are as long in the example would be taken for one
    return tensors


def _is_text(tensor: Tensor) -> bool:
    """Whether a tensor is token ids or a mask of several tokens."""
    return tensor.dim() == 2 and not tensor.is_floating_point() and tensor.shape[1] > 1
