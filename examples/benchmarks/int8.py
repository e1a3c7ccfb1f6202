"""int8 on top of packing: accuracy, bytes and time of dense and packed models, in float32 and int8, in each runtime.

    python examples/benchmarks/int8.py sst2     # model_cards/int8-sst2.json and .md
    python examples/benchmarks/int8.py cifar10  # model_cards/int8-cifar10.json and .md

The dense model is the base of the seed in `--output_dir`, the packed one the run of `allocation.py` (SST-2, whole heads
and neurons) or of `cifar10.py`; what is missing is trained. The validation samples are run one by one, by all forms in
turn, block after block, on one thread; times are CPU times, and ratios medians over the blocks of those to the dense
model in PyTorch.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import torch
from cifar10 import Cifar10
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
Answer = Callable[[dict[str, Tensor]], int]
Form = tuple[Answer, int]  # the class that it answers to one sample, and its bytes on disk


def in_torch(model: nn.Module) -> Form:
    def answer(inputs: dict[str, Tensor]) -> int:
        with torch.inference_mode():
            return int(model(**inputs).logits.argmax())

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return answer, file.tell()


def in_onnx(model: nn.Module, task: Task, folder: Path, batches: list[dict[str, Tensor]] | None, int8: bool) -> Form:
    path = export_onnx(model, task.example_inputs(), folder, int8=int8, calibration=batches)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}

    def answer(inputs: dict[str, Tensor]) -> int:
        found: Any = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in names})
        return int(numpy.argmax(found[0]))

    return answer, sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith("model.onnx"))


def forms(task: Task, model: nn.Module, folder: Path) -> Iterator[tuple[str, Form]]:
    """Every form of a model, by name."""
    batches = [without_labels(batch) for batch in calibration(task, 128)]
    images = isinstance(task, Cifar10)
    model = model.to(memory_format=torch.contiguous_format) if images else model  # type: ignore[call-overload]
    yield "PyTorch, float32", in_torch(model)
    if not images:  # PyTorch quantizes linear layers, not convolutions
        yield "PyTorch, int8", in_torch(quantized(model))
    yield "ONNX Runtime, float32", in_onnx(model, task, folder / "float32", None, False)
    yield "ONNX Runtime, int8", in_onnx(model, task, folder / "int8", None, True)
    try:
        yield "ONNX Runtime, int8, calibrated", in_onnx(model, task, folder / "static", batches, True)
    except DendriticError as error:  # the export itself holds it against the model
        tqdm.write(f"refused: {error}")


def measured(task: Task, args: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    changes = CHANGES[args.task]
    variant = ",".join(changes)
    run = Run("dendritic", args.level, seed, variant=variant, changes=changes, base_seed=args.base_seed)
    for needed in (run.base, run):
        ensure(task, needed, args.output_dir)
    every = samples(task)[: args.samples]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Form] = {}
        for name, needed in (("dense", run.base), (f"{args.level:.0%} removed", run)):
            made = forms(task, task.load(args.output_dir / needed.name), Path(folder) / name)
            found |= {f"{name}, {form}": each for form, each in made}
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
    precision = "" if found["recipe"]["bf16"] else " --no-bf16"
    lines = [
        f"# int8 on top of packing: {TITLES[found['task']]}",
        "",
        f"Means of seeds {', '.join(seeds)}; {found['samples']} validation samples, one at a time, one thread, "
        f"{found['environment']['device']}. Shares are of the dense model in PyTorch, float32; its time is CPU time, "
        "taken in turn. *Calibrated* models have int8 activations of fixed ranges, found on 128 training samples; the "
        "others those that come; a calibrated model that is not here was refused by the export, because its answers "
        "were further than a quarter of the largest one from those of the model.",
        "",
        f"`python examples/benchmarks/int8.py {found['task']} --level {found['level']:g}{precision}`",
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
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", type=float, help="removed; default: 0.8 (sst2), 0.5 (cifar10)")
    parser.add_argument("--samples", type=int, default=2000, help="of the validation data, at most")
    args, task = parsed(parser, "int8")
    args.level = args.level or {"sst2": 0.8, "cifar10": 0.5}[args.task]
    torch.set_num_threads(1)
    seeds = {str(seed): measured(task, args, seed) for seed in args.seeds}
    about = {"environment": environment(), "task": args.task, "level": args.level, "recipe": task.recipe()}
    count = min(args.samples, len(samples(task)))
    write_json(args.output, {**about, "samples": count, "seeds": seeds})
    render(args)


if __name__ == "__main__":
    main()
