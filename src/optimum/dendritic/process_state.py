"""What all threads of a process share, changed for a while: attention kernels, the random state, warnings, output.

PyTorch and Python keep these for the whole process. Two threads that each note them, change them and put them back
would end with the change of one of them: so whoever changes one holds the same lock from the change to the restoration.
The lock is re-entrant, so that one change may contain another. Nothing else in this package changes such a state.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_LOCK = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """No other thread is in any of these meanwhile. So models of transformers are built, whose constructors exchange
    the functions of `torch.nn.init` for as long as they run."""
    with _LOCK:
        yield


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by plain products: fused kernels swallow NaN, and no counter of operations knows them."""
    with _LOCK, sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Encoder layers of `torch.nn` run module by module."""
    with _LOCK:
        enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def without_cudnn(needed: bool) -> Iterator[None]:
    """Where `needed`, recurrent layers run without cuDNN, which has no gradients for them in eval mode."""
    with _LOCK, torch.backends.cudnn.flags(enabled=not needed):
        yield


@contextlib.contextmanager
def kept_random_state(devices: Sequence[torch.device | int] = ()) -> Iterator[None]:
    """Whatever is drawn meanwhile, the random states of the CPU and of these CUDA devices are afterwards as before."""
    with _LOCK, torch.random.fork_rng(devices):
        yield


@contextlib.contextmanager
def without_output() -> Iterator[None]:
    """Without what is printed and warned of meanwhile."""
    with _LOCK, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield
