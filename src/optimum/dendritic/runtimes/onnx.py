"""ONNX: a packed or dense model as one graph that runs without torch, checked against the model before it is kept.

The graph is made by the ONNX exporter of `transformers`. Gathers of packed layers become plain `Gather` nodes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .exporters import Runtime, export_to
from .int8 import Calibration, onnx_quantizer


def without_notes(file: Path) -> None:
    """Take out of a graph what the exporter notes of each node (the line of Python that it comes from): half a megabyte
    of a small BERT, of which no runtime reads anything."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    for each in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    onnx.save(model, file)


ONNX = Runtime(
    format="onnx",
    what="ONNX graph",
    file="model.onnx",
    packages=("onnxruntime", "onnxscript"),
    quantizer=onnx_quantizer,
    finish=without_notes,
)


def export_onnx(
    model: nn.Module,
    example_inputs: Mapping[str, Any],
    folder: str | Path,
    *,
    processor: Any = None,
    int8: bool = False,
    calibration: Calibration | None = None,
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
        int8: whether to quantize matrices and embeddings; inputs are quantized as they come, or, with
            `calibration`, everything. Its outputs are then held to be within a quarter of the largest one.
        calibration: some hundred samples, in batches of the form of `example_inputs`.

    Returns:
        Path of `model.onnx`.

    Raises:
        DendriticError: the model is injected and not yet packed, or has a dtype that ONNX Runtime lacks; or the graph
            has other outputs, and nothing was written.
        ImportError: a package of the extra `onnx`, or a transformers with exporters, is missing.
    """
    return export_to(ONNX, model, example_inputs, folder, processor, int8=int8, calibration=calibration)
