"""One training of several sizes against a training for each, of the same length in all: MiniLM on SST-2.

    python examples/benchmarks/several_sizes.py train     # both, from the same bases
    python examples/benchmarks/several_sizes.py render    # model_cards/sizes-sst2.json and .md

Options and bases are those of `sst2.py`, whole heads and neurons are pruned, and so the separate trainings are those of
`allocation.py` and `dormant.py` where `--output_dir` is theirs. The training of all sizes has as many epochs as all the
separate ones together. `train` resumes.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.cli import add_training_options
from harness.comparison import against, percent
from harness.runs import Run, environment, write_json
from harness.task import Score
from harness.training import ensure
from sst2 import Sst2
from tqdm import tqdm

from optimum.dendritic import load_at

UNITS = {"units": ["heads", "neurons"]}
WAYS = {
    "separate": "a training for each",
    "together": "one training of all, taught by the dense model",
    "largest": "one training of all, taught by its largest size",
}


def separate(args: argparse.Namespace, seed: int, level: float) -> Run:
    return Run("dendritic", level, seed, variant="units", changes=UNITS, base_seed=args.base_seed)


def together(args: argparse.Namespace, seed: int, way: str) -> Run:
    changes = {**UNITS, "sparsity": args.levels} | ({"distillation": None} if way == "largest" else {})
    return Run("dendritic", min(args.levels), seed, variant=f"units,{way}", changes=changes, base_seed=args.base_seed)


def longer(args: argparse.Namespace) -> Sst2:
    """The task with the epochs of all separate trainings, in a folder of its own."""
    own = argparse.Namespace(**vars(args))
    own.epochs1, own.output_dir = len(args.levels) * args.epochs1, args.output_dir / "together"
    own.output_dir.mkdir(exist_ok=True)
    return Sst2(own)


def train(args: argparse.Namespace) -> None:
    task, long = Sst2(args), longer(args)
    for seed in tqdm(args.seeds, desc="seeds"):
        if "separate" in args.ways:
            for level in args.levels:
                ensure(task, separate(args, seed, level).base, args.output_dir)
                ensure(task, separate(args, seed, level), args.output_dir)
        for way in (way for way in args.ways if way != "separate"):
            run = together(args, seed, way)
            ensure(task, run.base, args.output_dir)
            _share_base(run.base, args.output_dir, long.args.output_dir)
            ensure(long, run, long.args.output_dir)
            _score_sizes(long, run)


def _share_base(base: Run, folder: Path, other: Path) -> None:
    """One base for both: its recipe is the same."""
    if not (other / f"{base.name}.json").exists():
        shutil.copytree(folder / base.name, other / base.name, dirs_exist_ok=True)
        shutil.copy(folder / f"{base.name}.json", other)


def _score_sizes(task: Sst2, run: Run) -> None:
    path = task.args.output_dir / f"{run.name}.sizes.json"
    if path.exists():
        return
    scores: dict[str, Score] = {}
    for level in task.args.levels:
        scores[f"{level:g}"] = task.score(load_at(task.args.output_dir / run.name / "sizes", level).eval())
        tqdm.write(f"{run.name}: {scores[f'{level:g}'].value:.4f} at {level:g}")
    write_json(path, {level: {"score": each.value, "examples": each.examples} for level, each in scores.items()})


def found(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The scores so far."""
    for seed in args.seeds:
        for level in args.levels:
            path = args.output_dir / f"{separate(args, seed, level).name}.json"
            if path.exists():
                run = json.loads(path.read_text())
                about = {"score": run["score"], "examples": run["examples"], "seconds": run["train_cpu_seconds"]}
                yield {"way": "separate", "seed": seed, "level": level, **about}
        for way in list(WAYS)[1:]:
            name, folder = together(args, seed, way).name, args.output_dir / "together"
            if (folder / f"{name}.sizes.json").exists():
                seconds = json.loads((folder / f"{name}.json").read_text())["train_cpu_seconds"]
                for level, score in json.loads((folder / f"{name}.sizes.json").read_text()).items():
                    yield {"way": way, "seed": seed, "level": float(level), **score, "seconds": seconds}


def render(args: argparse.Namespace) -> None:
    whole = json.loads(args.output.read_text())
    rows = whole["rows"]
    seeds = sorted({row["seed"] for row in rows})
    precision = "" if whole["recipe"]["bf16"] else " --no-bf16"
    epochs, count = whole["recipe"]["epochs1"], len(args.levels)
    lines = [
        "# One training of several sizes against a training for each: MiniLM on SST-2",
        "",
        "Whole heads and neurons, from the dense base of the seed, which teaches each unless it is said "
        "otherwise. A training for each size has "
        f"{epochs:g} epochs; one training of all sizes has {count * epochs:g}, each size a part of its steps. "
        f"Validation accuracy, seeds {', '.join(map(str, seeds))}, ± one standard deviation; differences with the "
        f"paired bootstrap's 95 % interval, in points; {whole['environment']['device']}.",
        "",
        f"`python examples/benchmarks/several_sizes.py train|render{precision}`",
        "",
        "| trained | "
        + " | ".join(f"{level:.0%} removed | against separate" for level in args.levels)
        + " | CPU time |",
        "| --- " * (2 * count + 2) + "|",
    ]
    for way in [way for way in WAYS if any(row["way"] == way for row in rows)]:
        cells = [cell for level in args.levels for cell in _cells(rows, way, level)]
        lines.append(f"| {WAYS[way]} | {' | '.join(cells)} | {_seconds(rows, way) / 60:.1f} min |")
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _cells(rows: list[dict[str, Any]], way: str, level: float) -> tuple[str, str]:
    own, others = ([r for r in rows if r["way"] == w and r["level"] == level] for w in (way, "separate"))
    return percent(own), "" if way == "separate" else against(own, others)


def _seconds(rows: list[dict[str, Any]], way: str) -> float:
    """Of all sizes of one seed, on average."""
    own = [row for row in rows if row["way"] == way]
    spent = {(row["seed"], row["level"] if way == "separate" else None): row["seconds"] for row in own}
    return sum(spent.values()) / len({row["seed"] for row in own})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["train", "render"])
    parser.add_argument("--levels", type=float, nargs="+", default=list(Sst2.default_levels))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--output", type=Path, default=Path("model_cards/sizes-sst2.json"))
    add_training_options(parser)
    Sst2.add_options(parser)
    args = parser.parse_args()
    args.output_dir = args.output_dir or Path(Sst2.default_output_dir)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.phase == "train":
        train(args)
    else:
        about = {"recipe": Sst2(args).recipe(), "environment": environment()}
        write_json(args.output, {**about, "rows": list(found(args))})
        render(args)


if __name__ == "__main__":
    main()
