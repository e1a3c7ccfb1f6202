"""The fresh process of `memory.py`: `python -m optimum.dendritic.efficiency.peak FOLDER`, started for one model.

On a CPU (Linux) it imports the model's code, starts the math libraries and notes its resident set; then it loads the
model, runs one forward pass, and reports by how much its peak resident set (`VmHWM`, set back through
`/proc/self/clear_refs`) rose. `ru_maxrss` would not do: it cannot be set back, and Linux hands a parent's maximum on to
its child. On a CUDA device the figure is the rise of `torch.cuda.max_memory_allocated`.

A model's class may stand in the caller's script, which pickle knows as `__main__`. That script is never run again: it
would train again. What stands in for it are its definitions (imports, classes, functions and constants).
"""

from __future__ import annotations

import ast
import gc
import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from .evaluation_mode import evaluation_mode

REMEDY = "Move the class, and what it needs, to a module that can be imported."


class Definitions(ModuleType):
    """What a script defines, made when the first of its names is asked for. None of its other statements run."""

    def __init__(self, file: str | None, package: str | None) -> None:
        super().__init__("__main__")
        self.__file__, self.__package__ = file, package

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # Python itself asks for these
            raise AttributeError(name)
        if "__made__" in vars(self):
            raise self._without(name, "and by none of its definitions")
        if self.__file__ is None:
            raise self._without(name, "which is not a file")
        vars(self)["__made__"] = True
        tree = ast.parse(Path(self.__file__).read_bytes(), self.__file__)
        tree.body = [statement for statement in tree.body if defines(statement)]
        exec(compile(tree, self.__file__, "exec", dont_inherit=True), vars(self))
        return getattr(self, name)

    def _without(self, name: str, why: str) -> ImportError:  # an AttributeError would be put in pickle's own words
        return ImportError(f"{name} is defined in __main__, {why}. {REMEDY}")


def defines(statement: ast.stmt) -> bool:
    """Whether a statement imports or defines, or gives a name to a constant."""
    if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
        try:
            ast.literal_eval(statement.value)
        except (ValueError, TypeError):
            return False
        return True
    return isinstance(
        statement, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.AnnAssign
    )


def main(folder: Path) -> None:
    """Measure the model in `folder` as `request.json` says, and write the figure, or why there is none, there."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    device, script = torch.device(request["device"]), Definitions(request["main"], request["package"])
    sys.modules["__main__"] = script
    try:
        answer = COUNTERS[device.type](folder / "model.pt", device)
    except Exception as error:  # the model's own code runs; the text becomes the caller's warning
        answer = f"{type(error).__name__} in the fresh process: {error}"
        if "__made__" in vars(script) and REMEDY not in answer:
            answer += f" (its class is defined in __main__, of which only the definitions are made. {REMEDY})"
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def _start_libraries(device: torch.device) -> None:
    """Products, attention and a convolution: threads, oneDNN and the workspace of cuBLAS are not the model's memory."""
    with torch.inference_mode(), device:
        nn.TransformerEncoderLayer(64, 2, 256, activation="gelu", batch_first=True)(torch.zeros(1, 64, 64))
        nn.Conv2d(8, 8, 3)(torch.zeros(1, 8, 16, 16))


def _load_and_run(path: Path, device: torch.device) -> None:
    # Unpickling is safe here alone: the parent wrote the file a moment ago, into a folder that only its user can enter.
    model, batch = torch.load(path, map_location=device, weights_only=False)
    with torch.inference_mode(), evaluation_mode(model):
        batch.run(model)


def _peak_on_cpu(path: Path, device: torch.device) -> int:
    torch.load(path, map_location="meta", weights_only=False)  # imports the model's code and reads no weights
    _start_libraries(device)
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # sets the peak back to the present resident set
    before = _resident("VmRSS")
    _load_and_run(path, device)
    return _resident("VmHWM") - before


def _peak_on_cuda(path: Path, device: torch.device) -> int:
    _start_libraries(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _load_and_run(path, device)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident(field: str) -> int:
    """Bytes of a field of `/proc/self/status`, which counts in KiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))


COUNTERS = {"cpu": _peak_on_cpu, "cuda": _peak_on_cuda}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
