"""The layout: a versioned JSON record of every touched module's present shape and of the wires between modules.

It travels in `config.json` under `quantization_config` and is all that a loader needs to rebuild the skeleton. Reading
one is strict: an unknown version, field or shape raises `CheckpointError` before a module is made from it.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .config import DendriticConfig
from .errors import CheckpointError, DendriticError, invalid
from .strict import LATER, REMEDY, bad, only, read

METHOD = "dendritic"
VERSION = 1


@dataclass(frozen=True)
class Segments:
    """An injected layer: a mask of `arbors x segments` tiles (of a recurrent layer: layers times directions, and hidden
    units); `activity` where input norms are needed; a sprout of rank `sprout`, if any."""

    arbors: int
    segments: int
    activity: bool = False
    sprout: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        if min(self.arbors, self.segments) < 1:
            raise bad("segments", dataclasses.asdict(self), "arbors and segments must be positive")


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
        sprout: rank of its sprout, which reads the whole incoming tensor; 0 for none.
    """

    inputs: int
    outputs: int
    kept: int
    arbors: tuple[int, ...]
    gather: bool
    scatter: bool
    sprout: int = field(default=0, metadata=LATER)

    @property
    def plain(self) -> bool:
        """A stock layer of smaller shape."""
        return not self.gather and not self.scatter and not self.sprout

    def __post_init__(self) -> None:
        rows = sum(self.arbors)
        consistent = (
            len(self.arbors) > 0
            and self.kept <= self.inputs
            and (self.gather or (self.kept == self.inputs and len(self.arbors) == 1))
            and (rows <= self.outputs if self.scatter else rows == self.outputs)
        )
        if not consistent:
            raise bad("form", dataclasses.asdict(self), "its numbers contradict each other")


@dataclass(frozen=True)
class Follower:
    """A per-channel module (BatchNorm, PReLU, depthwise convolution) with `channels` left."""

    channels: int


@dataclass(frozen=True)
class Recurrent:
    """A packed LSTM or GRU.

    Attributes:
        hidden: hidden units that outputs and states have places for.
        kept: hidden units that are left in each direction of each layer.
    """

    hidden: int
    kept: int

    @property
    def gather(self) -> bool:
        """Whether it picks inputs from a wider tensor: never, it reads all."""
        return False

    @property
    def scatter(self) -> bool:
        """Whether the units that are left are placed in a wider tensor of zeros."""
        return self.kept < self.hidden

    @property
    def plain(self) -> bool:
        """A stock layer."""
        return not self.scatter

    def __post_init__(self) -> None:
        if self.kept > self.hidden:
            raise bad("recurrent", dataclasses.asdict(self), "kept must not exceed hidden")


@dataclass(frozen=True)
class Stack:
    """An injected stack (`ModuleList`) of `blocks` that can be skipped whole."""

    blocks: int

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise bad("stack.blocks", self.blocks, "must be positive")


Record = Segments | Stack | Form | Recurrent | Follower
_KINDS: dict[str, type[Record]] = {
    "segments": Segments,
    "stack": Stack,
    "form": Form,
    "recurrent": Recurrent,
    "follower": Follower,
}


@dataclass(frozen=True)
class Run:
    """`count` pairs of blocks: outputs `[start + i * size, +size)` of a producer reach the reader's inputs
    `[reach + i * width, +width)`, all to all within a pair."""

    start: int
    size: int
    reach: int
    width: int
    count: int

    def __post_init__(self) -> None:
        if min(self.size, self.width, self.count) < 1:
            raise bad("run", dataclasses.asdict(self), "size, width and count must be positive")


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

    def __post_init__(self) -> None:
        if self.block < 1:
            raise bad("bundle.block", self.block, "must be positive")


@dataclass(frozen=True)
class Dial:
    """What a stock config can turn: numbers in it that say how many units each of some modules has.

    Attributes:
        fields: the numbers, by dotted path; they scale with the units that are kept.
        members: readers of cut bundles (units: blocks of inputs) or stacks (units: blocks); all keep equally many.
        counts: the ascending numbers of units that the config admits; empty for every number.
        lists: lists in the config with one entry for each unit of a stack, by dotted path.
    """

    fields: tuple[str, ...]
    members: tuple[str, ...]
    counts: tuple[int, ...]
    lists: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """`config`, the touched `modules`, the `bundles`, `positions`: products per sample of each weight, for MACs,
    and the `dials`, where only what a stock config can say is pruned."""

    config: DendriticConfig
    modules: dict[str, Record]
    bundles: tuple[Bundle, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    dense_cost: int = 0
    dials: tuple[Dial, ...] = ()

    @property
    def packed(self) -> bool:
        return any(isinstance(record, Form | Recurrent) for record in self.modules.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse."""
        kinds = {kind: name for name, kind in _KINDS.items()}
        fields = {
            "quant_method": METHOD,
            "version": VERSION,
            "config": self.config.to_dict(),
            "modules": {name: {kinds[type(m)]: dataclasses.asdict(m)} for name, m in self.modules.items()},
            "bundles": [dataclasses.asdict(bundle) for bundle in self.bundles],
            "positions": dict(self.positions),
            "dense_cost": self.dense_cost,
        }
        return fields | ({"dials": [dataclasses.asdict(dial) for dial in self.dials]} if self.dials else {})

    @classmethod
    def from_dict(cls, data: Any) -> "Layout":
        """Read `to_dict`'s form. Raises `CheckpointError` for anything that `to_dict` would not have written."""
        version = data.get("version") if isinstance(data, dict) else data
        if type(version) is not int or version != VERSION:
            rule = f"this release reads layout version {VERSION}"
            raise invalid("quantization_config.version", version, rule, "Upgrade optimum-dendritic.", CheckpointError)
        names = {field.name for field in dataclasses.fields(cls)} | {"quant_method", "version"}
        fields = only({"dials": [], **data} if isinstance(data, dict) else data, names, "quantization_config")
        if fields["quant_method"] != METHOD:
            raise bad("quantization_config.quant_method", fields["quant_method"], f"must be {METHOD!r}")
        if type(fields["dense_cost"]) is not int or not 0 <= fields["dense_cost"] < 2**62:
            raise bad("quantization_config.dense_cost", fields["dense_cost"], "must be an integer in [0, 2^62)")
        if not isinstance(fields["modules"], dict):
            raise bad("quantization_config.modules", fields["modules"], "must be a JSON object")
        return cls(
            config=_config(fields["config"]),
            modules={name: _module(record, f"modules.{name}") for name, record in fields["modules"].items()},
            bundles=read(tuple[Bundle, ...], fields["bundles"], "bundles"),
            positions=read(dict[str, int], fields["positions"], "positions"),
            dense_cost=fields["dense_cost"],
            dials=read(tuple[Dial, ...], fields["dials"], "dials"),
        )


def _config(value: object) -> DendriticConfig:
    try:
        return DendriticConfig.from_dict(value)
    except DendriticError as error:
        raise CheckpointError(f"quantization_config.config: {error} {REMEDY}") from None


def _module(value: object, where: str) -> Record:
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= _KINDS.keys():
        raise bad(where, value, f"must be one of {', '.join(_KINDS)}")
    (kind, fields), *_ = value.items()
    return read(_KINDS[kind], fields, where)
