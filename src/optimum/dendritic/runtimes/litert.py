"""LiteRT (formerly TensorFlow Lite): a packed or dense model as one file for phones and boards, checked before it is
kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import invalid
from ..nn.waking import asleep
from ..process_state import without_output
from ..structure.example_inputs import as_mapping, tensors_of
from ..structure.probing import quiet
from .comparison import Inputs, bounded_axes, check_exportable, check_on_cpu, needed, staged, verify, without_cache

FILE = "model.tflite"


class _InOrder(nn.Module):
    """The model with its inputs by position and its output tensors alone, in order."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(**dict(zip(self.names, tensors, strict=True)), **without_cache(self.model))
        return tuple(tensors_of(outputs))


def export_litert(
    model: nn.Module, example_inputs: Mapping[str, Any], folder: str | Path, *, processor: Any = None
) -> Path:
    """Write `model.tflite`, and `config.json` of a model that has a config, into `folder`.

    All shapes are those of the example. The inputs of the file are `args_0`, `args_1`, … in the order of the example,
    its outputs `output_0`, …. LiteRT's own interpreter runs the file on the example, and it is kept only if its outputs
    are those of the model.

    Args:
        model: packed, loaded or stock, in float32, on the CPU; it is not changed.
        example_inputs: keyword arguments of `model.forward`, each tensor `(batch, ...)`; labels are left out.
        folder: created if it does not exist; files of these names are replaced.
        processor: a tokenizer or image processor to save beside it.

    Returns:
        Path of `model.tflite`.

    Raises:
        DendriticError: the model is injected and not yet packed, of another dtype or on another device, or
            `litert-torch` cannot convert it; or the file has other outputs, and nothing was written.
        ImportError: the extra `litert` is missing.
    """
    check_exportable(model, (torch.float32,))
    check_on_cpu(model, "LiteRT")
    converter, runtime = needed("litert_torch", "litert"), needed("ai_edge_litert.interpreter", "litert")
    inputs, _ = bounded_axes(as_mapping(model, example_inputs))
    with staged(folder) as staging, quiet(model), asleep(model):
        wrapped = _InOrder(model, list(inputs)).train(model.training)
        try:
            with without_output():
                converter.convert(wrapped, tuple(inputs.values())).export(str(staging / FILE))
        except Exception as error:  # those of the converter have no common class
            rule = f"litert-torch cannot convert it ({type(error).__name__}: {str(error)[:500]})"
            raise invalid("model", type(model).__name__, rule, "Export it to another format.") from error
        interpreter = runtime.Interpreter(model_path=str(staging / FILE))
        verify(model, inputs, lambda feed: _run(interpreter, feed), "LiteRT file")
        if isinstance(model, PreTrainedModel):
            model.config.save_pretrained(staging)
        if processor is not None:
            processor.save_pretrained(staging)
    return Path(folder) / FILE


def _run(interpreter: Any, feed: Inputs) -> list[Tensor]:
    runner = interpreter.get_signature_runner()
    wanted = runner.get_input_details()
    given = {f"args_{place}": tensor.numpy() for place, tensor in enumerate(feed.values())}
    outputs = runner(**{name: given[name].astype(details["dtype"]) for name, details in wanted.items()})
    return [torch.from_numpy(outputs[f"output_{place}"]) for place in range(len(outputs))]
