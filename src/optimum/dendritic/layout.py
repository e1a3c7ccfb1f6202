"""The layout: a versioned JSON record of every touched module's present shape and of the wires between modules.

It travels in `config.json` under `quantization_config` and is all that a loader needs to rebuild the skeleton. Reading
one is strict: an unknown version, field or shape raises `CheckpointError` before a module is made from it.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .config import DendriticConfig
from .errors import CheckpointError, invalid

METHOD = "dendritic"
VERSION = 1
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Segments:
    """An injected layer: a mask of `arbors x segments` tiles; `activity` where the score needs input norms."""

    arbors: int
    segments: int
    activity: bool = False


@dataclass(frozen=True)
class Form:
    """A packed layer.

    Attributes:
        inputs: width of the incoming tensor.
        outputs: width of the outgoing tensor.
        kept: inputs that each arbor reads.
        arbors: rows that each arbor owns; their sum is the rows that exist.
        gather: whether `kept` inputs are picked from the incoming tensor.
        scatter: whether rows are placed in a wider outgoing tensor of zeros.
    """

    inputs: int
    outputs: int
    kept: int
    arbors: tuple[int, ...]
    gather: bool
    scatter: bool

    @property
    def plain(self) -> bool:
        """A stock layer of smaller shape."""
        return not self.gather and not self.scatter

    def __post_init__(self) -> None:
        rows = sum(self.arbors)
        consistent = (
            len(self.arbors) > 0
            and self.kept <= self.inputs
            and (self.gather or (self.kept == self.inputs and len(self.arbors) == 1))
            and (rows <= self.outputs if self.scatter else rows == self.outputs)
        )
        if not consistent:
            raise invalid(
                "form", dataclasses.asdict(self), "its numbers contradict each other", _REMEDY, CheckpointError
            )


@dataclass(frozen=True)
class Follower:
    """A per-channel module (BatchNorm, PReLU, depthwise convolution) with `channels` left."""

    channels: int


@dataclass(frozen=True)
class Run:
    """`count` pairs of blocks: outputs `[start + i * size, +size)` of a producer reach the reader's inputs
    `[reach + i * width, +width)`, all to all within a pair."""

    start: int
    size: int
    reach: int
    width: int
    count: int


@dataclass(frozen=True)
class Wire:
    """The runs from one module to another."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Bundle:
    """An exclusive bundle: everything that `producers` make goes to `reader` and nowhere else.

    Attributes:
        reader: name of the reading layer, whose pruned inputs kill the producers' channels.
        producers: layers whose rows die; their runs lead to the reader.
        followers: per-channel modules on the way; their runs lead from the follower to the reader.
        block: inputs of the reader that can only die together (a channel's pixels, a head).
        cut: True when the tensor between them can shrink; False when dead channels must stay as zeros.
    """

    reader: str
    producers: tuple[Wire, ...]
    followers: tuple[Wire, ...]
    block: int
    cut: bool


