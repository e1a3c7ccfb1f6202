"""Which packed models run where: the cases that `test_runtimes.py` proves, and that the deployment page shows.

A runtime whose package is not installed is skipped, with its name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from optimum.dendritic.runtimes.executorch import export_executorch
from optimum.dendritic.runtimes.litert import export_litert
from optimum.dendritic.runtimes.onnx import export_onnx
from optimum.dendritic.runtimes.openvino import export_openvino

FAMILIES = {  # of `helpers.models` -> as people know them
    "plain_cnn": "CNN",
    "resnet_basic": "ResNet",
    "vit": "ViT",
    "bert": "BERT",
    "gpt2": "GPT-2",
    "llama": "Llama",
    "t5": "T5",
    "lstm": "LSTM",
}


@dataclass(frozen=True)
class Export:
    """A runtime that packed models are exported to.

    Attributes:
        name: the runtime, as people know it.
        function: what exports.
        package: the module that is skipped without.
        refused: family -> the part of the message that says why it is not exported.
    """

    name: str
    function: Callable[..., Path]
    package: str
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Why:
    """Why a model is refused: model and reason as the page shows them, and the part of the message that says so."""

    model: str
    shown: str
    message: str


EXPORTS = {
    "onnx": Export("ONNX Runtime", export_onnx, "onnxruntime"),
    "openvino": Export("OpenVINO", export_openvino, "openvino"),
    "executorch": Export("ExecuTorch (XNNPACK)", export_executorch, "executorch"),
    "litert": Export("LiteRT", export_litert, "litert_torch", {"llama": "its LiteRT file differs"}),
}

VLLM = {  # model type -> name, blocks whose FFNs differ; test_vllm.py proves each
    "llama": ("Llama", "yes"),
    "mistral": ("Mistral", "yes"),
    "qwen2": ("Qwen2", "yes"),
    "qwen3": ("Qwen3", "refused: norms in its attention"),
}
PER_LAYER = {  # what stock transformers 5.23 makes of `per_layer_config`; test_per_layer_config.py proves each
    ("Llama", "intermediate_size"): False,
    ("Llama", "num_key_value_heads"): False,
    ("BERT", "intermediate_size"): False,
    ("Gemma 4", "intermediate_size"): False,
    ("Gemma 4", "num_attention_heads"): False,
    ("Gemma 4", "num_key_value_heads"): True,
    ("Step 3.7", "intermediate_size"): False,
    ("Step 3.7", "num_attention_heads"): True,
    ("Step 3.7", "num_key_value_heads"): True,
}

GGUF = {  # model_type -> a row of the page: how a model whose blocks differ is written, and one whose blocks are alike
    "llama": ["Llama", "`deci`", "`llama`"],
    "mistral": ["Mistral", "`deci`", "`llama`"],
    "qwen2": ["Qwen2", "`deci`", "`qwen2`"],
    "qwen3": ["Qwen3", "refused: norms in its attention", "`qwen3`"],
}
SPIKING_FORMS = [
    ['packed CNN with average pooling, no gather (`units="structured"`)', "yes, in sinabs and Norse"],
    ["BatchNorm right behind a layer with weights", "yes, as part of the layer"],
    ["a layer with a gather", 'refused: `units="structured"` avoids it'],
    ["GELU, LayerNorm, max pooling, a residual connection, groups of channels", "refused by name"],
]
SPIKING = {  # of `helpers.models` -> why there is no spiking network of it
    "plain_cnn": Why("CNN with max pooling", "max pooling", "max_pool2d.*average pooling"),
    "resnet_basic": Why("ResNet", "max pooling", "max_pool2d.*average pooling"),
    "vit": Why("ViT", "patches become tokens", "flatten.using_ints.*another shape"),
    "bert": Why("BERT", "more than one input", "must be one tensor"),
    "lstm": Why("LSTM", "gates", "no spiking form"),
}
INT8 = [
    ["PyTorch", "`quantized(model)`", "weights, and inputs as they come"],
    ["PyTorch", "torchao on `with_plain_linears(model)`", "weights"],
    ["ONNX Runtime", "`--int8`", "weights and embeddings, and inputs as they come"],
    [
        "ONNX Runtime",
        "`export_onnx(…, int8=True, calibration=batches)`",
        "everything, convolutions too; of a model that is told of a mask, its products",
    ],
    ["OpenVINO", "`--int8`, by NNCF", "weights"],
    ["OpenVINO", "`export_openvino(…, int8=True, calibration=batches)`", "everything"],
]


def needed(package: str) -> None:
    """Skip the test where a package is not installed, and name it."""
    pytest.importorskip(package, reason=f"{package} is not installed")
