"""At the same speed, does a table of times keep more accuracy than counting parameters or multiplications?

    python examples/benchmarks/equal_latency.py train sst2       # a training for each way of counting
    python examples/benchmarks/equal_latency.py measure sst2     # model_cards/equal-latency-sst2.json
    python examples/benchmarks/equal_latency.py render sst2      # model_cards/equal-latency-sst2.md

`cifar10` likewise. Options and bases are those of `sst2.py` and `cifar10.py`; on SST-2 whole heads and neurons are
pruned. `speedup` is the target of the first way. For the others the sparsity is sought at which the base, pruned in one
shot, is measured to be as fast. All trained models of a seed are then timed in turn with the dense one by the clock of
the thread that computes: one sentence, or a batch of 64 images, since one small image takes what its operations cost to
begin, whatever their size. `train` resumes.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness.cli import shown
from harness.comparison import against, mean, percent
from harness.runs import Run, environment, write_json
from harness.task import Task
from harness.training import ensure, pruning_config
from speed import in_turn, ratio
from torch import nn
from tqdm import tqdm
from two_tasks import CHANGES, TITLES, calibration, parsed, without_labels

from optimum.dendritic import compress_, inject_, prune_

WAYS = {"time": "measured times (`speedup`)", "macs": '`budget="macs"`', "params": '`budget="params"`'}
LEVELS = 0.1, 0.97  # between which a sparsity is sought
TRIES = 7
BATCHES = {"sst2": 1, "cifar10": 64}


def run_of(args: argparse.Namespace, seed: int, speedup: float, way: str) -> Run:
    """The training to this speed; what is not counted in times has the sparsity that was found for it."""
    own = {**CHANGES[args.task], "budget": "params"}
    if way == "time":
        changes, level = {**own, "sparsity": None, "speedup": speedup}, 0.0
    else:
        changes, level = {**own, "budget": way}, sparsity_of(args, speedup, way)
    return Run("dendritic", level, seed, variant=f"{way}-{speedup:g}x", changes=changes, base_seed=args.base_seed)


def timed_inputs(task: Task) -> dict[str, torch.Tensor]:
    return {name: value[: task.traced_samples] for name, value in without_labels(task.example_inputs()).items()}


def share_of_time(models: list[nn.Module], dense: nn.Module, task: Task, seconds: float) -> list[float]:
    """Of each model, against the dense one."""
    torch.set_num_threads(1)
    inputs = timed_inputs(task)
    calls = [lambda model=model: model(**inputs) for model in (dense, *models)]
    timed, *others = in_turn(calls, seconds)
    return [ratio(own[1], timed[1]) for own in others]


def sparsity_of(args: argparse.Namespace, speedup: float, way: str) -> float:
    found: dict[str, float] = json.loads(_sparsities(args).read_text())
    return found[f"{way}-{speedup:g}x"]


def _sparsities(args: argparse.Namespace) -> Path:
    return args.output_dir / f"equal-latency-{args.task}.json"


def seek(task: Task, args: argparse.Namespace) -> None:
    """By bisection, with the base of the first seed."""
    path = _sparsities(args)
    found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    base = Run("dendritic", 0.5, args.seeds[0], base_seed=args.base_seed).base
    ensure(task, base, args.output_dir)
    dense, batches = task.load(args.output_dir / base.name), calibration(task, 128)
    for way, speedup in ((way, speedup) for way in ("macs", "params") for speedup in args.speedups):
        if f"{way}-{speedup:g}x" in found:
            continue
        low, high = LEVELS
        for _ in range(TRIES):
            level = (low + high) / 2
            changes = {**CHANGES[args.task], "budget": way}
            config = pruning_config(task, Run("dendritic", level, args.seeds[0], changes=changes))
            model = task.load(args.output_dir / base.name)
            inject_(model, config, example_inputs=timed_inputs(task))  # type: ignore[arg-type]
            prune_(model, batches, reconstruct=False)
            [share] = share_of_time([task.trained_form(compress_(model).eval())], dense, task, args.seconds)
            tqdm.write(f"{way} {level:.3f}: {1 / share:.2f} times as fast")
            low, high = (level, high) if share > 1 / speedup else (low, level)
        found[f"{way}-{speedup:g}x"] = round((low + high) / 2, 3)
        write_json(path, found)


def train(task: Task, args: argparse.Namespace) -> None:
    seek(task, args)
    for seed in tqdm(args.seeds, desc="seeds"):
        for speedup in args.speedups:
            for way in WAYS:
                run = run_of(args, seed, speedup, way)
                ensure(task, run.base, args.output_dir)
                ensure(task, run, args.output_dir)


def measured(task: Task, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for seed in tqdm(args.seeds, desc="seeds"):
        asked = [(speedup, way, run_of(args, seed, speedup, way)) for speedup in args.speedups for way in WAYS]
        there = [each for each in asked if (args.output_dir / f"{each[-1].name}.json").exists()]
        dense = task.load(args.output_dir / Run("dendritic", 0.5, seed, base_seed=args.base_seed).base.name)
        models = [task.load(args.output_dir / run.name) for _, _, run in there]
        shares = share_of_time(models, dense, task, args.seconds)
        for (speedup, way, run), share in zip(there, shares, strict=True):
            made = json.loads((args.output_dir / f"{run.name}.json").read_text())
            about = {"seed": seed, "speedup": speedup, "way": way, "level": run.level or None, "measured": 1 / share}
            yield about | {name: made[name] for name in ("score", "examples", "parameters", "macs")}


def render(args: argparse.Namespace) -> None:
    whole = json.loads(args.output.read_text())
    rows, seeds = whole["rows"], sorted({row["seed"] for row in whole["rows"]})
    lines = [
        f"# What is counted, where the same speed is asked for: {TITLES[whole['task']]}",
        "",
        "Each trained from the dense base of its seed. The sparsity of what counts multiplications or parameters is "
        "the one at which the base of the first seed, pruned in one shot, was measured to be as fast as is asked. "
        f"*Times as fast* is that of the trained models: batch {whole['batch']}, one thread, each in turn with the "
        f"dense model, by the thread's clock. Validation accuracy, seeds {', '.join(map(str, seeds))}, ± one standard "
        "deviation; differences with the paired bootstrap's 95 % interval, in points; "
        f"{whole['environment']['device']}.",
        "",
        f"`python examples/benchmarks/equal_latency.py train|measure|render {whole['options']}`",
        "",
        "| asked | counted | sparsity | times as fast | parameters | MACs | accuracy % | time, against it |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for speedup in sorted({row["speedup"] for row in rows}):
        timed = [row for row in rows if (row["speedup"], row["way"]) == (speedup, "time")]
        for way, label in WAYS.items():
            own = [row for row in rows if (row["speedup"], row["way"]) == (speedup, way)]
            if own:
                cells = [f"{own[0]['level']:.3f}" if own[0]["level"] else "", mean([row["measured"] for row in own])]
                cells += [f"{statistics.mean(row['parameters'] for row in own) / 1e6:.2f} M"]
                cells += [f"{statistics.mean(row['macs'] for row in own) / 1e6:.1f} M", percent(own)]
                cells += ["" if way == "time" else against(timed, own)]
                lines.append(f"| {speedup:g} × | {label} | {' | '.join(cells)} |")
    if whole.get("remark"):
        lines += ["", whole["remark"]]
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["train", "measure", "render"])
    parser.add_argument("--speedups", type=float, nargs="+", default=[4.0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, for each model")
    parser.add_argument("--remark", default="", help="on the conditions, for the card")
    args, task = parsed(parser, "equal-latency")
    task.traced_samples = BATCHES[args.task]
    if args.phase == "train":
        train(task, args)
    elif args.phase == "measure":
        about = {"task": args.task, "batch": task.traced_samples, "recipe": task.recipe(), "remark": args.remark}
        about |= {"options": shown(sys.argv[2:])}
        about |= {"environment": environment()}
        write_json(args.output, {**about, "rows": list(measured(task, args))})
    else:
        render(args)


if __name__ == "__main__":
    main()
