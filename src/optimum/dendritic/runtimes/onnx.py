"""ONNX: a packed or dense model as one graph that runs without torch, checked against the model before it is kept.

The graph is made by the ONNX exporter of `transformers`. Gathers of packed layers become plain `Gather` nodes.
"""

import os
import tempfile
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import invalid
from .layout.layout import Layout
from .process_state import without_output
from .state import layout_of
from .structure.example_inputs import as_mapping, tensors_of
from .structure.probing import quiet
from .structure.verification import compared

FILE = "model.onnx"
Inputs = dict[str, Tensor]


def export_onnx(
    model: nn.Module, example_inputs: Mapping[str, Any], folder: str | Path, *, processor: Any = None
) -> Path:
    """Write `model.onnx` (its weights in `model.onnx.data`), `config.json` and `export.json` into `folder`.

    The batch of every input may have any size, and so may the sequence of token ids and masks; images keep their
    height and width. Causal language models are exported without a cache: token ids in, logits out. The graph is run
    by ONNX Runtime on the example, on a larger batch and on a shorter sequence, and kept only if its outputs are those
    of the model, within the rounding of reordered sums.

    Args:
        model: packed, loaded or stock, in float32 or float16; it is not changed.
        example_inputs: keyword arguments of `model.forward`, each tensor `(batch, ...)`; labels are left out.
        folder: created if it does not exist; files of these names are replaced.
        processor: a tokenizer or image processor to save beside it.

    Returns:
        Path of `model.onnx`.

    Raises:
        DendriticError: the model is injected and not yet packed, or has a dtype that ONNX Runtime lacks; or the graph
            has other outputs, and nothing was written.
        ImportError: a package of the extra `onnx`, or a transformers with exporters, is missing.
    """
    _check(model)
    export = _exporter()
    inputs, shapes = _dynamic(as_mapping(model, example_inputs))
    folder = Path(folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".onnx-") as staging, quiet(model):
        export(model, inputs, shapes, Path(staging))
        for case in _cases(inputs, shapes):
            _verify(model, case, Path(staging) / FILE)
        if processor is not None:
            processor.save_pretrained(staging)
        folder.mkdir(exist_ok=True)
        for file in Path(staging).iterdir():
            os.replace(file, folder / file.name)
    return folder / FILE


def _check(model: nn.Module) -> None:
    layout = layout_of(model)
    if isinstance(layout, Layout) and not layout.packed:
        rule = "is injected and not packed: its masks would be lost and its pruned weights exported as zeros"
        raise invalid("model", type(model).__name__, rule, "Call compress_(model) first.")
    dtypes = {p.dtype for p in model.parameters()}
    if not dtypes <= {torch.float32, torch.float16}:
        names = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise invalid("dtype", names, "is exported from float32 or float16 alone", "Call model.float() first.")


def _exporter() -> Any:
    """`(model, inputs, shapes, folder) -> None`; everything that it needs is there."""
    try:
        import onnxruntime  # noqa: F401  # it checks what is exported
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}. Install it: pip install optimum-dendritic[onnx]") from error
    try:
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter
    except ImportError as error:
        found = f"transformers {transformers.__version__} has no ONNX exporter"
        raise ImportError(f"{found}. Install one that has, such as 5.23.") from error

    def export(model: nn.Module, inputs: Inputs, shapes: dict[str, dict[int, Any]], folder: Path) -> None:
        sample: Any = {**inputs, **_no_cache(model)}
        config, stock = OnnxConfig(dynamic_shapes=shapes), cast(PreTrainedModel, model)
        with without_output():  # torch.onnx prints its progress, and warns of the tracer's own calls
            OnnxExporter().export(stock, sample, config=config).save_pretrained(folder)

    return export


def _dynamic(inputs: dict[str, Any]) -> tuple[Inputs, dict[str, dict[int, Any]]]:
    """The example as a batch of at least two samples, since an axis of size one is taken for a constant, and the axes
    that are left open: the batch, and of token ids and masks `(batch, sequence)` the sequence."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    if len({len(tensor) for tensor in tensors.values()}) != 1:
        sizes = {name: len(tensor) for name, tensor in tensors.items()}
        raise invalid("example_inputs", sizes, "must share their batch size", "Repeat the shorter ones.")
    if len(next(iter(tensors.values()))) == 1:
        tensors = {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
    for name in [name for name in tensors if name.startswith("decoder_") and _text(tensors[name])]:
        tensors[name] = tensors[name][:, 1:]  # two axes that are as long in the example would be taken for one
    free = torch.export.Dim.DYNAMIC
    return tensors, {name: {0: free, 1: free} if _text(tensor) else {0: free} for name, tensor in tensors.items()}


def _text(tensor: Tensor) -> bool:
    """Whether a tensor is token ids or a mask of several tokens."""
    return tensor.dim() == 2 and not tensor.is_floating_point() and tensor.shape[1] > 1


def _cases(inputs: Inputs, shapes: dict[str, dict[int, Any]]) -> list[Inputs]:
    """The example, a larger batch, and one sample of a shorter sequence."""
    larger = {name: torch.cat([tensor, tensor[:1]]) for name, tensor in inputs.items()}
    shorter = {name: t[:1, : (t.shape[1] + 1) // 2] if 1 in shapes[name] else t[:1] for name, t in inputs.items()}
    return [inputs, larger, shorter]


def _verify(model: nn.Module, inputs: Inputs, path: Path) -> None:
    """Raise `DendriticError` if the graph at `path` does not run, or its outputs are not those of `model`."""
    import onnxruntime

    with torch.no_grad():
        outputs = model(**inputs, **_no_cache(model))
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    remedy = "Nothing was written; please report it with its config."
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_outputs()]
        expected = _tensors(outputs, names)
        feed = {node.name: inputs[node.name].cpu().numpy() for node in session.get_inputs()}
        actual = [torch.from_numpy(array) for array in session.run(list(expected), feed)]
    except Exception as error:  # the errors of ONNX Runtime have no common class
        rule = f"its ONNX graph does not run on {shapes}: {error}"
        raise invalid("model", type(model).__name__, rule, remedy) from error
    found = compared(list(expected.values()), actual, like=next(model.parameters()))
    if not found.is_rounding:
        far = f"{found.value:.1e} of the largest output, more than {found.limit:.0e}"
        rule = f"its ONNX graph differs by {far}, on {shapes}"
        raise invalid("model", type(model).__name__, rule, remedy)


def _tensors(outputs: Any, names: list[str]) -> dict[str, Tensor]:
    """The model's outputs by their names in the graph, which may have more (a cache that its model made in passing)."""
    if isinstance(outputs, Mapping):
        return {name: value.cpu() for name, value in outputs.items() if isinstance(value, Tensor)}
    return {name: tensor.cpu() for name, tensor in zip(names, tensors_of(outputs), strict=True)}


def _no_cache(model: nn.Module) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}
