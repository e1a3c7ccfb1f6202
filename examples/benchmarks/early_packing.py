"""What a training saves that packs its model when the mask is final, and what that time buys: MiniLM on SST-2.

    python examples/benchmarks/early_packing.py train     # packed at the end, at the freeze, and with the time spent
    python examples/benchmarks/early_packing.py steps     # a step of the recovery, masked and packed in turn
    python examples/benchmarks/early_packing.py render    # model_cards/early-packing-sst2.json and .md

Options and bases are those of `sst2.py`; whole heads and neurons are pruned. Where the saved time is spent, the climb
is as long as before and the recovery of the small model longer, until the training takes what packing at the end takes:
by what the first seed has measured at that level. Times are the CPU time of the training. `train` resumes. What the
machine does beside a training changes its time by more than a few per cent; `steps` times both forms in turn, by the
clock of the thread that computes.
"""

import argparse
import copy
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness.cli import add_training_options
from harness.comparison import against, mean, percent
from harness.runs import Run, environment, write_json
from harness.training import ensure, pruning_config
from sst2 import Sst2
from torch import nn
from tqdm import tqdm
from two_tasks import calibration, without_labels

from optimum.dendritic import compress_, distill_, inject_, mask_, prune_

UNITS: dict[str, Any] = {"units": ["heads", "neurons"]}
END = 0.4  # of the recipe: where the recovery begins
STEPS = 24  # that are timed
WAYS = {"end": "at the end", "freeze": "at the freeze", "spent": "at the freeze, the saved time spent"}


class EarlySst2(Sst2):
    """Its recovery trains the packed model."""

    pack_at_freeze = True


def run_of(args: argparse.Namespace, seed: int, level: float, end: float = END) -> Run:
    changes = UNITS if end == END else {**UNITS, "end": end}
    return Run("dendritic", level, seed, variant="units", changes=changes, base_seed=args.base_seed)


def early(args: argparse.Namespace, epochs: float, name: str) -> EarlySst2:
    own = argparse.Namespace(**vars(args))
    own.epochs1, own.output_dir = epochs, args.output_dir / name
    own.output_dir.mkdir(exist_ok=True)
    return EarlySst2(own)


def seconds(folder: Path, run: Run) -> float:
    return json.loads((folder / f"{run.name}.json").read_text())["train_cpu_seconds"]


def longer(args: argparse.Namespace, level: float) -> tuple[float, float]:
    """Epochs of the training that spends what packing early saves, to a twentieth, and the share of its climb.

    An epoch of the packed model costs what is left of the time of packing at the freeze without the climb, which costs
    what it costs when the model is packed at the end.
    """
    run = run_of(args, args.seeds[0], level)
    late, soon = seconds(args.output_dir, run), seconds(args.output_dir / "freeze", run)
    small_epoch = (soon - END * late) / ((1 - END) * args.epochs1)
    epochs = round(20 * (args.epochs1 + (late - soon) / small_epoch)) / 20
    return epochs, END * args.epochs1 / epochs


def train(args: argparse.Namespace) -> None:
    task, freezing = Sst2(args), early(args, args.epochs1, "freeze")
    for seed in tqdm(args.seeds, desc="seeds"):
        for level in args.levels:
            run = run_of(args, seed, level)
            ensure(task, run.base, args.output_dir)
            ensure(task, run, args.output_dir)
            _in_folder_of_its_own(freezing, run, args.output_dir)
            epochs, end = longer(args, level)
            _in_folder_of_its_own(
                early(args, epochs, f"spent-{level:g}"), run_of(args, seed, level, end), args.output_dir
            )


def _in_folder_of_its_own(task: Sst2, run: Run, folder: Path) -> None:
    """From the base that all share."""
    own = task.args.output_dir
    if not (own / f"{run.base.name}.json").exists():
        shutil.copytree(folder / run.base.name, own / run.base.name, dirs_exist_ok=True)
        shutil.copy(folder / f"{run.base.name}.json", own)
    ensure(task, run, own)


def time_steps(args: argparse.Namespace) -> None:
    """What a step of the recovery takes of the packed model, as a share of one of the masked model."""
    task, shares = Sst2(args), dict[str, float]()
    base = run_of(args, args.seeds[0], args.levels[0]).base
    ensure(task, base, args.output_dir)
    torch.set_num_threads(1)
    batches = calibration(task, STEPS * args.batch_size, STEPS)
    for level in tqdm(args.levels, desc="steps"):
        masked = task.load(args.output_dir / base.name)
        config, first = pruning_config(task, run_of(args, args.seeds[0], level)), without_labels(task.example_inputs())
        inject_(masked, config, example_inputs={name: value[:1] for name, value in first.items()})  # type: ignore[arg-type]
        prune_(masked, batches[:4], reconstruct=False)
        packed = compress_(copy.deepcopy(masked))
        teacher = task.load(args.output_dir / base.name)
        timed = [_step(task, model, copy.deepcopy(teacher)) for model in (masked, packed)]
        both = [[step(batch) for step in timed] for batch in batches]
        shares[f"{level:g}"] = statistics.median(small / whole for whole, small in both[1:])
    write_json(args.output_dir / "steps.json", {"environment": environment(), "shares": shares})


