"""Peak memory of inference, in a fresh process for each model, so that nothing that the caller holds counts.

The model travels in a temporary file to `python -m optimum.dendritic.efficiency.peak`, which measures and writes down
what it found. No script of the caller is run: of a class that stands in `__main__`, the process makes the definitions
of that file alone (see `peak.py`). Where it fails there is no figure, and a warning that says why.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .batch import Batch
from .wakeful import wakeful_of

logger = logging.get_logger(__name__)

TIMEOUT_SECONDS = 600.0
COUNTED = ("cpu", "cuda")  # kinds of devices that peak.py has a counter for


def peak_memory(model: nn.Module, batch: Batch, *, device: torch.device, threads: int) -> int | None:
    """Peak bytes that loading `model` and running `batch` once add to a process; None, and a warning, if unknown."""
    if device.type not in COUNTED:
        return _absent(f"there is no counter for device {str(device)!r}, only for {list(COUNTED)}")
    with tempfile.TemporaryDirectory(prefix="dendritic-") as folder:
        try:
            with _without_capturing(model):
                torch.save((model, batch), Path(folder, "model.pt"))
        except Exception as error:  # pickling runs the model's own code: anything may come
            return _absent(f"the model cannot be sent to a fresh process ({type(error).__name__}: {error})")
        answer = _ask(Path(folder), {"device": str(device), "threads": threads})
    return answer if isinstance(answer, int) else _absent(answer)


@contextmanager
def _without_capturing(model: nn.Module) -> Iterator[None]:
    """Remove, for a while, the hooks by which transformers collects hidden states: they are closures, which cannot be
    pickled, and the fresh process needs no hidden states."""
    besides = wakeful_of(model)
    modules = [*model.modules(), *(() if besides is None else besides.modules())]
    registries = {module: module._forward_hooks for module in modules}
    try:
        for module, hooks in registries.items():
            module._forward_hooks = OrderedDict(
                (key, hook) for key, hook in hooks.items() if hook.__module__ != "transformers.utils.output_capturing"
            )
        yield
    finally:
        for module, hooks in registries.items():
            module._forward_hooks = hooks


def _absent(why: str) -> None:
    logger.warning(f"Peak memory is not measured: {why.rstrip('.')}.")


def _ask(folder: Path, request: dict[str, Any]) -> int | str:
    """The figure of the fresh process, or the reason why there is none."""
    main = vars(sys.modules["__main__"])
    request |= {"main": main.get("__file__"), "package": main.get("__package__")}
    Path(folder, "request.json").write_text(json.dumps(request), encoding="utf-8")
    paths = [os.path.abspath(path) for path in sys.path]  # an empty one is the present folder
    command = [sys.executable, "-P", "-m", "optimum.dendritic.efficiency.peak", str(folder)]
    try:
        child = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"the fresh process gave no answer within {TIMEOUT_SECONDS:.0f} s"
    except OSError as error:
        return f"no fresh process could be started ({error})"
    answer = Path(folder, "answer.json")
    if answer.exists():
        return json.loads(answer.read_text(encoding="utf-8"))
    last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return f"the fresh process ended with exit code {child.returncode}{last and f' ({last})'}"
