"""The exporters of `transformers`, and the runners that it brings for what they write: one path for all of them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..nn.waking import asleep
from ..process_state import without_output
from ..structure.example_inputs import as_mapping
from ..structure.probing import quiet
from .comparison import (
    Axes,
    Inputs,
    cases,
    check_exportable,
    needed,
    open_axes,
    staged,
    verify,
    without_cache,
)
from .int8 import FURTHEST, Calibration, Quantizer
from .plain_linears import with_plain_linears


@dataclass(frozen=True)
class Runtime:
    """A runtime that `transformers` exports to.

    Attributes:
        format: The name of the exporter, which is also that of the extra.
        what: What is exported, for errors.
        file: The file to run.
        packages: The modules that must be there.
        dtypes: The dtypes that it runs in.
        axes: The tensors of an example, and the axes of them that are left open.
        quantizer: What makes int8 of it, if anything does.
        options: What its runner is told, so that it computes in the model's precision.
        finish: What is done to the file that was written, before it is run.
    """

    format: str
    what: str
    file: str
    packages: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16)
    axes: Callable[[Mapping[str, Any]], tuple[Inputs, Axes]] = open_axes
    quantizer: Quantizer | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Path], None] | None = None


def export_to(
    runtime: Runtime,
    model: nn.Module,
    example_inputs: Mapping[str, Any],
    folder: str | Path,
    processor: Any,
    *,
    int8: bool = False,
    calibration: Calibration | None = None,
) -> Path:
    """Export a model, run the file on every one of `cases`, and keep it if it answers as the model does.

    Returns:
        Path of the file to run.

    Raises:
        DendriticError: the model cannot be exported, or its file answers otherwise; nothing was written.
        ImportError: a package of the runtime's extra, or a transformers with exporters, is missing.
    """
    check_exportable(model, runtime.dtypes)
    exporter, runner = _found(runtime)
    inputs, axes = runtime.axes(as_mapping(model, example_inputs))
    furthest = FURTHEST if int8 else None
    with staged(folder) as staging, quiet(model), asleep(model), _gradients_asked_for(model):
        quantizer = runtime.quantizer(model, calibration) if int8 and runtime.quantizer is not None else None
        exported = model if quantizer is None else with_plain_linears(model)
        proofs = list(cases(inputs, axes))
        with logging.tqdm(total=1 + len(proofs), desc=f"export to {runtime.format}", unit="step") as bar:
            metadata = _export(exporter, exported, inputs, axes, quantizer, staging)
            if runtime.finish is not None:
                runtime.finish(staging / runtime.file)
            bar.update()
            run = runner.from_program(exporter.load_program(staging / runtime.file), metadata, "cpu", **runtime.options)
            for case in proofs:
                verify(model, case, lambda feed: run(**{k: t.cpu() for k, t in feed.items()}), runtime.what, furthest)
                bar.update()
        if processor is not None:
            processor.save_pretrained(staging)
    return Path(folder) / runtime.file


def _found(runtime: Runtime) -> tuple[Any, Any]:
    """The exporter and the runner of `transformers`; everything that they need is there."""
    for package in runtime.packages:
        needed(package, runtime.format)
    try:
        from transformers.exporters.auto import get_exporter_class, get_runner_class
    except ImportError as error:
        found = f"transformers {transformers.__version__} has no exporters"
        raise ImportError(f"{found}. Install one that has, such as 5.23.") from error
    return get_exporter_class(runtime.format), get_runner_class(runtime.format)


def _export(exporter: Any, model: nn.Module, inputs: Inputs, axes: Axes, quantizer: Any, folder: Path) -> Any:
    """Write the files into `folder`, and return what the runner has to know of them."""
    sample: Any = {**inputs, **without_cache(model)}
    config, stock = exporter.config_class(dynamic_shapes=axes, quantizer=quantizer), cast(PreTrainedModel, model)
    with without_output():  # torch.onnx prints its progress, and warns of the tracer's own calls
        exported = exporter().export(stock, sample, config=config)
        exported.save_pretrained(folder)
    (component,) = exported.components.values()
    return component.metadata


@contextlib.contextmanager
def _gradients_asked_for(model: nn.Module) -> Iterator[None]:
    """An exporter may turn them off; afterwards they are as they were."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
