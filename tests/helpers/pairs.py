"""A program of these tests on two gloo processes, as `torchrun` would start it."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from helpers.processes import environment, wait_for_all


def on_two(program: str, out: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run the module `program`, whose first argument is `out`.

    Returns:
        What each process left in `out`, in a file of its rank: `0.pt` and `1.pt`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(2):
        own = environment(**common, RANK=str(rank), LOCAL_RANK=str(rank))
        command = [sys.executable, "-m", program, str(out), *arguments]
        with (out / f"{rank}.log").open("w") as said:
            children.append(subprocess.Popen(command, env=own, cwd=out, stdout=said, stderr=said))
    codes = wait_for_all(children)
    assert codes == [0, 0], "\n".join((out / f"{rank}.log").read_text()[-4000:] for rank in range(2))
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]
