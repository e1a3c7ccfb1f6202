"""One run: a base compressed by a peer, saved in its own way, and scored as that way gives it back."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from harness.runs import Run, environment, write_json
from harness.sizes import sizes
from harness.task import Task
from harness.training import pruning_config
from torch import nn
from transformers import PreTrainedModel, set_seed

from optimum.dendritic.structure.targets import target_names

from .job import Job
from .registry import ALL, module_of

TAKEN = ("method", "level", "seed", "recipe", "score", "examples", "parameters", "macs", "train_cpu_seconds")
TAKEN += ("train_seconds", "samples", "environment")
FILES = ("model.safetensors", "config.json")  # of a model, by `save_pretrained`
OWN_WAY, STOCK, PICKLE, ANSWERS = "own", "stock", "pickle.pt", "answers.pt"


def conditions(task: Task, method: str, level: float, seed: int) -> dict[str, Any]:
    """What must be equal for a finished run to count."""
    return {"method": method, "level": level, "seed": seed, "recipe": task.recipe(), "package": ALL[method].package}


def make(task: Task, method: str, level: float, seed: int, base: Path, folder: Path) -> dict[str, Any]:
    """Compress, save under `folder`, and score."""
    set_seed(seed)
    peer = module_of(method)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / OWN_WAY).mkdir(parents=True)
    start = time.process_time(), time.perf_counter()
    dense = task.load(base).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    model = peer.compress(dense, Job(task, base, level, seed, folder / "scratch"))
    seconds = {"train_cpu_seconds": time.process_time() - start[0], "train_seconds": time.perf_counter() - start[1]}
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    model.eval()
    peer.save(model, folder / OWN_WAY)
    saved = save_as_others_do(model, folder)
    loaded = peer.load(folder / OWN_WAY, task.load(base)).eval()
    score = task.score(loaded)
    write_answers(loaded, task, folder)
    names = target_names(task.load(base), pruning_config(task, Run("dendritic", level, seed)))
    counts = sizes(loaded, task.example_inputs(), [name for name in names if has(loaded, name)])
    del counts["layers"]
    return {
        **conditions(task, method, level, seed),
        "score": score.value,
        "examples": score.examples,
        **counts,
        "nonzero": sum(int(p.count_nonzero()) for p in loaded.parameters()),
        "bytes": bytes_of(folder / OWN_WAY),
        "dense_bytes": model_bytes(base),
        "saved": saved,
        **seconds,
        "samples": task.samples(),
        "environment": with_package(environment(), ALL[method].package),
    }


def with_package(found: dict[str, Any], package: str) -> dict[str, Any]:
    """The environment, and the version of the peer."""
    name = package.partition("==")[0]
    return found | {"versions": found["versions"] | ({name: metadata.version(name)} if name else {})}


def has(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def model_bytes(folder: Path) -> int:
    """Of what `save_pretrained` writes of a model."""
    return sum((folder / name).stat().st_size for name in FILES)


def take(task: Task, table: Path, folder: Path, methods: Sequence[str], levels: Sequence[float]) -> None:
    """Our own runs, at the levels of the peers, beside theirs, and the base: what is compared of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(table.glob("*-seed*.json")):
        run = json.loads(path.read_text())
        wanted = run.get("method") in ("base", *methods) and run["level"] in (0.0, *levels)
        if path.stem.endswith(".time") or not wanted or run.get("variant"):
            continue
        base = Run(run["method"], run["level"], run["seed"], base_seed=run.get("base_seed")).base
        own = {name: run[name] for name in TAKEN}
        sizes_of = {"bytes": model_bytes(table / path.stem), "dense_bytes": model_bytes(table / base.name)}
        kept = folder / path.stem
        (kept / STOCK).mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(table / path.stem / name, kept / STOCK)
        model = task.load(kept / STOCK)
        write_answers(model, task, kept)
        nonzero = sum(int(p.count_nonzero()) for p in model.parameters())
        write_json(folder / path.name, own | sizes_of | {"nonzero": nonzero})


def save_as_others_do(model: nn.Module, folder: Path) -> dict[str, str]:
    """Write what `save_pretrained` and pickling make of the model; the error of each that fails."""
    assert isinstance(model, PreTrainedModel)
    ways: dict[str, Callable[[], object]] = {
        STOCK: lambda: model.save_pretrained(folder / STOCK),
        PICKLE: lambda: torch.save(model, folder / PICKLE),
    }
    return {name: attempt(way) for name, way in ways.items()}


def attempt(act: Callable[[], object]) -> str:
    """`""`, or the error."""
    try:
        act()
    except Exception as error:  # whatever a package raises is the finding
        return f"{type(error).__name__}: {error}"[:300]
    return ""


@torch.inference_mode()
def write_answers(model: nn.Module, task: Task, folder: Path) -> None:
    """What a model that was reloaded must answer, too."""
    inputs = task.example_inputs()
    torch.save({"inputs": inputs, "logits": model(**inputs).logits}, folder / ANSWERS)
