"""The time phase: the models of the first seed, each in turn with the base, which is dense."""

from pathlib import Path

from tqdm import tqdm

from optimum.dendritic import measure

from .runs import DENSE, Run, planned, write_json
from .task import Task


def time_phase(task: Task, output_dir: Path) -> None:
    """Parameters, bytes, MACs, latency and memory, measured unless the file is there. Wants a quiet machine."""
    args = task.args
    dense = task.load(output_dir / Run("base", 0.0, args.seeds[0]).name)
    inputs = task.example_inputs()
    runs = [run for run in planned(args) if run.seed == args.seeds[0] and run.method not in DENSE]
    for run in tqdm(runs, desc="time"):
        path = output_dir / f"{run.name}.time.json"
        if path.exists() or not (output_dir / f"{run.name}.json").exists():
            continue
        report = measure(
            task.load(output_dir / run.name),
            inputs,
            baseline=dense,
            large_batch=args.large_batch,
            threads=args.threads,
            seconds=args.seconds,
        )
        write_json(path, {**run.to_dict(), "report": report.to_dict()})