@dataclass(frozen=True)
class Layout:
    """`config`, the touched `modules`, the `bundles`, and `positions`: products per sample of each weight, for MACs."""

    config: DendriticConfig
    modules: dict[str, Segments | Form | Follower]
    bundles: tuple[Bundle, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    dense_cost: int = 0

    @property
    def packed(self) -> bool:
        return any(isinstance(record, Form) for record in self.modules.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse."""
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "config": self.config.to_dict(),
            "modules": {name: {_KIND[type(m)]: dataclasses.asdict(m)} for name, m in self.modules.items()},
            "bundles": [dataclasses.asdict(bundle) for bundle in self.bundles],
            "positions": dict(self.positions),
            "dense_cost": self.dense_cost,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Layout":
        """Read `to_dict`'s form. Raises `CheckpointError` for anything that `to_dict` would not have written."""
        if not isinstance(data, dict) or data.get("version") != VERSION or isinstance(data.get("version"), bool):
            version = data.get("version") if isinstance(data, dict) else data
            rule = f"this release reads layout version {VERSION}"
            raise invalid("quantization_config.version", version, rule, "Upgrade optimum-dendritic.", CheckpointError)
        _only(
            data,
            "quantization_config",
            {"quant_method", "version", "config", "modules", "bundles", "positions", "dense_cost"},
        )
        modules = _mapping(data["modules"], "modules")
        return cls(
            config=_config(data["config"]),
            modules={name: _record(record, f"modules.{name}") for name, record in modules.items()},
            bundles=tuple(_bundle(b, f"bundles[{i}]") for i, b in enumerate(_list(data["bundles"], "bundles"))),
            positions={k: _count(v, f"positions.{k}") for k, v in _mapping(data["positions"], "positions").items()},
            dense_cost=_count(data["dense_cost"], "dense_cost", _LARGEST**2),
        )


_KIND: dict[type, str] = {Segments: "segments", Form: "form", Follower: "follower"}
_REMEDY = "The file is damaged or was not written by optimum-dendritic; save the model again."
Record = TypeVar("Record")


def _bad(where: str, value: object, rule: str) -> Exception:
    text = repr(value)
    return invalid(where, value if len(text) < 200 else text[:200] + "…", rule, _REMEDY, CheckpointError)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _bad(where, value, "must be a JSON object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _bad(where, value, "must be a JSON array")
    return list(value)


def _only(data: dict[str, Any], where: str, names: set[str]) -> None:
    if set(data) != names:
        raise _bad(where, sorted(set(data) ^ names), f"must have exactly the fields {', '.join(sorted(names))}")


def _count(value: Any, where: str, largest: int = _LARGEST) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise _bad(where, value, f"must be an integer in [0, {largest}]")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _bad(where, value, "must be true or false")
    return value


def _config(value: Any) -> DendriticConfig:
    try:
        return DendriticConfig.from_dict(_mapping(value, "config"))
    except ValueError as error:
        raise CheckpointError(f"config: {error} {_REMEDY}") from None


def _record(value: Any, where: str) -> Segments | Form | Follower:
    kind, fields = next(iter(_mapping(value, where).items()), ("", None))
    if len(value) != 1 or kind not in _KIND.values():
        raise _bad(where, value, f"must be one of {', '.join(_KIND.values())}")
    fields = _mapping(fields, where)
    record_type = next(t for t, k in _KIND.items() if k == kind)
    _only(fields, where, {f.name for f in dataclasses.fields(record_type)})
    if record_type is Follower:
        return Follower(_count(fields["channels"], where))
    if record_type is Segments:
        counts = [_count(fields[name], f"{where}.{name}") for name in ("arbors", "segments")]
        if 0 in counts:
            raise _bad(where, fields, "arbors and segments must be positive")
        return Segments(*counts, activity=_flag(fields["activity"], f"{where}.activity"))
    arbors = tuple(_count(rows, f"{where}.arbors") for rows in _list(fields["arbors"], f"{where}.arbors"))
    widths = {name: _count(fields[name], f"{where}.{name}") for name in ("inputs", "outputs", "kept")}
    flags = {name: _flag(fields[name], f"{where}.{name}") for name in ("gather", "scatter")}
    return Form(arbors=arbors, **widths, **flags)


def _bundle(value: Any, where: str) -> Bundle:
    fields = _mapping(value, where)
    _only(fields, where, {f.name for f in dataclasses.fields(Bundle)})
    if not isinstance(fields["reader"], str):
        raise _bad(f"{where}.reader", fields["reader"], "must be a module name")
    wires = {
        name: tuple(_wire(w, f"{where}.{name}") for w in _list(fields[name], where))
        for name in ("producers", "followers")
    }
    return Bundle(fields["reader"], **wires, block=_count(fields["block"], where), cut=_flag(fields["cut"], where))


def _wire(value: Any, where: str) -> Wire:
    fields = _mapping(value, where)
    _only(fields, where, {"name", "runs"})
    if not isinstance(fields["name"], str):
        raise _bad(where, fields["name"], "must be a module name")
    runs = []
    for run in _list(fields["runs"], where):
        _only(_mapping(run, where), where, {f.name for f in dataclasses.fields(Run)})
        runs.append(Run(**{key: _count(number, f"{where}.{key}") for key, number in run.items()}))
    return Wire(fields["name"], tuple(runs))
