"""`optimum-cli dendritic compress`: one shot from a trained checkpoint to a packed one, without training."""

import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..compress import compress_
from ..config import DendriticConfig
from ..efficiency.batch import Batch
from ..efficiency.macs import count_macs
from ..efficiency.size import count_parameters, serialised_bytes
from ..huggingface.card.dataset import Data, data_of
from ..huggingface.card.provenance import facts_of, note_evaluation
from ..huggingface.card.write import write_card
from ..inject import inject_
from ..one_shot.prune import prune_
from ..search.allocation import Allocation
from .data import held_out, load_splits, split_of
from .dry_run import planned, told
from .levels_figure import save_levels
from .loading import check_runs, example_inputs, import_modules, load_model, output_folder, write_json
from .requests import configs_of
from .tables import before_and_after, side_by_side
from .tasks import Batches, Task, task_of


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every model of a run is made from.

    Attributes:
        inputs: One sample, to count by.
        task: What the model is for.
        processor: Its tokenizer or image processor.
        calibration: The batches that it is scored on.
        drawn: What these are drawn from.
        evaluation: The batches that it is evaluated on; empty without a split for it.
        unseen: What these are drawn from.
    """

    inputs: Batch
    task: Task
    processor: Any
    calibration: Batches
    drawn: Data | None
    evaluation: Batches
    unseen: Data | None


def run(args: Namespace) -> str:
    """Load, prune, reconstruct, pack and save; return a table of the model before and after.

    Raises:
        DendriticError: an argument names something that does not exist or cannot be compressed.
    """
    configs = configs_of(args)
    import_modules(args.modules)
    model = load_model(args.model, args).eval()
    if args.dry_run and args.dataset is None:
        return _dry_run(args, configs, model, example_inputs(model, args.sequence_length))
    job = _job(args, model)
    if args.dry_run:
        return _dry_run(args, configs, model, example_inputs(model, args.sequence_length), job)
    before = _figures(model, job.inputs, job.task, job.evaluation)
    results = []
    for config in configs:
        folder = Path(args.output) / f"{config.removed:g}" if len(configs) > 1 else Path(args.output)
        model = load_model(args.model, args).eval() if results else model
        results.append(_compressed(args, config, model, job, before, folder))
    if len(configs) > 1:
        write_json(args, {"model": args.model, "dataset": args.dataset, "models": results})
        drawn = save_levels(before, results, Path(args.output) / "sparsities.png")
        figure = "" if drawn is None else f" Drawn in {drawn}."
        return f"{side_by_side(before, results)}\n\nA ratio is the share of dense that is left.{figure}"
    write_json(args, {name: value for name, value in results[0].items() if name != "output"})
    loading = "it loads in stock transformers" if configs[0].native else "load it after `import optimum.dendritic`"
    return f"{before_and_after(before, results[0]['after'])}\n\nSaved in {args.output}; {loading}."


def _job(args: Namespace, model: PreTrainedModel) -> Job:
    """What the dataset gives for the model."""
    task = task_of(model)
    sample = example_inputs(model, args.sequence_length)
    check_runs(model, sample, "MODEL", args.model)
    processor = task.load_processor(args.model, args)
    splits = load_splits(args)
    calibration = task.batches(model, processor, split_of(splits, "--split", args.split), args.samples, args)
    unseen = held_out(splits, args)
    evaluation = [] if unseen is None else task.batches(model, processor, unseen, args.eval_samples, args)
    return Job(
        inputs=Batch.of(sample).to(model.device, model.dtype),
        task=task,
        processor=processor,
        calibration=calibration,
        drawn=_drawn(splits[args.split], calibration),
        evaluation=evaluation,
        unseen=_drawn(unseen, evaluation),
    )


def _compressed(
    args: Namespace,
    config: DendriticConfig,
    model: PreTrainedModel,
    job: Job,
    before: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """One model, saved with its processor and its card; its figures."""
    started = time.perf_counter()
    _note_score(model, job, before, sparsity=0.0)
    allocation = None if args.allocation is None else Allocation.load(args.allocation)
    inject_(model, config, timed_on=job.inputs.kwargs)
    prune_(model, job.calibration, reconstruct=not args.no_reconstruct, allocation=allocation)
    compress_(model)
    after = _figures(model, job.inputs, job.task, job.evaluation)
    _note_score(model, job, after)
    facts_of(model).data = job.drawn
    output_folder(output)
    model.save_pretrained(output)
    job.processor.save_pretrained(output)
    write_card(model, output, measuring=False)
    return {
        "model": args.model,
        "dataset": args.dataset,
        "config": config.to_dict(),
        "reconstruct": not args.no_reconstruct,
        "calibration_samples": _count(job.calibration),
        "evaluation_samples": _count(job.evaluation),
        "before": before,
        "after": after,
        "seconds": time.perf_counter() - started,
        "output": str(output),
    }


def _dry_run(
    args: Namespace,
    configs: list[DendriticConfig],
    model: PreTrainedModel,
    sample: dict[str, Any],
    job: Job | None = None,
) -> str:
    """What each config would leave; nothing is saved."""
    inputs, texts, figures = Batch.of(sample).to(model.device, model.dtype), [], []
    before = _costs(model, inputs)
    for config in configs:
        model = load_model(args.model, args).eval() if texts else model
        planned(model, config, None if job is None else job.calibration, sample)
        after = _costs(model, inputs)
        texts.append(told(model, config, before, after, scored=job is not None))
        figures.append({"config": config.to_dict(), "before": before, "after": after})
    write_json(args, {"model": args.model, "dataset": args.dataset, "dry_run": figures})
    return "\n\n".join(texts)


def _note_score(model: PreTrainedModel, job: Job, figures: dict[str, Any], sparsity: float | None = None) -> None:
    """Record the score of the present weights for the card."""
    if job.task.metric in figures:
        score = {job.task.metric: figures[job.task.metric]}
        note_evaluation(model, score, sparsity=sparsity, data=job.unseen)


def _drawn(split: Any, batches: Batches) -> Data | None:
    """The name of a split, with the number of samples that were drawn from it."""
    data = data_of(split)
    return None if data is None else replace(data, samples=_count(batches))


def _count(batches: Batches) -> int:
    return sum(len(batch["labels"]) for batch in batches)


def _figures(model: PreTrainedModel, inputs: Batch, task: Task, evaluation: Batches) -> dict[str, Any]:
    return _costs(model, inputs) | ({task.metric: task.score(model, evaluation)} if evaluation else {})


def _costs(model: PreTrainedModel, inputs: Batch) -> dict[str, Any]:
    return {
        "parameters": count_parameters(model),
        "bytes": serialised_bytes(model),
        "macs": count_macs(model, inputs),
    }
