"""Is a core that wakes what is dormant where it doubts better than a static model of the same mean cost?

    python examples/benchmarks/dormant.py train sst2       # static models at each level, and one with dormant packs
    python examples/benchmarks/dormant.py measure sst2     # model_cards/dormant-sst2.json; wants a quiet machine
    python examples/benchmarks/dormant.py render sst2      # model_cards/dormant-sst2.md and .png

`cifar10` likewise. Options and bases are those of `sst2.py` and `cifar10.py`; on SST-2 whole heads and neurons are
pruned. `train` resumes. Times are means over single validation samples as they come, all models in turn in one process,
and those of the thread that computes: what else the machine does does not count.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import torch
from cifar10 import Cifar10
from harness.runs import Run, environment, write_json
from harness.task import Task
from harness.training import ensure
from torch import Tensor, nn
from tqdm import tqdm
from two_tasks import CHANGES, TITLES, Sample, calibration, parsed, samples, without_labels

from optimum.dendritic import calibrate_dormant_, load_dormant_, set_wake_rate
from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import count_macs
from optimum.dendritic.nn.dormant import dormant_of

matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402

CALIBRATION, COUNTED, BINS = 512, 32, 10
STYLES = {"static": ("#000000", "s"), "doubt": ("#0072B2", "o"), "rows": ("#D55E00", "^")}  # of Okabe and Ito
LABELS = {"static": "static models", "doubt": "wakes on doubt", "rows": "wakes by rows"}
RATE_STYLES = [("#56B4E9", "v"), ("#E69F00", "D"), ("#009E73", "^"), ("#CC79A7", "s"), ("#0072B2", "o")]


def runs_of(args: argparse.Namespace, seed: int) -> tuple[list[Run], Run]:
    """The static models, and the one that has something dormant."""
    own = CHANGES[args.task]
    name = ",".join(own)

    def run(level: float, variant: str, changes: dict[str, Any]) -> Run:
        return Run("dendritic", level, seed, variant=variant, changes=changes, base_seed=args.base_seed)

    sleeping = run(args.core, f"{name}-dormant-{args.awake:g}".lstrip("-"), {**own, "dormant": args.awake})
    return [run(level, name, own) for level in args.levels], sleeping


def train(task: Task, args: argparse.Namespace) -> None:
    for seed in args.seeds:
        static, sleeping = runs_of(args, seed)
        for run in tqdm([static[0].base, *static, sleeping], desc=f"seed {seed}"):
            ensure(task, run, args.output_dir)


@torch.inference_mode()
def answers(model: nn.Module, every: list[Sample]) -> Tensor:
    return torch.cat([model(**inputs).logits for inputs, _ in every])


@torch.inference_mode()
def pass_ms(model: nn.Module, every: list[Sample]) -> float:
    """Mean milliseconds that the thread computes for one sample."""
    start = time.thread_time()
    for inputs, _ in every:
        model(**inputs)
    return (time.thread_time() - start) * 1e3 / len(every)


def accuracy(logits: Tensor, every: list[Sample]) -> float:
    return float((logits.argmax(-1) == torch.tensor([label for _, label in every])).float().mean())


def measured(task: Task, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    static, sleeping = runs_of(args, seed)
    every = samples(task)[: args.samples]
    timed = every[:: max(1, len(every) // args.timed)]
    models = {f"static {run.level:g}": task.load(args.output_dir / run.name) for run in static}
    dense = task.load(args.output_dir / sleeping.base.name)
    core = task.load(args.output_dir / sleeping.name)
    load_dormant_(core, args.output_dir / sleeping.name)  # type: ignore[arg-type]
    calibrate_dormant_(core, [without_labels(batch) for batch in calibration(task, CALIBRATION, batches=8)])
    if isinstance(task, Cifar10):
        dormant_of(core).awake.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    labels = torch.tensor([label for _, label in every])
    hard = nn.functional.cross_entropy(answers(dense, every), labels, reduction="none").argsort().argsort()
    rows: dict[str, dict[str, Any]] = {}

    def counted(model: nn.Module) -> float:
        batches = [Batch.of(inputs) for inputs, _ in timed[:: max(1, len(timed) // COUNTED)]]
        return statistics.mean(count_macs(model, batch) for batch in batches)

    def row(name: str, model: nn.Module, **about: Any) -> None:
        rows[name] = {**about, "accuracy": accuracy(answers(model, every), every), "macs": counted(model)}

    for run in static:
        row(f"static {run.level:g}", models[f"static {run.level:g}"], level=run.level)
    kinds = [("doubt", rate) for rate in args.rates] + [("rows", rate) for rate in args.rates if 0 < rate < 1]
    awakened = []
    for by, rate in list(kinds):
        try:
            set_wake_rate(core, rate, by=by)
        except ValueError as error:  # a model without gathers has no rows that wake
            tqdm.write(f"{by}: {error}")
            kinds.remove((by, rate))
            continue
        dormant, name = dormant_of(core), f"{by} {rate:g}"
        woken = []
        for inputs, _ in every if by == "doubt" else []:
            before = dormant.woken
            with torch.inference_mode():
                core(**inputs)
            woken.append(dormant.woken - before)
        row(name, core, by=by, rate=rate)
        rows[name]["wake_rate"] = dormant.rate
        if by == "doubt":  # each input that wakes costs the awake model beside the core, whichever were counted
            rows[name]["macs"] = rows["doubt 0"]["macs"] + dormant.rate * counted(dormant.awake)
        if woken:
            bins = (hard * BINS // len(hard)).clamp(max=BINS - 1)
            rows[name]["by_hardness"] = [float(torch.tensor(woken)[bins == b].float().mean()) for b in range(BINS)]
        awakened.append(name)
    blocks: dict[str, list[float]] = {name: [] for name in rows}
    for _ in tqdm(range(args.blocks), desc=f"time, seed {seed}"):
        for name, model in models.items():
            blocks[name].append(pass_ms(model, timed))
        for (by, rate), name in zip(kinds, awakened, strict=True):
            set_wake_rate(core, rate, by=by)
            blocks[name].append(pass_ms(core, timed))
            rows[name]["timed_wake_rate"] = dormant_of(core).rate
    for name, times in blocks.items():
        rows[name]["ms"] = statistics.median(times)
    return {"rows": rows, "dense_accuracy": accuracy(answers(dense, every), every)}


def measure(task: Task, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    found = {str(seed): measured(task, args, seed) for seed in args.seeds}
    about = {"environment": environment(), "core": args.core, "awake": args.awake, "levels": args.levels}
    write_json(args.output, {**about, "task": args.task, "recipe": task.recipe(), "seeds": found})


Rows = dict[str, dict[str, Any]]


def of_seeds(found: dict[str, Any], value: Callable[[Rows], float]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds."""
    values = [value(each["rows"]) for each in found["seeds"].values()]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def field_of(found: dict[str, Any], name: str, field: str) -> float:
    return of_seeds(found, lambda rows: rows[name][field])[0]


