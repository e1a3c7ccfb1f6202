"""The base and train phases: every run in a stock `Trainer`, saved, loaded again as any user does, and scored.

A training saves a checkpoint after every epoch; one that was killed goes on from there when its command is repeated.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from optimum.dendritic import DendriticCallback, DendriticConfig, last_checkpoint, save_dormant
from optimum.dendritic.huggingface.card.dataset import Data
from optimum.dendritic.huggingface.card.provenance import note_evaluation
from optimum.dendritic.huggingface.card.write import write_card
from optimum.dendritic.structure.targets import target_names

from .averaging import WeightAverage
from .bases import keep, kept, take
from .progress import Progress, history
from .runs import OWN_RATE, PRUNED, SHRINKING, Run, claimed, environment, is_done, planned, write_json
from .shrinkage import GroupShrinkage
from .sizes import sizes
from .soft_labels import cross_entropy, relabel_, soft_labels
from .task import Task
from .teaching import Teaching


def base_phase(task: Task, output_dir: Path) -> None:
    """The base of every seed; what another process makes is left to it."""
    seeds = task.args.seeds if task.args.base_seed is None else [task.args.base_seed]
    _make_all(task, [Run("base", 0.0, seed) for seed in seeds], output_dir, "base")


def keep_phase(task: Task, output_dir: Path) -> None:
    """The finished bases, small, into the repository."""
    for run in (Run("base", 0.0, seed) for seed in task.args.seeds):
        tqdm.write(f"{run.name}: kept in {keep(task, run, output_dir)}")


def train_phase(task: Task, output_dir: Path) -> None:
    """All planned runs that are not there yet. Processes with the same options share the work."""
    _make_all(task, list(planned(task.args, bool(task.control()))), output_dir, "train")


def _make_all(task: Task, runs: list[Run], output_dir: Path, phase: str) -> None:
    for run in tqdm(runs, desc=phase, disable=None):
        path = output_dir / f"{run.name}.json"
        with claimed(path) as mine:
            if not mine or is_done(path, _conditions(task, run)):
                continue
            if run.method != "base":
                for needed in filter(None, (run.base, task.teacher(run))):
                    ensure(task, needed, output_dir)
            _make(task, run, output_dir)


def ensure(task: Task, run: Run, output_dir: Path) -> None:
    """Make `run`, or wait for the process that does."""
    path = output_dir / f"{run.name}.json"
    with claimed(path, wait=True):
        if not is_done(path, _conditions(task, run)):
            _make(task, run, output_dir)


def _make(task: Task, run: Run, output_dir: Path) -> None:
    found = None if task.args.train_bases else kept(task, run)
    if found is not None:
        result = take(task, run, found, output_dir)
        write_json(output_dir / f"{run.name}.json", result)
        tqdm.write(f"{run.name}: {result['score']:.4f}, kept in {found}; --train_bases would train it")
        return
    result = train_one(task, run, output_dir)
    write_json(output_dir / f"{run.name}.json", result)
    shutil.rmtree(_unfinished(run, output_dir))
    tqdm.write(f"{run.name}: {result['score']:.4f}, {result['train_seconds']:.0f} s")


def train_one(task: Task, run: Run, output_dir: Path) -> dict[str, Any]:
    """Train, save under `output_dir / run.name`, and score what plain `from_pretrained` gives back."""
    set_seed(run.seed)
    last = len(task.stages()) - 1
    due, start = range(last, last + 1), None
    config = None
    if run.method == "base":
        start = task.start(run)
        model, due = (task.fresh(), range(last)) if start is None else (task.load(start), range(1, last))
    elif run.method == "smaller-dense":
        model, untrained = task.smaller(run.level, output_dir / run.base.name)
        due = range(last + 1) if untrained else due
    else:
        model = task.load(output_dir / run.base.name)
        config = pruning_config(task, run) if run.method in PRUNED else None
    targets = target_names(model, config or pruning_config(task, run))
    if config is not None:
        _note_dense_score(task, run, model, output_dir)
    unfinished = _unfinished(run, output_dir)
    unfinished.mkdir(exist_ok=True)
    if not is_done(unfinished / "conditions.json", _conditions(task, run)):  # checkpoints of no other recipe
        write_json(unfinished / "conditions.json", _conditions(task, run))
    epochs: list[dict[str, float]] = []
    steps = 0
    for stage in due:
        folder = unfinished / f"stage{stage}"
        checkpoint = last_checkpoint(folder)
        if checkpoint is not None and config is None:  # the Trainer drops tensors that have other names in the files
            model = task.load(Path(checkpoint))
        soft = soft_labels(task, stage, model, unfinished) if stage < last else None
        decay = task.averaging(stage) if stage < last else None
        average = None if decay is None else WeightAverage(decay)
        callbacks = _callbacks(task, run, config, output_dir) if stage == last and run.method != "base" else []
        callbacks += [Progress(task, run, average), *([average] if average else [])]
        trainer = _trainer(task, run, model, stage, folder, callbacks, soft)
        steps += trainer.train(resume_from_checkpoint=checkpoint).global_step
        epochs += [{"stage": stage, **epoch} for epoch in history(trainer.state)]
    trainer.save_model(str(unfinished / "model"))
    if config is not None and config.dormant is not None and trainer.model is not None:
        save_dormant(trainer.model, unfinished / "model")
    if config is not None and config.sizes:
        shutil.copytree(unfinished / f"stage{last}" / "sizes", unfinished / "model" / "sizes")
    finished = output_dir / run.name
    shutil.rmtree(finished, ignore_errors=True)
    (unfinished / "model").rename(finished)
    saved = task.load(finished)
    score = task.score(saved)
    if config is not None:  # the model, as it was trained, knows its history; optimum-cli dendritic card adds the costs
        assert isinstance(trainer.model, PreTrainedModel)
        note_evaluation(trainer.model, {task.card().metric_id: score.value}, step=steps, data=_validation(task))
        write_card(trainer.model, finished, measuring=False)
    return {
        **_conditions(task, run),
        **run.to_dict(),
        "metric": task.metric.name,
        "score": score.value,
        "examples": score.examples,
        **score.extras,
        **sizes(saved, task.example_inputs(), targets),
        "steps": steps,
        "start": None if start is None else start.name,
        "epochs": epochs,
        "train_seconds": sum(epoch["seconds"] for epoch in epochs),
        "train_cpu_seconds": sum(
            epoch["cpu_seconds"] for epoch in epochs
        ),  # of all threads; the same on a busy machine
        "samples": task.samples(),
        "environment": environment(),
    }


def _unfinished(run: Run, output_dir: Path) -> Path:
    return output_dir / f"{run.name}.unfinished"


def pruning_config(task: Task, run: Run) -> DendriticConfig:
    """What `run` hands to the callback; for a run that prunes nothing, what its targets would be."""
    importance = {SHRINKING: "magnitude"}.get(run.method, run.method) if run.method in PRUNED else "dendritic"
    fields = {"importance": importance, "seed": run.seed, "sparsity": run.level}
    fields |= {**task.pruning(importance), **run.changes}
    return DendriticConfig(**{name: value for name, value in fields.items() if name != "distillation" or value})


def _callbacks(task: Task, run: Run, config: DendriticConfig | None, output_dir: Path) -> list[TrainerCallback]:
    """Of the last stage: what prunes, if anything does, and the teacher, who is the same for all."""
    weight = pruning_config(task, run).distillation or 0.0
    teacher = task.load(output_dir / (task.teacher(run) or run.base).name) if weight else None
    if config is None:
        return [Teaching(teacher, weight)] if teacher is not None else []
    shrinking = [GroupShrinkage(config, task.shrinkage)] if run.method == SHRINKING else []
    inputs = {name: tensor[: task.traced_samples] for name, tensor in task.example_inputs().items()}
    pruning = DendriticCallback(config, teacher=teacher, example_inputs=inputs, pack_at_freeze=task.pack_at_freeze)
    return [pruning, *shrinking]


def _trainer(
    task: Task,
    run: Run,
    model: nn.Module,
    stage: int,
    folder: Path,
    callbacks: list[TrainerCallback],
    soft: Tensor | None,
) -> Trainer:
    dataset, collator = task.train_data(stage)
    if soft is not None:
        relabel_(dataset, soft)
    control = task.control() if run.method == OWN_RATE else {}
    arguments = task.stages()[stage] | control
    settings = {
        "use_cpu": not torch.cuda.is_available(),
        "seed": run.seed + 1000 * stage,  # no stage draws the samples of another one again
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "logging_steps": 0.02,
        "report_to": "none",
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    optimizer, rate = task.optimizer(stage), {"lr": arguments["learning_rate"]}
    assert isinstance(model, PreTrainedModel)
    trainer = Trainer(
        model=task.trained_form(model),
        args=TrainingArguments(output_dir=str(folder), **settings, **arguments),
        train_dataset=dataset,
        data_collator=collator,
        processing_class=task.processing(),
        callbacks=callbacks,
        optimizer_cls_and_kwargs=None if optimizer is None else (optimizer[0], optimizer[1] | rate),
        compute_loss_func=None if soft is None else cross_entropy,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _note_dense_score(task: Task, run: Run, model: nn.Module, output_dir: Path) -> None:
    base = json.loads((output_dir / f"{run.base.name}.json").read_text())
    metrics = {task.card().metric_id: base["score"]}
    note_evaluation(model, metrics, step=0, sparsity=0.0, data=_validation(task))


def _validation(task: Task) -> Data:
    """What the scores are of. A folder is not a dataset on the Hub, whatever it was made from."""
    local = Path(task.args.dataset).exists()
    name = Path(task.args.dataset).name if local else task.args.dataset
    return Data(name, on_hub=not local, split="validation", samples=task.samples()["validation"])


def _conditions(task: Task, run: Run) -> dict[str, Any]:
    """What must be equal for a finished run to count."""
    pruning = pruning_config(task, run).to_dict() if run.method in PRUNED else None
    recipe = task.base_recipe(task.recipe()) if run.method == "base" else task.recipe()
    shrinkage = {"shrinkage": task.shrinkage} if run.method == SHRINKING else {}
    return json.loads(json.dumps({"recipe": recipe, "changes": run.changes, "pruning": pruning, **shrinkage}))
