"""Cases in a process of their own: one that dies or hangs is an outcome, and the next case starts in a new process."""

import contextlib
import json
import multiprocessing
import os
import resource
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

MEMORY = 6 * 2**30  # bytes that a case may ask for beyond what the process has


@dataclass(frozen=True)
class Trial:
    """One case: its number, its group in the table, what was done, and what came of it."""

    index: int
    group: str
    what: str
    outcome: str


Tell = Callable[[str, str], None]  # group, what is being done
Run = Callable[[int, Tell], str]  # number of a case -> outcome


def trials(run: Run, indices: Iterable[int], limit: float) -> Iterator[Trial]:
    """Run the cases one after another, each in whichever process is alive; one that takes `limit` seconds hangs."""
    left = list(indices)
    context = multiprocessing.get_context("fork")  # everything is imported already
    while left:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(run, left, ours, theirs))
        process.start()
        theirs.close()
        told = ["", ""]
        try:
            while left:
                if not ours.poll(limit):
                    yield Trial(
                        index=left.pop(0), group=told[0], what=told[1], outcome=f"hang: no answer in {limit:.0f} s"
                    )
                    break
                *new, outcome = json.loads(ours.recv_bytes())
                told = new or told
                if outcome is not None:
                    yield Trial(index=left.pop(0), group=told[0], what=told[1], outcome=outcome)
                    told = ["", ""]
        except (EOFError, OSError):
            process.join()
            yield Trial(
                index=left.pop(0),
                group=told[0],
                what=told[1],
                outcome=f"crash: the process ended with {process.exitcode}",
            )
        finally:
            process.kill()
            process.join()
            ours.close()


def _work(run: Run, indices: list[int], read: Connection, answers: Connection) -> None:
    read.close()  # so that nobody is left to answer to when the parent is gone

    def send(*words: str | None) -> None:
        answers.send_bytes(json.dumps(words).encode())

    with contextlib.suppress(ValueError):  # of a limit that is lower already
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    for index in indices:
        try:
            outcome = run(index, lambda group, what: send(group, what, None))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
            outcome = f"failed: {said[:300]}"
        send(outcome)
    answers.close()
    os._exit(0)  # a fork must not go on with what its parent has still to do
