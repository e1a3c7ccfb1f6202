"""Whether what a peer has saved comes back in a process that did not train it, and answers as it did.

By the peer's own way of loading, where its package is installed; by `from_pretrained`, by unpickling and by a state
dict in the stock class, where it is not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness.task import Task
from safetensors.torch import load_file
from torch import nn

from optimum.dendritic import measure

from .registry import OWN, module_of
from .runs import ANSWERS, OWN_WAY, PICKLE, STOCK, attempt

TOLERANCE = 1e-4  # of the logits


def own_way(task: Task, name: str, base: Path, folder: Path) -> dict[str, str]:
    """`""`, or why the peer's own way of loading fails."""
    return {"own": attempt(lambda: compare(loaded(task, name, base, folder), folder))}


def loaded(task: Task, name: str, base: Path, folder: Path) -> nn.Module:
    """As the peer gives it back; ours is loaded as any model is."""
    return task.load(folder / STOCK) if name == OWN else module_of(name).load(folder / OWN_WAY, task.load(base)).eval()


def stock_ways(task: Task, base: Path, folder: Path) -> dict[str, str]:
    """The same of the ways that need no package of a peer."""
    ways: dict[str, Callable[[], nn.Module]] = {
        "from_pretrained": lambda: task.load(folder / STOCK),
        "state dict": lambda: with_state(task.load(base), load_file(folder / STOCK / "model.safetensors")),
    }
    if (folder / PICKLE).exists():
        ways["pickle"] = lambda: torch.load(folder / PICKLE, weights_only=False)
    return {way: attempt(lambda load=load: compare(load(), folder)) for way, load in ways.items()}


def timed(task: Task, name: str, base: Path, folder: Path) -> dict[str, Any]:
    """Latencies as shares of the base's, both in turn."""
    options = {name: getattr(task.args, name) for name in ("large_batch", "threads", "seconds")}
    model = loaded(task, name, base, folder)
    report = measure(model, task.example_inputs(), baseline=task.load(base), memory=False, **options)
    return {"ratios": report.to_dict()["ratios"], "context": report.to_dict()["context"]}


def with_state(model: nn.Module, state: dict[str, Any]) -> nn.Module:
    model.load_state_dict(state)
    return model


@torch.inference_mode()
def compare(model: nn.Module, folder: Path) -> None:
    """Raises:
    ValueError: the model does not answer as it did before it was saved.
    """
    answers = torch.load(folder / ANSWERS)
    difference = float((model.eval()(**answers["inputs"]).logits - answers["logits"]).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"loads, but its logits differ by {difference:.2g}")
