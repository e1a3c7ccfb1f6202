"""Peak memory of inference, in a fresh process for each model, so that nothing that the caller holds counts.

The model travels to the child in a temporary file. On a CPU (Linux) the child imports the model's code, starts the math
libraries and notes its resident set; then it loads the model, runs one forward pass, and reports by how much its peak
resident set (`VmHWM`, set back through `/proc/self/clear_refs`) rose. `ru_maxrss` would not do: it cannot be set back,
and Linux hands a parent's maximum on to its child. On a CUDA device the figure is the rise of
`torch.cuda.max_memory_allocated`.

The child is started with multiprocessing's "spawn", which imports the caller's script anew: a script that measures must
do so under `if __name__ == "__main__":`. Where the child fails there is no figure, and a warning that says why.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch
from torch import nn
from transformers.utils import logging

from .batch import Batch

logger = logging.get_logger(__name__)

PATIENCE_SECONDS = 600.0


def peak_memory(model: nn.Module, batch: Batch, *, device: torch.device, threads: int) -> int | None:
    """Peak bytes that loading `model` and running `batch` once add to a process; None, and a warning, if unknown."""
    if device.type not in _COUNTERS:
        return _absent(f"there is no counter for device {str(device)!r}, only for {sorted(_COUNTERS)}")
    with tempfile.TemporaryDirectory(prefix="dendritic-") as folder:
        path = os.path.join(folder, "model.pt")
        try:
            with _without_capturing(model):
                torch.save((model, batch), path)
        except Exception as error:  # pickling runs the model's own code: anything may come
            return _absent(f"the model cannot be sent to a fresh process ({type(error).__name__}: {error})")
        answer = _ask_child(path, device, threads)
    return answer if isinstance(answer, int) else _absent(answer)


@contextmanager
def _without_capturing(model: nn.Module) -> Iterator[None]:
    """transformers notes hidden states by hooks that it leaves behind, closures that cannot be pickled; nobody asks the
    child for hidden states."""
    registries = {module: module._forward_hooks for module in model.modules()}
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
    logger.warning(f"Peak memory is not measured: {why}.")


def _ask_child(path: str, device: torch.device, threads: int) -> int | str:
    """The child's figure, or the reason why there is none."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, path, str(device), threads), daemon=True)
    child.start()
    sender.close()  # the child holds the only other end, so its death ends the wait
    try:
        if not receiver.poll(PATIENCE_SECONDS):
            return f"the fresh process gave no answer within {PATIENCE_SECONDS:.0f} s"
        return receiver.recv()
    except EOFError:
        child.join()
        return (
            f"the fresh process ended with exit code {child.exitcode}; it imports the calling script, which must call "
            "`measure` under `if __name__ == '__main__':`"
        )
    finally:
        receiver.close()
        child.kill()
        child.join()


def _child(sender: Connection, path: str, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        sender.send(_COUNTERS[torch.device(device).type](path, torch.device(device)))
    except Exception as error:  # it crosses the process boundary as text and becomes the parent's warning
        sender.send(f"{type(error).__name__} in the fresh process: {error}")


def _start_libraries(device: torch.device) -> None:
    """Products, attention and a convolution: threads, oneDNN and the workspace of cuBLAS are not the model's memory."""
    with torch.inference_mode(), device:
        nn.TransformerEncoderLayer(64, 2, 256, activation="gelu", batch_first=True)(torch.zeros(1, 64, 64))
        nn.Conv2d(8, 8, 3)(torch.zeros(1, 8, 16, 16))


def _load_and_run(path: str, device: torch.device) -> None:
    # Unpickling is safe here alone: the parent wrote the file a moment ago, into a folder that only its user can enter.
    model, batch = torch.load(path, map_location=device, weights_only=False)
    for module in model.modules():
        module.training = False
    with torch.inference_mode():
        batch.run(model)


def _peak_on_cpu(path: str, device: torch.device) -> int:
    torch.load(path, map_location="meta", weights_only=False)  # imports the model's code and reads no weights
    _start_libraries(device)
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # sets the peak back to the present resident set
    before = _resident("VmRSS")
    _load_and_run(path, device)
    return _resident("VmHWM") - before


def _peak_on_cuda(path: str, device: torch.device) -> int:
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


_COUNTERS = {"cpu": _peak_on_cpu, "cuda": _peak_on_cuda}
