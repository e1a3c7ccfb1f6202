"""int8 on top of packing: accuracy, bytes and time of dense and packed models, in float32 and int8, in each runtime.

    python examples/benchmarks/int8.py sst2     # model_cards/int8-sst2.json and .md
    python examples/benchmarks/int8.py cifar10  # model_cards/int8-cifar10.json and .md
    python examples/benchmarks/int8.py sst2 --whole --embedding_rank 192 --levels 0.6 0.7  # int8-sst2-low-rank

The dense model is the base of the seed in `--output_dir`, the packed ones the runs of `allocation.py` (SST-2, whole
heads and neurons), of `sst2.py` (the whole model, with a low-rank embedding) or of `cifar10.py`; what is missing is
trained. The validation samples are run one by one, by all forms in turn, block after block, on one thread; times are
CPU times, and ratios medians over the blocks of those to the dense model in PyTorch. It resumes, seed by seed.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import torch
from cifar10 import Cifar10
from harness.cli import shown
from harness.runs import Run, environment, write_json
from harness.task import Task
from harness.training import ensure
from torch import Tensor, nn
from tqdm import tqdm
from two_tasks import CHANGES, TITLES, calibration, parsed, samples, without_labels

from optimum.dendritic import DendriticError
from optimum.dendritic.runtimes.int8 import quantized
from optimum.dendritic.runtimes.onnx import export_onnx

BLOCKS = 8
SLOW = ["SkipLayerNormFusion"]  # on a CPU the fused operator takes three times as long as the two that it replaces
SESSIONS = (
    "Sessions of ONNX Runtime are made with `disabled_optimizers=['SkipLayerNormFusion']`, but for those with *all "
    "optimizers*, which are made as it makes them."
)
WAYS = (
    "What each way gives. (1) To prune whole heads and neurons of the encoder alone leaves the word embedding, half of "
    "the bytes, and has to take 80 % of the rest: it fails all three aims ([int8-sst2](int8-sst2.md)). (2) Here the "
    "whole model pays, and the word embedding begins as two factors: its table and its matrix are in int8 as well. (3) "
    "The fusion of LayerNorm with the sum before it makes sessions slower on this processor: compare *all optimizers*. "
    "(4) The graph without the exporter's notes is half a megabyte smaller. (5) Fixed ranges of activations "
    "(calibration) were refused by the export for MiniLM: the answers were too far from those of the model."
)
AIMS = {"time": 0.1, "size": 0.1, "lost": 0.01}
FIRST, INT8 = "PyTorch, float32", "ONNX Runtime, int8"
TRAINED = "dense, trained on as long"
Answer = Callable[[dict[str, Tensor]], int]
Form = tuple[Answer, int]  # the class that it answers to one sample, and its bytes on disk


def in_torch(model: nn.Module) -> Form:
    def answer(inputs: dict[str, Tensor]) -> int:
        with torch.inference_mode():
            return int(model(**inputs).logits.argmax())

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return answer, file.tell()


def in_onnx(path: Path, disabled: list[str]) -> Form:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )
    names = {each.name for each in session.get_inputs()}

    def answer(inputs: dict[str, Tensor]) -> int:
        found: Any = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in names})
        return int(numpy.argmax(found[0]))

    return answer, sum(file.stat().st_size for file in path.parent.iterdir() if file.name.startswith("model.onnx"))


def forms(task: Task, model: nn.Module, folder: Path) -> Iterator[tuple[str, Form]]:
    """Every form of a model, by name."""
    images = isinstance(task, Cifar10)
    model = model.to(memory_format=torch.contiguous_format) if images else model  # type: ignore[call-overload]
    yield FIRST, in_torch(model)
    if not images:  # PyTorch quantizes linear layers, not convolutions
        yield "PyTorch, int8", in_torch(quantized(model))
    inputs = task.example_inputs()
    yield "ONNX Runtime, float32", in_onnx(export_onnx(model, inputs, folder / "float32"), SLOW)
    path = export_onnx(model, inputs, folder / "int8", int8=True)
    yield INT8, in_onnx(path, SLOW)
    if not images:  # these have no LayerNorm
        yield f"{INT8}, all optimizers", in_onnx(path, [])
        return  # with fixed ranges every one of these was refused
    try:
        batches = [without_labels(batch) for batch in calibration(task, 128)]
        path = export_onnx(model, inputs, folder / "static", int8=True, calibration=batches)
        yield f"{INT8}, calibrated", in_onnx(path, SLOW)
    except DendriticError as error:  # the export itself holds it against the model
        tqdm.write(f"refused: {error}")


def measured(task: Task, args: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    changes = {} if args.task == "sst2" and args.whole else CHANGES[args.task]
    packed = {
        f"{level:.0%} removed": Run("dendritic", level, seed, ",".join(changes), changes, args.base_seed)
        for level in args.levels
    }
    control = {TRAINED: Run("dense", 0.0, seed, base_seed=args.base_seed)} if args.control else {}
    runs = {"dense": next(iter(packed.values())).base, **control, **packed}
    for run in runs.values():
        ensure(task, run, args.output_dir)
    every = samples(task)[: args.samples]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Form] = {}
        for name, run in runs.items():
            model = task.load(args.output_dir / run.name)
            every_form = dict(forms(task, model, Path(folder) / name)) if run.method != "dense" else {}
            found |= {f"{name}, {form}": each for form, each in (every_form or {FIRST: in_torch(model)}).items()}
        hits, seconds = {name: 0 for name in found}, {name: list[float]() for name in found}
        for block in tqdm(range(BLOCKS), desc=f"seed {seed}"):
            for name, (answer, _) in found.items():
                own = every[block::BLOCKS]
                answer(own[0][0])
                start = time.process_time()
                answers = [answer(inputs) for inputs, _ in own]
                seconds[name].append((time.process_time() - start) / len(own))
                hits[name] += sum(a == label for a, (_, label) in zip(answers, own, strict=True))
    first = next(iter(found))
    for name, (_, size) in found.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[first], strict=True))
        about = {"accuracy": hits[name] / len(every), "bytes": size, "ms": 1e3 * statistics.median(seconds[name])}
        rows[name] = about | {"time": ratio, "size": size / found[first][1]}
    return rows


def render(args: argparse.Namespace) -> None:
    found = json.loads(args.output.read_text())
    seeds: dict[str, dict[str, dict[str, Any]]] = found["seeds"]
    lines = [
        f"# int8 on top of packing: {TITLES[found['task']]}",
        "",
        f"Means of seeds {', '.join(seeds)}; {found['samples']} validation samples, one at a time, one thread, "
        f"{found['environment']['device']}. Shares are of the dense model in PyTorch, float32; its time is CPU time, "
        "taken in turn. *Calibrated* models have int8 activations of fixed ranges, found on 128 training samples; the "
        "others those that come; a calibrated model that is not here was refused by the export, because its answers "
        f"were further than a quarter of the largest one from those of the model. {found['sessions']}",
        "",
        f"`python examples/benchmarks/int8.py {found['options']}`",
        "",
        "| model | accuracy % | bytes | share of bytes | ms | share of time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in (name for name in next(iter(seeds.values())) if all(name in rows for rows in seeds.values())):
        accuracy, size, share, ms, time_share = (
            statistics.mean(rows[name][field] for rows in seeds.values())
            for field in ("accuracy", "bytes", "size", "ms", "time")
        )
        lines.append(
            f"| {name} | {100 * accuracy:.2f} | {size / 1e6:.2f} MB | {share:.3f} | {ms:.2f} | {time_share:.3f} |"
        )
    lines += ["", *aims(found)]
    if found["recipe"].get("embedding_rank"):
        lines += ["", WAYS]
    if found["remark"]:
        lines += ["", found["remark"]]
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def aims(found: dict[str, Any]) -> list[str]:
    """What was asked of packed int8 models in ONNX Runtime, and whether they have it, as a table."""
    seeds: list[dict[str, dict[str, Any]]] = list(found["seeds"].values())
    dense = max(
        statistics.mean(rows[f"{name}, {FIRST}"]["accuracy"] for rows in seeds)
        for name in ("dense", TRAINED)
        if all(f"{name}, {FIRST}" in rows for rows in seeds)
    )
    lines = [
        f"Asked of a packed int8 model in ONNX Runtime: at most {AIMS['time']:.2f} of the time, {AIMS['size']:.2f} of "
        f"the bytes, and {100 * AIMS['lost']:g} point lost to the better dense model in float32.",
        "",
        "| model | time | bytes | points lost |",
        "| --- | --- | --- | --- |",
    ]
    calibrated = all(f"{level:.0%} removed, {INT8}, calibrated" in rows for rows in seeds for level in found["levels"])
    form = f"{INT8}, calibrated" if calibrated else INT8  # without ranges, convolutions stay in float32
    for level in found["levels"]:
        rows = [rows[f"{level:.0%} removed, {form}"] for rows in seeds]
        values = {field: statistics.mean(row[field] for row in rows) for field in ("time", "size")}
        values["lost"] = dense - statistics.mean(row["accuracy"] for row in rows)
        words = {field: "holds" if value <= AIMS[field] else "fails" for field, value in values.items()}
        cells = [f"{values[field]:.3f}, {words[field]}" for field in ("time", "size")]
        lines.append(f"| {level:.0%} removed | {' | '.join(cells)} | {100 * values['lost']:.2f}, {words['lost']} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--levels", type=float, nargs="+", default=[], help="removed; default: 0.8 (sst2), 0.5 (cifar10)"
    )
    parser.add_argument("--control", action="store_true", help="also the dense model that is trained on as long")
    parser.add_argument("--samples", type=int, default=2000, help="of the validation data, at most")
    parser.add_argument("--remark", default="", help="on the conditions, for the card")
    args, task = parsed(parser, "int8")
    args.levels = args.levels or {"sst2": [0.8], "cifar10": [0.5]}[args.task]
    torch.set_num_threads(1)
    about = {"environment": environment(), "task": args.task, "levels": args.levels, "recipe": task.recipe()}
    about |= {"samples": min(args.samples, len(samples(task))), "sessions": SESSIONS, "options": shown(sys.argv[1:])}
    written = json.loads(args.output.read_text()) if args.output.exists() else {}
    same = all(written.get(name) == value for name, value in json.loads(json.dumps(about)).items())
    seeds = written["seeds"] if same else {}
    for seed in args.seeds:
        if str(seed) not in seeds:
            seeds[str(seed)] = measured(task, args, seed)
            write_json(
                args.output, {**about, "remark": args.remark, "seeds": {name: seeds[name] for name in sorted(seeds)}}
            )
    render(args)


if __name__ == "__main__":
    main()