def _step(task: Sst2, model: nn.Module, teacher: nn.Module) -> Callable[[dict[str, torch.Tensor]], float]:
    """Trains on one batch, and says the seconds that the thread computed."""
    model = task.trained_form(model).train()
    distill_(model, teacher, weight=task.args.distillation).autocast = torch.bfloat16 if task.args.bf16 else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.args.learning_rate1, fused=True)
    masks = any("dendrite_mask" in name for name, _ in model.named_buffers())

    def step(batch: dict[str, torch.Tensor]) -> float:
        start = time.thread_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=task.args.bf16):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if masks:
            mask_(model)
        return time.thread_time() - start

    return step


def found(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The scores and times so far."""
    for seed in args.seeds:
        for level in args.levels:
            for way, folder in {"end": ".", "freeze": "freeze", "spent": f"spent-{level:g}"}.items():
                path = args.output_dir / folder / f"{run_of(args, seed, level).name}.json"
                if path.exists():
                    run = json.loads(path.read_text())
                    about = {"way": way, "seed": seed, "level": level, "steps": run["steps"]}
                    yield (
                        about
                        | {"score": run["score"], "examples": run["examples"]}
                        | {"seconds": run["train_cpu_seconds"]}
                    )


def render(args: argparse.Namespace) -> None:
    whole = json.loads(args.output.read_text())
    rows, precision = whole["rows"], "" if whole["recipe"]["bf16"] else " --no-bf16"
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "# Packing when the mask is final: MiniLM on SST-2",
        "",
        f"Whole heads and neurons; {whole['recipe']['epochs1']:g} epochs from the dense base of the seed, which "
        f"teaches, of which the first {END:.0%} prune. *Time* is the CPU time of the training, as a share of that of "
        f"the same seed that packs at the end. Validation accuracy, seeds {', '.join(map(str, seeds))}, ± one standard "
        "deviation; differences with the paired bootstrap's 95 % interval, in points; "
        f"{whole['environment']['device']}.",
        "",
        f"`python examples/benchmarks/early_packing.py train|steps|render{precision}`",
        "",
        "A *step* is one of the recovery, its teacher included: of the packed model, as a share of one of the masked "
        f"model, both in turn on the same batches, by the thread's clock; {whole['steps']['environment']['device']}. "
        "Whole trainings ran beside others, which scatters their times as much as is saved at 60 %.",
        "",
        "| removed | packed | steps | step | time | accuracy % | against packing at the end |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for level in sorted({row["level"] for row in rows}):
        late = [row for row in rows if (row["way"], row["level"]) == ("end", level)]
        for way, label in WAYS.items():
            own = [row for row in rows if (row["way"], row["level"]) == (way, level)]
            if own:
                steps = f"{statistics.mean(row['steps'] for row in own):.0f}"
                step = "1.00" if way == "end" else f"{whole['steps']['shares'][f'{level:g}']:.2f}"
                cells = [steps, step, _time(own, late), percent(own), "" if way == "end" else against(own, late)]
                lines.append(f"| {level:.0%} | {label} | {' | '.join(cells)} |")
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _time(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    late = {row["seed"]: row["seconds"] for row in others}
    return mean([row["seconds"] / late[row["seed"]] for row in rows if row["seed"] in late])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["train", "steps", "render"])
    parser.add_argument("--levels", type=float, nargs="+", default=list(Sst2.default_levels))
    parser.add_argument("--output", type=Path, default=Path("model_cards/early-packing-sst2.json"))
    add_training_options(parser)
    Sst2.add_options(parser)
    args = parser.parse_args()
    args.output_dir = args.output_dir or Path(Sst2.default_output_dir)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.phase == "train":
        train(args)
    elif args.phase == "steps":
        time_steps(args)
    else:
        steps = json.loads((args.output_dir / "steps.json").read_text())
        about = {"recipe": Sst2(args).recipe(), "environment": environment(), "steps": steps}
        write_json(args.output, {**about, "rows": list(found(args))})
        render(args)


if __name__ == "__main__":
    main()
