"""Processes of their own that tests start, and how they wait for them."""

import os
import subprocess
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
HANGS = 3600  # seconds: a process that ends is noticed at once, and one that works is never as slow
PAUSE = 0.05


def environment(**settings: str) -> dict[str, str]:
    """Of a process that may import what the tests may, with one thread and without the Hub."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | settings


def wait_for_all(children: list[subprocess.Popen]) -> list[int | None]:
    """Wait until all have ended, or one has failed, for which the others would wait for ever: those are killed.

    Returns:
        The exit status of each; None of one that neither ended nor failed in `HANGS` seconds.
    """
    end = time.monotonic() + HANGS
    try:
        while None in (codes := [child.poll() for child in children]) and not any(codes) and time.monotonic() < end:
            time.sleep(PAUSE)
        return codes
    finally:
        for child in children:
            child.kill()
            child.wait()
