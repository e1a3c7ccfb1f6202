"""int8 on top of packing: the quantizers of the runtimes, in the one setting that is offered here for each."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import invalid
from ..process_state import without_output
from ..structure.example_inputs import as_mapping
from .plain_linears import with_plain_linears

FURTHEST = 0.25  # of the largest output: an int8 file is held to be of the same model, and not to answer alike
Calibration = Iterable[Mapping[str, Any]]


def quantized(model: nn.Module) -> nn.Module:
    """A copy for inference by PyTorch on the CPU: int8 weights, inputs quantized as they come.

    All linear layers are quantized, those with a gather, too. (`torch.ao.quantization.quantize_dynamic`, which PyTorch
    intends to remove in favour of torchao; for torchao, give `with_plain_linears(model)` to its `quantize_`.)

    Args:
        model: packed, loaded or stock, in float32, on the CPU; it is not changed.

    Raises:
        DendriticError: it is of another dtype.
    """
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes != {torch.float32}:
        names = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise invalid("dtype", names, "must be float32", "Call model.float() first.")
    with without_output():  # it warns that it is to be removed
        plain = with_plain_linears(model).eval()
        return torch.ao.quantization.quantize_dynamic(plain, {nn.Linear, nn.LSTM, nn.GRU}, torch.qint8, inplace=True)


def onnx_quantizer(model: nn.Module, calibration: Calibration | None) -> Any:
    """The quantizer of ONNX Runtime for the exporter: matrices and embeddings in int8, inputs quantized as they come
    or, with samples, everything in int8 (of a model that is
    told of a mask, the products) by the ranges that the samples reach."""
    from onnxruntime.quantization import QuantType
    from transformers.exporters.quantizers.quantizer_onnxruntime import (
        OnnxRuntimeDynamicConfig,
        OnnxRuntimeQuantizer,
        OnnxRuntimeStaticConfig,
    )

    if calibration is None:
        operators = ["MatMul", "Gemm", "Gather", "LSTM"]  # not Conv, which is slower so
        config = OnnxRuntimeDynamicConfig(op_types_to_quantize=operators, weight_type=QuantType.QInt8, per_channel=True)
        return OnnxRuntimeQuantizer(config)
    samples = [as_mapping(model, batch) for batch in calibration]
    masked = any("attention_mask" in sample for sample in samples)
    config = OnnxRuntimeStaticConfig(
        op_types_to_quantize=["MatMul", "Gemm"] if masked else None,  # a mask adds the lowest number: no range for sums
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QInt8,
    )
    return OnnxRuntimeQuantizer(config, calibration_dataset=samples)


def openvino_quantizer(model: nn.Module, calibration: Calibration | None) -> Any:
    """NNCF for the exporter: weights in int8 or, with samples, everything in int8."""
    from transformers.exporters.quantizers.quantizer_nncf import (
        NNCFOpenVINOQuantizer,
        NNCFQuantizationConfig,
        NNCFWeightCompressionConfig,
    )

    if calibration is None:
        return NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig())
    samples = [as_mapping(model, batch) for batch in calibration]
    return NNCFOpenVINOQuantizer(NNCFQuantizationConfig(), calibration_dataset=samples)


Quantizer = Callable[[nn.Module, Calibration | None], Any]
