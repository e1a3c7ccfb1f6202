"""A client of the local Hub: a process with its own environment, in which the tests call functions by name.

huggingface_hub reads its environment when it is imported, and one test's clients may not have imported this package: so
`Client` starts a bare process, and what runs there imports what it needs.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from helpers.processes import HANGS

T = TypeVar("T")


class Client:
    """One process. `client(function, *args, **kwargs)` calls a module's function there and returns or raises as it."""

    def __init__(self, pool: ProcessPoolExecutor, home: Path) -> None:
        self.pool, self.home = pool, home

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return self.pool.submit(function, *args, **kwargs).result(timeout=HANGS)


@contextmanager
def start(url: str, home: Path, **environment: str) -> Iterator[Client]:
    """A client of the Hub at `url`, whose cache and log-in are in `home`."""
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_ETAG_TIMEOUT": str(HANGS),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(HANGS),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    } | environment
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with patch.dict(os.environ, settings):
            pool.submit(os.getpid).result(timeout=HANGS)  # starts the process, with this environment
        yield Client(pool, home)
