"""Which runs a table has, where each one lies, and how an interrupted or divided table is continued."""

import argparse
import contextlib
import fcntl
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

SHRINKING = "shrinkage+magnitude"
PRUNED = ("dendritic", "magnitude", SHRINKING, "random")  # the same recipe, another importance
OWN_RATE = "dense-own-rate"
DENSE = ("dense", OWN_RATE)  # of the same size as the base; the better of them is what others are compared with
METHODS = (*DENSE, *PRUNED, "smaller-dense")


@dataclass(frozen=True)
class Run:
    """One model of the table.

    Attributes:
        method: `"base"`, one of `METHODS`.
        level: The fraction of the budget that is removed; 0 for `"base"` and those in `DENSE`.
        variant: The name of an ablation, empty for the recipe itself.
        changes: The fields of `DendriticConfig` that the ablation sets.
        base_seed: The seed of the base that it starts from, if that is not its own.
    """

    method: str
    level: float
    seed: int
    variant: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    base_seed: int | None = None

    @property
    def name(self) -> str:
        return f"{self.method}{f'+{self.variant}' if self.variant else ''}-{self.level:g}-seed{self.seed}"

    @property
    def base(self) -> "Run":
        """The run that this one starts from."""
        return Run("base", 0.0, self.seed if self.base_seed is None else self.base_seed)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def planned(args: argparse.Namespace, own_rate: bool = True) -> Iterator[Run]:
    """Seed by seed, so that an interrupted table is a whole table of fewer seeds. A variant has pruned runs only.

    Args:
        own_rate: whether the learning rate of the second dense control differs at all.
    """
    for seed in args.seeds:
        for method in (method for method in args.methods if own_rate or method != OWN_RATE):
            if method in PRUNED:
                own = [
                    Run(method=method, level=level, seed=seed, variant=args.variant, changes=args.config)
                    for level in args.levels
                ]
            elif not args.variant:
                own = [Run(method, level, seed) for level in ([0.0] if method in DENSE else args.levels)]
            else:
                own = []
            yield from (replace(run, base_seed=args.base_seed) for run in own)


def parse_change(text: str) -> tuple[str, Any]:
    """`"regrow=0.0"` -> `("regrow", 0.0)`; what is not JSON is a string.

    >>> parse_change("segment_size=64"), parse_change("importance=taylor")
    (('segment_size', 64), ('importance', 'taylor'))
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be field=value, for example regrow=0.0")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """All or nothing, because a file that is there counts as a finished run."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.replace(path)


def is_done(path: Path, conditions: dict[str, Any]) -> bool:
    """Whether the run at `path` is finished.

    Raises:
        ValueError: it was made under other conditions than `conditions` says.
    """
    if not path.exists():
        return False
    run = json.loads(path.read_text())
    for name, value in json.loads(json.dumps(conditions)).items():
        found = run[name]
        if name == "pruning" and found and value:  # fields that a later release adds have their defaults in both
            found, value = ({key: fields[key] for key in found.keys() & value.keys()} for fields in (found, value))
        if found != value:
            raise ValueError(f"{path} was made with {name} {found}, not {value}: choose another --output_dir.")
    return True


@contextlib.contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process may make the run at `path`: False while another one does. A dead process claims nothing."""
    lock = path.parent / ".locks" / path.stem
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def environment() -> dict[str, Any]:
    """Device, threads and versions."""
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processors[0].partition(":")[2].strip()
    packages = ("torch", "transformers", "accelerate", "datasets", "optimum-dendritic")
    versions = {package: metadata.version(package) for package in packages} | {"python": platform.python_version()}
    return {"device": device, "threads": torch.get_num_threads(), "versions": versions}
