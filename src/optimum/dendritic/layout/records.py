"""What a layout records: the present shape of one touched module, and the wires and dials between modules.

Each record refuses numbers that contradict each other, wherever they come from.
"""

import dataclasses
from dataclasses import dataclass, field

from .strict_json import LATER, bad


@dataclass(frozen=True)
class Segments:
    """An injected layer.

    Attributes:
        arbors: Rows of its mask; of a recurrent layer, its layers times its directions.
        segments: Columns of its mask; of a recurrent layer, its hidden units.
        activity: Whether it records the norms of its inputs.
        sprout: The rank of its sprout; 0 without one.
    """

    arbors: int
    segments: int
    activity: bool = False
    sprout: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        if min(self.arbors, self.segments) < 1:
            raise bad("segments", dataclasses.asdict(self), "arbors and segments must be positive")


@dataclass(frozen=True, kw_only=True)
class Form:
    """A packed layer.

    Attributes:
        inputs: Width of the incoming tensor.
        outputs: Width of the outgoing tensor.
        kept: Inputs that each arbor reads.
        arbors: Rows that each arbor owns; their sum is the rows that exist.
        gather: Whether `kept` inputs are picked from the incoming tensor.
        scatter: Whether rows are placed in a wider outgoing tensor of zeros.
        sprout: Rank of its sprout, which reads the whole incoming tensor; 0 without one.
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
        hidden: Hidden units that outputs and states have places for.
        kept: Hidden units that are left in each direction of each layer.
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """Pairs of blocks: outputs `[start + i * size, +size)` of a producer reach the reader's inputs
    `[reach + i * width, +width)`, all to all within a pair.

    Attributes:
        start: The first output.
        size: The number of outputs in a block.
        reach: The first input.
        width: The number of inputs in a block.
        count: The number of pairs.
    """

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
    """The runs from one module to another.

    Attributes:
        name: The name of the module that they lead from.
        runs: The runs, in the order of the outputs that they start from.
    """

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An exclusive bundle: everything that `producers` make goes to `reader` and nowhere else.

    Attributes:
        reader: Name of the reading layer, whose pruned inputs remove the producers' channels.
        producers: Layers whose rows are removed; their runs lead to the reader.
        followers: Per-channel modules on the way; their runs lead from the follower to the reader.
        block: Number of inputs of the reader that can only be removed together (a channel's pixels, a head).
        cut: True if the tensor between them can shrink; False if removed channels must stay as zeros.
    """

    reader: str
    producers: tuple[Wire, ...]
    followers: tuple[Wire, ...]
    block: int
    cut: bool

    def __post_init__(self) -> None:
        if self.block < 1:
            raise bad("bundle.block", self.block, "must be positive")


@dataclass(frozen=True, kw_only=True)
class Dial:
    """What a stock config can turn: numbers in it that say how many units each of some modules has.

    Attributes:
        fields: The numbers, by dotted path; they scale with the units that are kept.
        members: Readers of cut bundles (units: blocks of inputs) or stacks (units: blocks); all keep equally many.
        counts: The ascending numbers of units that the config admits; empty for every number.
        lists: Lists in the config with one entry for each unit of a stack, by dotted path.
    """

    fields: tuple[str, ...]
    members: tuple[str, ...]
    counts: tuple[int, ...]
    lists: tuple[str, ...]
