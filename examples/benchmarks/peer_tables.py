"""Other packages that prune, side by side: the bases, data, teachers, recipes and seeds of our own tables.

    python examples/benchmarks/peer_tables.py install --environments runs/peers/environments
    python examples/benchmarks/peer_tables.py train resnet20 --environments runs/peers/environments
    python examples/benchmarks/peer_tables.py train mnist --environments runs/peers/environments
    python examples/benchmarks/peer_tables.py train sst2 --environments runs/peers/environments
    python examples/benchmarks/peer_tables.py take resnet20 --methods dense dendritic                   # mnist, sst2
    python examples/benchmarks/peer_tables.py reload resnet20 --environments runs/peers/environments    # mnist, sst2
    python examples/benchmarks/peer_tables.py time resnet20 --environments runs/peers/environments      # mnist, sst2
    python examples/benchmarks/peer_tables.py render                                # model_cards/peers.md and .json

`install` makes a virtual environment for each package; every run of a peer is a process in its own. `--table` is the
folder with our own table (runs/cifar10-resnet20, …): its bases are those of the peers, and `take` sets its
rows beside theirs. What was made already is not made again. The options of `cifar10.py`, `mnist.py` and `sst2.py` are
understood, too; a trial with `--max_steps 5` is not a result.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from cifar10 import Cifar10
from harness.cli import add_options
from harness.runs import Run, claimed, is_done, write_json
from harness.task import Task
from harness.training import ensure
from mnist import Mnist
from peers.card import render
from peers.environments import install
from peers.registry import ALL, LEVELS, OWN
from peers.reloading import own_way, stock_ways, timed
from peers.runs import conditions, make, take
from sst2 import Sst2
from transformers.utils import logging

PHASES = ("install", "train", "take", "reload", "time", "render")
INSIDE = ("one", "own-way", "stock-ways", "timed")  # what a phase runs in a process of its own
TASKS: dict[str, type[Task]] = {"resnet20": Cifar10, "mnist": Mnist, "sst2": Sst2}


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line: a phase, and with most a task, whose own options follow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=[*PHASES, *INSIDE])
    parser.add_argument("task", choices=TASKS, nargs="?", default="resnet20")
    known, _ = parser.parse_known_args([word for word in words if word not in ("-h", "--help")])
    parser.add_argument("--environments", type=Path, help="a folder with a virtual environment for each peer")
    parser.add_argument("--peers", choices=ALL, nargs="+", default=[name for name in ALL if name != OWN])
    parser.add_argument("--table", type=Path, help="the runs of our own table; default: its --output_dir")
    parser.add_argument("--runs", type=Path, default=Path("runs/peers"), help="where the runs of the peers lie")
    add_options(parser, TASKS[known.task])
    args = parser.parse_args(words)
    args.levels = args.levels or list(LEVELS[known.task])
    return args


def main(words: list[str]) -> None:
    """Run one phase."""
    args = parsed(words)
    logging.disable_progress_bar()
    task = TASKS[args.task](args)
    args.table = args.table or Path(task.default_output_dir)
    args.output_dir = args.table  # where the decoded data lie
    if args.phase == "install":
        install(args.environments, args.peers)
    elif args.phase == "train":
        train(args, words)
    elif args.phase == "one":
        one(task, args)
    elif args.phase == "take":
        take(task, args.table, args.runs / args.task, args.methods, LEVELS[args.task])
    elif args.phase in ("reload", "time"):
        after(args, words)
    elif args.phase == "render":
        render(args.runs, args.card or Path("model_cards/peers.md"))
    else:
        look(task, args)


def train(args: argparse.Namespace, words: list[str]) -> None:
    """Every run, seed by seed, in the environment of its peer."""
    for seed in args.seeds:
        for level in LEVELS[args.task]:
            for name in args.peers:
                if level not in ALL[name].tasks.get(args.task, ()):
                    continue
                own = ["--seeds", str(seed), "--levels", str(level), "--peers", name]
                run_in(args.environments, ALL[name].package, ["one", *words[1:], *own])


def run_in(environments: Path | None, package: str, words: list[str]) -> None:
    """This script, with the interpreter that has `package`; a run that fails does not end the others."""
    name = package.partition("==")[0]
    python = environments / name / "bin/python" if environments and name else Path(sys.executable)
    subprocess.run([python, __file__, *words], env=os.environ, check=False)


def one(task: Task, args: argparse.Namespace) -> None:
    """The run of one peer, level and seed, unless it is there."""
    (name,), (level,), (seed,) = args.peers, args.levels, args.seeds
    folder = args.runs / args.task
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{level:g}-seed{seed}.json"
    base = Run(name, level, seed, base_seed=args.base_seed).base
    with claimed(path) as mine:
        if not mine or is_done(path, conditions(task, name, level, seed)):
            return
        args.table.mkdir(parents=True, exist_ok=True)
        ensure(task, base, args.table)
        result = make(task, name, level, seed, args.table / base.name, path.with_suffix(""))
        write_json(path, result)
        print(f"{path.stem}: {result['score']:.4f}, {result['train_seconds']:.0f} s", flush=True)


def after(args: argparse.Namespace, words: list[str]) -> None:
    """What is measured of the runs of the first seed: a process for each package, and one without any."""
    for package in dict.fromkeys(ALL[name].package for name in args.peers):
        peers = [name for name in args.peers if ALL[name].package == package]
        phase = "own-way" if args.phase == "reload" else "timed"
        run_in(args.environments, package, [phase, *words[1:], "--peers", *peers])
    if args.phase == "reload":
        run_in(None, "", ["stock-ways", *words[1:]])


def look(task: Task, args: argparse.Namespace) -> None:
    """One of `INSIDE`, of every run of the first seed that is there; what was found already stays."""
    folder, seed = args.runs / args.task, args.seeds[0]
    base = args.table / Run("base", 0.0, seed, base_seed=args.base_seed).base.name
    for name in args.peers:
        for level in LEVELS[args.task]:
            stem = f"{name}-{level:g}-seed{seed}"
            if not (folder / f"{stem}.json").exists():
                continue
            where = {"method": name, "level": level, "seed": seed}
            if args.phase == "timed":
                path = folder / f"{stem}.time.json"
                if not path.exists():
                    write_json(path, where | timed(task, name, base, folder / stem))
                continue
            path = folder / f"{stem}.reload.json"
            found = json.loads(path.read_text()) if path.exists() else where | {"ways": {}}
            own = args.phase == "own-way"
            ways = own_way(task, name, base, folder / stem) if own else stock_ways(task, base, folder / stem)
            write_json(path, found | {"ways": found["ways"] | ways})


if __name__ == "__main__":
    main(sys.argv[1:])
