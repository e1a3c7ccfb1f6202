"""MNIST, several seeds: dendritic pruning against dense training and three controls, each trained exactly as long.

    python examples/benchmarks/mnist.py train     # about one minute for each of 63 runs on 2 CPU cores
    python examples/benchmarks/mnist.py time      # the first seed, in turn with its dense model; wants a quiet machine
    python examples/benchmarks/mnist.py render    # model_cards/mnist-convnet.md, .json and figures

Every phase resumes: a run whose JSON file is there is not repeated, and several processes may divide the seeds.
On a busy machine `OMP_NUM_THREADS=1` and one process per core are faster than one process with several threads.
`--dataset` is a Hub id or a folder that `datasets.load_dataset` reads, with the columns "image" and "label".
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from harness.runs import write_json
from mnist_report import render
from mnist_runs import METHODS, Pixels, Run, load_model, load_pixels, normalised, recipe, train_one
from tqdm import tqdm
from transformers.utils import logging

from optimum.dendritic import measure


def planned(args: argparse.Namespace) -> Iterator[Run]:
    """Seed by seed, so that an interrupted table is a whole table of fewer seeds."""
    for seed in args.seeds:
        for method in args.methods:
            for sparsity in [0.0] if method == "dense" else args.levels:
                yield Run(method, sparsity, seed)


def train_phase(args: argparse.Namespace) -> None:
    train, test = load_pixels(args.dataset, "train"), load_pixels(args.dataset, "test")
    if args.max_train_samples is not None:
        train = Pixels(train.images[: args.max_train_samples], train.labels[: args.max_train_samples])
    for run in tqdm(list(planned(args)), desc="train"):
        path = args.output_dir / f"{run.name}.json"
        if path.exists():
            if (found := json.loads(path.read_text())["recipe"]) != recipe(args):
                raise ValueError(f"{path} was made with {found}, not {recipe(args)}: choose another --output_dir.")
            continue
        result = train_one(run, args, train, test, args.output_dir / run.name)
        write_json(path, result)
        tqdm.write(f"{run.name}: {result['accuracy']:.4f}, {result['train_seconds']:.0f} s")


def time_phase(args: argparse.Namespace) -> None:
    """Measure the models of the first seed in turn with the dense one: parameters, bytes, MACs, latency, memory."""
    images = {"pixel_values": normalised(load_pixels(args.dataset, "test").images[:64])}
    seed = args.seeds[0]
    dense = load_model(args.output_dir / Run("dense", 0.0, seed).name, args.channels_last)
    for run in tqdm([run for run in planned(args) if run.seed == seed and run.method != "dense"], desc="time"):
        path = args.output_dir / f"{run.name}.time.json"
        if path.exists():
            continue
        model = load_model(args.output_dir / run.name, args.channels_last)
        report = measure(model, images, baseline=dense, large_batch=64, threads=args.threads, seconds=args.seconds)
        write_json(path, {**asdict(run), "channels_last": args.channels_last, "report": report.to_dict()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["train", "time", "render"])
    parser.add_argument("--dataset", default="ylecun/mnist")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--card", type=Path, default=Path("model_cards/mnist-convnet.md"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--levels", type=float, nargs="+", default=[0.6, 0.8, 0.9, 0.95])
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--regrow", type=float, default=0.1)
    parser.add_argument("--max_train_samples", type=int)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--channels_last", action="store_true", help="when timing; plain from_pretrained gives contiguous"
    )
    parser.add_argument("--threads", type=int, default=1, help="when timing: a small device has little more")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each latency of each model")
    args = parser.parse_args()
    logging.disable_progress_bar()  # of every loading and saving; one bar counts the runs
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.phase == "train":
        train_phase(args)
    elif args.phase == "time":
        time_phase(args)
    else:
        render(args.output_dir, args.card)


if __name__ == "__main__":
    main()
