"""Packed against dense, and against the stock model narrowed evenly to as many MACs: shares of MACs and of time.

    python examples/benchmarks/speed.py                  # model_cards/speed.json and .md; wants a quiet machine
    python examples/benchmarks/speed.py --models minilm --dtypes float32 --modes eager --seconds 2
    python examples/benchmarks/speed.py --scale 0.125 --seconds 0.2 --models minilm   # a trial, in a minute

The weights are random and so is what is pruned: a model's speed depends on its shapes alone. The dense model, the
packed ones and the narrower one are timed in turn in one process, and ratios are medians of those of neighbouring
blocks, of wall time and of the CPU time of the computing thread, which other programs do not change. Efficiency is the
share of MACs divided by the share of time: 1 if the time falls as the MACs do.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness.runs import environment, write_json
from harness.speed_subjects import SUBJECTS, Subject
from torch import nn
from tqdm import tqdm

from optimum.dendritic import DendriticConfig, compress_, inject_, update_

BLOCK_SECONDS, FEWEST_BLOCKS, MOST_BLOCKS = 0.03, 7, 200
FORMS: dict[str, dict[str, Any]] = {  # fields of DendriticConfig
    "structured": {"units": "structured"},
    "structured, multiples of 32": {"units": "structured", "multiple_of": 32},
    "fine": {"units": "fine"},
    "fine, multiples of 32": {"units": "fine", "multiple_of": 32},
    "4 arbors": {"units": "fine", "arbors": 4},
}
NARROWER = "narrower"


def packed(subject: Subject, scale: float, sparsity: float, form: str) -> nn.Module:
    model = subject.make(scale).eval()
    config = DendriticConfig(sparsity=sparsity, budget="macs", importance="random", floor=0.0, **FORMS[form])
    inject_(model, config)
    update_(model, sparsity)
    return compress_(model).eval()


def narrower(subject: Subject, scale: float, most: int) -> nn.Module:
    """The widest evenly narrowed stock model of at most so many MACs."""
    low, high = 0.05 * scale, scale
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if subject.macs(subject.make(middle)) <= most else (low, middle)
    return subject.make(low).eval()


@torch.inference_mode()
def in_turn(calls: Sequence[Callable[[], Any]], seconds: float) -> list[tuple[list[float], list[float]]]:
    """Wall and thread time of each call in blocks; those of one index are neighbours in time."""
    counts = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        counts.append(max(1, round(BLOCK_SECONDS / max(1e-6, time.perf_counter() - start))))
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in calls]
    end = time.perf_counter() + seconds * len(calls)
    for block in range(MOST_BLOCKS):
        if block >= FEWEST_BLOCKS and time.perf_counter() > end:
            break
        for call, count, (wall, thread) in zip(calls, counts, found, strict=True):
            call()  # its weights are in the cache again
            start = time.perf_counter(), time.thread_time()
            for _ in range(count):
                call()
            wall.append((time.perf_counter() - start[0]) / count)
            thread.append((time.thread_time() - start[1]) / count)
    return found


def ratio(own: Sequence[float], dense: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, dense, strict=True))


def rows(subject: Subject, models: dict[str, nn.Module], args: argparse.Namespace, dtype: str, mode: str) -> list[dict]:
    """The shares of time of all forms, under one dtype and mode."""
    made = {name: model.to(getattr(torch, dtype)) for name, model in models.items()}
    found = []
    for last in (False, True) if subject.channels_last else (False,):
        for batch in args.batches:
            inputs = subject.inputs(batch)
            inputs = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in inputs.items()}
            if last:
                inputs = {k: v.to(memory_format=torch.channels_last) for k, v in inputs.items()}
                made = {name: m.to(memory_format=torch.channels_last) for name, m in made.items()}  # type: ignore[call-overload]
            torch.compiler.reset()  # or the models of earlier rows count as recompilations of these
            ran = {n: torch.compile(m, dynamic=False) if mode == "compiled" else m for n, m in made.items()}
            calls = [subject.call(made[name], ran[name], inputs) for name in models]
            dense, *others = in_turn(calls, args.seconds)
            row: dict[str, Any] = {"dtype": dtype, "mode": mode, "batch": batch, "channels_last": last}
            row |= {"dense_ms": 1e3 * statistics.median(dense[0])}
            for name, own in zip(list(models)[1:], others, strict=True):
                row[name] = {"wall": ratio(own[0], dense[0]), "thread": ratio(own[1], dense[1])}
            found.append(row)
    return found


def compared(subject: Subject, level: float, args: argparse.Namespace) -> dict[str, Any]:
    models = {"dense": subject.make(args.scale).eval()}
    models |= {form: packed(subject, args.scale, level, form) for form in args.forms}
    models |= {NARROWER: narrower(subject, args.scale, subject.macs(models[args.forms[0]]))}
    dense = subject.macs(models["dense"])
    macs = {name: subject.macs(model) / dense for name, model in models.items()}
    times = [row for dtype in args.dtypes for mode in args.modes for row in rows(subject, models, args, dtype, mode)]
    return {"macs": macs, "times": times}


def table(found: dict[str, dict[str, Any]], forms: Sequence[str], command: str, about: str, clock: str) -> str:
    lines = [
        "# Packed models against dense and evenly narrower ones",
        "",
        f"`{command}`; {about}. Shares are of the dense model, times by the {clock} clock; in brackets the efficiency, "
        f"which is the share of MACs divided by that of time. MACs are those of the form {forms[0]}, and of the "
        "narrower model, which has at most as many.",
        "",
        f"| model | removed | dtype | mode | batch | MACs | {' | '.join((*forms, NARROWER))} |",
        "| --- " * (7 + len(forms)) + "|",
    ]
    for name, levels in found.items():
        for level, result in levels.items():
            for row in result["times"]:
                mode = f"{row['mode']}{', channels_last' if row['channels_last'] else ''}"
                cells = [name, level, row["dtype"], mode, str(row["batch"]), f"{result['macs'][forms[0]]:.3f}"]
                for form in (*forms, NARROWER):
                    share = row[form][clock]
                    cells.append(f"{share:.3f} ({result['macs'][form] / share:.2f})")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--levels", type=float, nargs="+", default=[0.6, 0.8])
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=["structured", "fine"], help="the narrower model is as the first"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each time of each model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full widths, for a trial")
    parser.add_argument("--output", type=Path, default=Path("model_cards/speed.json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    clock = "thread" if args.threads == 1 else "wall"
    found: dict[str, dict[str, Any]] = {name: {} for name in args.models}
    with tqdm(total=len(args.models) * len(args.levels)) as bar:
        for name in args.models:
            for level in args.levels:
                found[name][str(level)] = compared(SUBJECTS[name], level, args)
                about = environment()
                settings = {key: value for key, value in vars(args).items() if key != "output"}
                write_json(args.output, {"environment": about, "settings": settings, "models": found})
                bar.update()
    command = shlex.join(["python", "examples/benchmarks/speed.py", *sys.argv[1:]])
    text = table(found, args.forms, command, f"{about['device']}, {args.threads} thread(s)", clock)
    args.output.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