def gain(rows: Rows, name: str) -> float:
    """Points of accuracy above the static models at the same mean time, between which lines are drawn."""
    static = sorted((row["ms"], row["accuracy"]) for key, row in rows.items() if key.startswith("static "))
    times, accuracies = zip(*static, strict=True)
    return 100 * (rows[name]["accuracy"] - float(numpy.interp(rows[name]["ms"], times, accuracies)))


def render(args: argparse.Namespace) -> None:
    found = json.loads(args.output.read_text())
    first: Rows = next(iter(found["seeds"].values()))["rows"]
    title = TITLES[found["task"]]
    precision = "" if found["recipe"]["bf16"] else " --no-bf16"
    dense = statistics.mean(each["dense_accuracy"] for each in found["seeds"].values())
    lines = [
        f"# Wake on doubt against static models: {title}",
        "",
        f"One packed model whose core has {found['core']:.0%} removed and which has {found['awake']:.0%} removed while "
        "what is dormant is awake, at several wake rates; and static models, each trained for its own level"
        f"{', of whole heads and neurons' if CHANGES[found['task']] else ''}. The dense "
        f"model: {100 * dense:.2f} %. Means of seeds {', '.join(found['seeds'])}, ± one standard deviation; "
        f"{found['environment']['device']}, one thread, one sample at a time.",
        "",
        f"`python examples/benchmarks/dormant.py train|measure|render {found['task']}{precision}`",
        "",
        "| model | wake rate | accuracy % | mean MACs | mean ms | against static models of the same time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in first.items():
        rate = f"{field_of(found, name, 'wake_rate'):.3f}" if "wake_rate" in row else ""
        accuracy, spread = of_seeds(found, lambda rows, name=name: 100 * rows[name]["accuracy"])
        against = of_seeds(found, lambda rows, name=name: gain(rows, name))
        lines.append(
            f"| {name} | {rate} | {accuracy:.2f} ± {spread:.2f} | {field_of(found, name, 'macs') / 1e6:.1f} M | "
            f"{field_of(found, name, 'ms'):.2f} | {'' if 'level' in row else '{:+.2f} ± {:.2f}'.format(*against)} |"
        )
    lines += ["", claim(found, first)]
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    draw(found, first, args.output.with_suffix(".png"), title)


def claim(found: dict[str, Any], first: Rows) -> str:
    """Whether what wakes on doubt answers as the largest static model, in less time than the next one takes."""
    static = sorted((name for name in first if "level" in first[name]), key=lambda name: first[name]["level"])
    good, core = (100 * field_of(found, static[index], "accuracy") for index in (0, -1))
    limit = field_of(found, static[1], "ms")
    quick = [name for name in first if name.startswith("doubt ") and field_of(found, name, "ms") < limit]
    best = max(100 * field_of(found, name, "accuracy") for name in quick)
    return (
        f"Claim: waking on doubt, it has the accuracy of {static[0]} at a mean time below that of {static[1]}: "
        f"{'holds' if best >= good else '**fails**'}, it has {best:.2f} % there. An input that wakes it costs the core "
        f"beside the awake model, and the core, which was trained in turn with that, has "
        f"{100 * field_of(found, 'doubt 0', 'accuracy'):.2f} % where {static[-1]}, trained alone, has {core:.2f} %."
    )


def draw(found: dict[str, Any], first: Rows, path: Path, title: str) -> None:
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    figure.suptitle(f"{title}: what is dormant wakes on doubt")
    for kind, (colour, marker) in STYLES.items():
        names = [name for name in first if name.startswith(f"{kind} ")]
        for axes, field, label, scale in (
            (left, "macs", "mean MACs per sample, millions", 1e6),
            (middle, "ms", "mean time per sample, ms", 1),
        ):
            points = sorted((field_of(found, n, field) / scale, 100 * field_of(found, n, "accuracy")) for n in names)
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=LABELS[kind])
            axes.set_xlabel(label)
            axes.set_ylabel("accuracy %")
    left.legend()
    woken = [name for name, row in first.items() if 0 < row.get("rate", 0) < 1 and "by_hardness" in row]
    for name, (colour, marker) in zip(woken, RATE_STYLES, strict=False):
        bins = [
            statistics.mean(s["rows"][name]["by_hardness"][b] for s in found["seeds"].values()) for b in range(BINS)
        ]
        right.plot(range(1, BINS + 1), bins, marker=marker, color=colour, label=f"wake rate {first[name]['rate']:g}")
    right.set_xlabel("tenths of the inputs, easy to hard for dense")
    right.set_ylabel("share that wakes what is dormant")
    right.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["train", "measure", "render"])
    parser.add_argument("--core", type=float, default=0.9, help="removed of the core")
    parser.add_argument("--awake", type=float, default=0.6, help="removed while all is awake")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.6, 0.8, 0.9], help="of the static models")
    parser.add_argument("--rates", type=float, nargs="+", default=[0, 0.05, 0.1, 0.2, 0.3, 0.5, 1])
    parser.add_argument("--samples", type=int, help="of the validation data; default: all")
    parser.add_argument("--timed", type=int, default=10_000, help="samples that are timed, at most")
    parser.add_argument("--blocks", type=int, default=3)
    args, task = parsed(parser, "dormant")
    if args.phase == "train":
        train(task, args)
    elif args.phase == "measure":
        measure(task, args)
    else:
        render(args)


if __name__ == "__main__":
    main()
