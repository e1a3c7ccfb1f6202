"""`optimum-cli dendritic compress`: one shot from a trained checkpoint to a packed one, without training."""

import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..compress import compress_
from ..config import TARGETS, DendriticConfig
from ..efficiency.batch import Batch
from ..efficiency.macs import count_macs
from ..efficiency.size import count_parameters, serialised_bytes
from ..errors import DendriticError, invalid
from ..huggingface.card.dataset import Data, data_of
from ..huggingface.card.provenance import facts_of, note_evaluation
from ..huggingface.card.write import write_card
from ..inject import inject_
from ..one_shot.prune import prune_
from .data import held_out, load_splits, split_of
from .loading import (
    check_json,
    check_runs,
    example_inputs,
    import_modules,
    load_model,
    output_folder,
    write_json,
)
from .tasks import Batches, Task, task_of

LABELS = {"parameters": "parameters", "bytes": "safetensors file, bytes", "macs": "MACs, one sample"}


def run(args: Namespace) -> str:
    """Load, prune, reconstruct, pack and save; return a table of the model before and after.

    Raises:
        DendriticError: an argument names something that does not exist or cannot be compressed.
    """
    started = time.perf_counter()
    check_json(args)
    config = _config(args)
    output = _output(args)
    import_modules(args.modules)
    model = load_model(args.model, args).eval()
    task = task_of(model)
    sample = example_inputs(model, args.sequence_length)
    check_runs(model, sample, "MODEL", args.model)
    inputs = Batch.of(sample).to(model.device, model.dtype)
    processor = task.load_processor(args.model, args)
    splits = load_splits(args)
    calibration = task.batches(model, processor, split_of(splits, "--split", args.split), args.samples, args)
    unseen = held_out(splits, args)
    evaluation = [] if unseen is None else task.batches(model, processor, unseen, args.eval_samples, args)
    before = _figures(model, inputs, task, evaluation)
    _note_score(model, task, before, data=unseen, evaluation=evaluation, sparsity=0.0)
    inject_(model, config)
    prune_(model, calibration, reconstruct=not args.no_reconstruct)
    compress_(model)
    after = _figures(model, inputs, task, evaluation)
    _note_score(model, task, after, data=unseen, evaluation=evaluation)
    facts_of(model).data = _drawn(splits[args.split], calibration)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    write_card(model, output, measuring=False)
    figures = {
        "model": args.model,
        "dataset": args.dataset,
        "config": config.to_dict(),
        "reconstruct": not args.no_reconstruct,
        "calibration_samples": _count(calibration),
        "evaluation_samples": _count(evaluation),
        "before": before,
        "after": after,
        "seconds": time.perf_counter() - started,
    }
    write_json(args, figures)
    loading = "it loads in stock transformers" if args.native else "load it after `import optimum.dendritic`"
    return _table(before, after) + f"\n\nSaved in {output}; {loading}."


def _note_score(
    model: PreTrainedModel,
    task: Task,
    figures: dict[str, Any],
    *,
    data: Any,
    evaluation: Batches,
    sparsity: float | None = None,
) -> None:
    """Record the score of the present weights for the card."""
    if task.metric in figures:
        score = {task.metric: figures[task.metric]}
        note_evaluation(model, score, sparsity=sparsity, data=_drawn(data, evaluation))


def _drawn(split: Any, batches: Batches) -> Data | None:
    """The name of a split, with the number of samples that were drawn from it."""
    data = data_of(split)
    return None if data is None else replace(data, samples=_count(batches))


def _count(batches: Batches) -> int:
    return sum(len(batch["labels"]) for batch in batches)


def _config(args: Namespace) -> DendriticConfig:
    try:
        fields = (*TARGETS, "budget", "scope", "units", "importance", "seed", "native")
        return DendriticConfig(**{field: vars(args)[field] for field in fields})
    except DendriticError as error:
        raise DendriticError(f"--{error}") from error  # the option has the name of the field


def _output(args: Namespace) -> Path:
    """The folder that the packed model is saved in, created if it does not exist."""
    output = Path(args.output)
    if output.exists() and Path(args.model).exists() and output.samefile(args.model):
        raise invalid("--output", args.output, "holds the model that is compressed", "Name another folder.")
    return output_folder(output)


def _figures(model: PreTrainedModel, inputs: Batch, task: Task, evaluation: Batches) -> dict[str, Any]:
    figures = {
        "parameters": count_parameters(model),
        "bytes": serialised_bytes(model),
        "macs": count_macs(model, inputs),
    }
    return figures | ({task.metric: task.score(model, evaluation)} if evaluation else {})


def _table(before: dict[str, Any], after: dict[str, Any]) -> str:
    rows = [["", "before", "after", "ratio"]]
    for name, value in before.items():
        whole = isinstance(value, int)
        cells = [f"{each:,}" if whole else f"{each:.4f}" for each in (value, after[name])]
        rows.append([LABELS.get(name, name), *cells, f"{after[name] / value:.3f}" if whole and value else ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])
