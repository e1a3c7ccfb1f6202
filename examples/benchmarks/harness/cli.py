"""The command line that every table has: `base`, `keep`, `train`, `time` or `render`, and the options of all tasks."""

import argparse
from pathlib import Path

from transformers.utils import logging

from .report import render
from .runs import METHODS, parse_change
from .task import Task
from .timing import time_phase
from .training import base_phase, keep_phase, train_phase

PLACES = ("--dataset", "--output_dir", "--output", "--seeds", "--remark")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What every script that trains a task can be asked for; options of the task itself are its own."""
    parser.add_argument("--output_dir", type=Path, help="where the runs lie; default: the folder of the task's table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base_seed", type=int, help="of the one base of all seeds; default: each its own")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="mixed precision")
    parser.add_argument("--train_bases", action="store_true", help="also those that examples/benchmarks/bases has")
    parser.add_argument("--max_steps", type=int, help="of each stage, for a trial; its runs are not results")


def add_options(parser: argparse.ArgumentParser, task_class: type[Task]) -> None:
    """What all tables can be asked for, and what this one can."""
    add_training_options(parser)
    parser.add_argument("--card", type=Path, help=f"default: {task_class.default_card}")
    parser.add_argument("--levels", type=float, nargs="+", default=list(task_class.default_levels))
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument(
        "--config", type=parse_change, nargs="+", default=[], help="an ablation: DendriticConfig fields, regrow=0.0 …"
    )
    parser.add_argument("--variant", default="", help="its name; default: made from --config")
    parser.add_argument("--threads", type=int, default=1, help="when timing: a small device has little more")
    parser.add_argument("--seconds", type=float, default=2.0, help="when timing: for each latency of each model")
    parser.add_argument("--large_batch", type=int, default=8, help="when timing: the second batch size")
    task_class.add_options(parser)


def shown(given: list[str]) -> str:
    """What a card shows of a command line: all but what names places, and the seeds, by which it resumes.

    >>> shown(["sst2", "--dataset", "data", "--speedups", "2", "3", "--seeds", "0", "1", "--no-bf16"])
    'sst2 --speedups 2 3 --no-bf16'
    """
    kept, skipped = list[str](), False
    for word in given:
        skipped = word in PLACES or (skipped and not word.startswith("--"))
        kept += [] if skipped else [word]
    return " ".join(kept)


def main(task_class: type[Task], description: str | None) -> None:
    """Parse the command line and run one phase."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["base", "keep", "train", "time", "render"])
    add_options(parser, task_class)
    args = parser.parse_args()
    args.config = dict(args.config)
    args.variant = args.variant or ",".join(f"{name}={value}" for name, value in args.config.items())
    task = task_class(args)
    output_dir = args.output_dir or Path(task.default_output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()  # of every loading and saving; one bar counts the runs
    if args.phase == "base":
        base_phase(task, output_dir)
    elif args.phase == "keep":
        keep_phase(task, output_dir)
    elif args.phase == "train":
        train_phase(task, output_dir)
    elif args.phase == "time":
        time_phase(task, output_dir)
    else:
        render(task, output_dir, args.card or Path(task.default_card))
