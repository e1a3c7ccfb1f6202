"""Quantizers of PyTorch on packed models: what is a plain layer is quantized, and the answers stay near."""

import importlib.util

import pytest
import torch
from helpers.checkpoints import pruned
from helpers.models import Inputs, outputs
from torch import nn

from optimum.dendritic import compress_

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.filterwarnings("default")]


def packed() -> tuple[nn.Module, Inputs]:
    """A BERT of which whole heads and neurons are gone, so that most of its layers are plain smaller ones."""
    model, _, inputs = pruned("bert", segment_size=4096)
    return compress_(model, inputs), inputs


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 0.05 * expected.abs().max())


def test_quantize_dynamic():
    model, inputs = packed()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    kinds = {type(module).__name__ for module in quantized.modules() if type(module).__module__.startswith("torch.ao")}
    assert "Linear" in kinds and near(outputs(quantized, inputs), outputs(model, inputs))


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is absent: pip install .[clients]")
def test_torchao():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, inputs = packed()
    expected = outputs(model, inputs)
    quantize_(model, Int8WeightOnlyConfig())
    assert any(type(p.data).__name__ != "Tensor" for p in model.parameters() if p.dim() == 2)
    assert near(outputs(model, inputs), expected)
