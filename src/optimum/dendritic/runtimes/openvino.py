"""OpenVINO: a packed or dense model as an IR file for Intel's runtime, checked against the model before it is kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .exporters import Runtime, export_to
from .int8 import Calibration, openvino_quantizer

OPENVINO = Runtime(
    format="openvino",
    what="OpenVINO model",
    file="openvino_model.xml",
    packages=("openvino",),
    quantizer=openvino_quantizer,
    options={"config": {"INFERENCE_PRECISION_HINT": "f32"}},
)


def export_openvino(
    model: nn.Module,
    example_inputs: Mapping[str, Any],
    folder: str | Path,
    *,
    processor: Any = None,
    int8: bool = False,
    calibration: Calibration | None = None,
) -> Path:
    """Write `openvino_model.xml`, its weights in `openvino_model.bin`, `config.json` and `export.json` into `folder`.

    Batch and sequence are left open, as by `export_onnx`. OpenVINO runs the model on its CPU device, on the same cases,
    and it is kept only if its outputs are those of the model. For that OpenVINO is told to compute in float32
    (`INFERENCE_PRECISION_HINT`): on a processor with bfloat16 units it otherwise rounds to bfloat16.

    Args:
        model: packed, loaded or stock, in float32 or float16; it is not changed.
        example_inputs: keyword arguments of `model.forward`, each tensor `(batch, ...)`; labels are left out.
        folder: created if it does not exist; files of these names are replaced.
        processor: a tokenizer or image processor to save beside it.
        int8: whether to quantize the weights, by NNCF, or, with
            `calibration`, everything. Its outputs are then held to be within a quarter of the largest one.
        calibration: some hundred samples, in batches of the form of `example_inputs`.

    Returns:
        Path of `openvino_model.xml`.

    Raises:
        DendriticError: the model is injected and not yet packed, or of another dtype; or the file has other outputs,
            and nothing was written.
        ImportError: the extra `openvino`, or a transformers with exporters, is missing.
    """
    return export_to(OPENVINO, model, example_inputs, folder, processor, int8=int8, calibration=calibration)
