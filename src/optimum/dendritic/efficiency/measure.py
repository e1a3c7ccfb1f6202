"""`measure`: every figure of one model, and of a baseline in turn with it, in one report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ..errors import invalid
from ..process_state import kept_random_state
from .batch import Batch, ExampleInputs
from .compiled import compiled_forms
from .conditions import describe, device_of, dtype_of, tensors_of
from .energy import measure_energy
from .evaluation_mode import evaluation_mode
from .latency import paired_ratio, summarise, time_in_turn
from .macs import count_macs
from .memory import peak_memory
from .report import EfficiencyReport
from .size import count_parameters, serialised_bytes
from .wakeful import wakeful_of


def measure(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    baseline: nn.Module | None = None,
    large_batch: int = 32,
    threads: int | None = None,
    seconds: int | float = 2.0,
    memory: bool = True,
    energy: bool = False,
    compiled: bool = False,
) -> EfficiencyReport:
    """Measure what inference with `model` costs, and what share of the cost of `baseline` that is.

    The models are left as they are: mode, device, gradients, hooks and the random state do not change.

    Args:
        model: any module; all its tensors on one device.
        example_inputs: what its forward takes, each tensor `(batch, ...)`: a mapping of keyword tensors, a tuple of
            positional ones, or one tensor. They are cut or repeated to the batch sizes, moved to the device, and, where
            floating, to the dtype of each model.
        baseline: the model to compare with, on the same device and for the same inputs.
        large_batch: the batch size of the second latency; the first is that of one sample.
        threads: CPU threads; by default those that torch uses now.
        seconds: time to spend on each latency of each model.
        memory: whether to measure peak memory, which starts a process for each model (see `memory.py`). It runs
            nothing of the calling script but definitions, and those only of a model whose class stands there.
        energy: whether to measure the energy of one sample, over at least ten seconds for each model, where the machine
            has a counter (see `energy.py`). A script that asks for it does so under `if __name__ == "__main__":`.
        compiled: whether to time what `torch.compile` makes of both models, on a CPU with frozen weights, in place of
            the models as they are. Compiling takes its time, and what was compiled before is forgotten.

    Raises:
        DendriticError: a model is not a module, an input is not a tensor, an argument is out of range, or the models
            are on several devices; or one that is to be compiled holds what is dormant.
        ImportError: energy is asked for and the extra `energy` is missing.
    """
    threads = torch.get_num_threads() if threads is None else threads
    _check_positive(large_batch=large_batch, threads=threads, seconds=seconds)
    models = _checked({"model": model} if baseline is None else {"model": model, "baseline": baseline})
    examples = Batch.of(example_inputs)
    sizes = tuple(dict.fromkeys((1, large_batch)))
    with _in_evaluation(models):
        forms = compiled_forms(models) if compiled else models
        reports = [_static(each, examples, sizes, threads, memory, compiled) for each in models]
        blocks = {}  # batch size -> model -> block -> milliseconds
        for size in sizes:
            calls, count = _calls(forms, examples, size)
            found = time_in_turn(calls, threads=threads, seconds=seconds)
            blocks[size] = [[milliseconds / count for milliseconds in each] for each in found]
        if energy:
            reports = [
                _with_energy(report, each, examples, threads) for report, each in zip(reports, forms, strict=True)
            ]
    reports = [
        replace(report, latency_ms={size: summarise(blocks[size][i]) for size in sizes})
        for i, report in enumerate(reports)
    ]
    if baseline is None:
        return reports[0]
    paired = {f"latency_ms_batch_{size}": paired_ratio(*blocks[size]) for size in sizes}
    return replace(reports[0], baseline=reports[1], ratios=_ratios(*reports) | paired)


def _static(
    model: nn.Module, examples: Batch, sizes: tuple[int, ...], threads: int, memory: bool, compiled: bool
) -> EfficiencyReport:
    """The figures of one model that are not timed."""
    batch = _fit(examples, model, 1)
    besides = wakeful_of(model)
    if besides is None:
        macs = count_macs(model, batch)
    else:
        besides.reset()
        every = examples.to(device_of(model), dtype_of(model))
        macs = round(count_macs(model, every) / len(every.samples()))
    rate = None if besides is None else besides.rate
    return EfficiencyReport(
        parameters=count_parameters(model),
        bytes=serialised_bytes(model),
        macs=macs,
        latency_ms={},
        peak_memory_bytes=peak_memory(model, batch, device=device_of(model), threads=threads) if memory else None,
        context=describe(model, threads=threads, batch_sizes=sizes, input_shapes=batch.shapes, compiled=compiled),
        wake_rate=rate,
    )


def _with_energy(report: EfficiencyReport, model: nn.Module, examples: Batch, threads: int) -> EfficiencyReport:
    found = measure_energy(_call(model, _fit(examples, model, 1)), device_of(model), threads=threads)
    return report if found is None else replace(report, energy=found, energy_joules=found.joules)


def _fit(examples: Batch, model: nn.Module, size: int) -> Batch:
    return examples.resized(size).to(device_of(model), dtype_of(model))


def _calls(models: list[nn.Module], examples: Batch, size: int) -> tuple[list[Callable[[], object]], int]:
    """What is timed of each model, and how many forward passes that is. A single sample is the first one; where a model
    wakes for some inputs, it is each of them in turn."""
    if size > 1 or all(wakeful_of(model) is None for model in models):
        return [_call(each, _fit(examples, each, size)) for each in models], 1
    fitted = [examples.to(device_of(each), dtype_of(each)).samples() for each in models]
    return [partial(_run_each, *pair) for pair in zip(models, fitted, strict=True)], len(fitted[0])


def _run_each(model: nn.Module, batches: list[Batch]) -> None:
    for batch in batches:
        batch.run(model)


def _call(model: nn.Module, batch: Batch) -> Callable[[], object]:
    return lambda: batch.run(model)


def _ratios(report: EfficiencyReport, baseline: EfficiencyReport) -> dict[str, float]:
    theirs = baseline.figures()
    return {
        name: figure / base
        for name, figure in report.figures().items()
        if figure is not None and (base := theirs[name])  # neither absent nor zero
    }


@contextlib.contextmanager
def _in_evaluation(models: list[nn.Module]) -> Iterator[None]:
    """Evaluation mode and an untouched random state. One thread at a time, since others would be measured, too."""
    device = device_of(models[0])
    with kept_random_state([device] if device.type == "cuda" else []), evaluation_mode(*models):
        yield


def _checked(models: dict[str, nn.Module]) -> list[nn.Module]:
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            remedy = "Load a checkpoint first, for example with AutoModel.from_pretrained(...)."
            raise invalid(name, type(model).__name__, "must be a torch.nn.Module", remedy)
    devices = {str(tensor.device) for model in models.values() for tensor in tensors_of(model)}
    if len(devices) > 1 or "meta" in devices:
        rule = "all tensors must be on one real device"
        raise invalid(" and ".join(models), sorted(devices), rule, "Move them there with .to(device).")
    return list(models.values())


def _check_positive(*, large_batch: int, threads: int, seconds: int | float) -> None:
    for name, count in {"large_batch": large_batch, "threads": threads}.items():
        if type(count) is not int or count < 1:
            raise invalid(name, count, "must be an integer of at least 1", f"Pass for example {name}=1.")
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise invalid("seconds", seconds, "must be a number greater than 0", "Pass for example seconds=2.0.")
