"""A virtual environment for each package, with this repository in it and nothing of another peer."""

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

from .registry import ALL, BESIDES

ROOT = Path(__file__).resolve().parents[3]
TORCH = "torch==2.13.0"  # alone and first: the build for this machine


def install(folder: Path | None, names: Sequence[str]) -> None:
    """Make the environments of these peers in `folder`; one that is there is brought to what it should hold.

    Raises:
        ValueError: no folder is given.
        CalledProcessError: pip fails, and says why.
    """
    if folder is None:
        raise ValueError("--environments is None; it must be a folder, for example runs/peers/environments.")
    for package in dict.fromkeys(ALL[name].package for name in names if ALL[name].package):
        place = folder / package.partition("==")[0]
        if not (place / "bin/python").exists():
            venv.create(place, with_pip=True)
        for words in commands(package):
            subprocess.run([place / "bin/python", "-m", "pip", "install", "--quiet", *words], cwd=ROOT, check=True)


def commands(package: str) -> list[list[str]]:
    """What pip is asked for, call by call.

    >>> commands("nncf==3.4.0")[0]
    ['torch==2.13.0']
    """
    besides = BESIDES.get(package.partition("==")[0], ())
    return [[TORCH], ["-c", "constraints.txt", "-e", ".[examples]", package, *besides]]
