"""The conditions of a measurement, without which its figures mean nothing."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

import torch
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class Context:
    """Where, how and with what a model was measured.

    Attributes:
        device: The device of the model: "cpu" or, for example, "cuda:0".
        device_name: The product name of the device.
        dtype: The dtype of the first floating-point tensor of the model.
        threads: The number of CPU threads.
        batch_sizes: The batch sizes of the latencies; every other figure is for one sample.
        input_shapes: Name or position of an input -> its shape for one sample.
        torch: The version of PyTorch.
        transformers: The version of transformers.
        optimum_dendritic: The version of this package.
        compiled: Whether times and energy are those of the compiled model, on a CPU with its weights frozen.
    """

    device: str
    device_name: str
    dtype: str
    threads: int
    batch_sizes: tuple[int, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    torch: str
    transformers: str
    optimum_dendritic: str
    compiled: bool = False


def describe(
    model: nn.Module,
    *,
    threads: int,
    batch_sizes: tuple[int, ...],
    input_shapes: Mapping[str, tuple[int, ...]],
    compiled: bool = False,
) -> Context:
    """The present conditions of a measurement of `model`."""
    device = device_of(model)
    return Context(
        device=str(device),
        device_name=_name_of(device),
        dtype=str(dtype_of(model)).removeprefix("torch."),
        threads=threads,
        batch_sizes=batch_sizes,
        input_shapes=input_shapes,
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        optimum_dendritic=own_version(),
        compiled=compiled,
    )


def own_version() -> str:
    """The version of this package."""
    try:
        return metadata.version("optimum-dendritic")
    except metadata.PackageNotFoundError:
        return "not installed"


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters, then buffers."""
    return [*model.parameters(), *model.buffers()]


def device_of(model: nn.Module) -> torch.device:
    """The device of the first tensor; the CPU for a model without any."""
    return next((tensor.device for tensor in tensors_of(model)), torch.device("cpu"))


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point tensor; torch's default for a model without any."""
    floating = (tensor.dtype for tensor in tensors_of(model) if tensor.is_floating_point())
    return next(floating, torch.get_default_dtype())


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
