"""What a layout records: the present shape of one touched module, and the groups and dials between modules.

Each record refuses numbers that contradict each other, wherever they come from.
"""

import dataclasses
from dataclasses import dataclass, field

from .strict_json import LATER, bad

KINDS = ("heads", "neurons", "channels", "streams")  # of dependency groups
MOST_RETURNED = 16  # things that a block returns


@dataclass(frozen=True)
class Segments:
    """An injected layer.

    Attributes:
        arbors: Rows of its mask; of a recurrent layer, its layers times its directions.
        segments: Columns of its mask; of a recurrent layer, its hidden units; of the first consumer of a group that is
            cut, the units of the group; 0 for a layer that has no mask of its own, since nothing is pruned of it alone.
        activity: Whether it records the norms of its inputs.
        sprout: The rank of its sprout; 0 without one.
    """

    arbors: int
    segments: int
    activity: bool = False
    sprout: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        if self.arbors < 1:
            raise bad("segments", dataclasses.asdict(self), "arbors must be positive")


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
        span: Neighbouring inputs that are picked together; the indices of inputs count whole runs of so many.
    """

    inputs: int
    outputs: int
    kept: int
    arbors: tuple[int, ...]
    gather: bool
    scatter: bool
    sprout: int = field(default=0, metadata=LATER)
    span: int = field(default=1, metadata=LATER)

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
            and self.span >= 1
            and (self.gather or self.span == 1)
            and self.kept % self.span == self.inputs % self.span == 0
        )
        if not consistent:
            raise bad("form", dataclasses.asdict(self), "its numbers contradict each other")


@dataclass(frozen=True)
class Follower:
    """A module with one number of channels (BatchNorm, PReLU, depthwise convolution, norm, embedding), `channels` of
    which are left."""

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


@dataclass(frozen=True)
class Skipped:
    """A block of a stack that is gone from a packed model: what stands there returns what it is given.

    Attributes:
        returns: How many things it returns, the hidden states first; 0 for the hidden states alone, without a tuple.
    """

    returns: int

    def __post_init__(self) -> None:
        if not 0 <= self.returns <= MOST_RETURNED:
            raise bad("skipped.returns", self.returns, f"must be from 0 to {MOST_RETURNED}")


Record = Segments | Stack | Form | Recurrent | Follower | Skipped


@dataclass(frozen=True, kw_only=True)
class Run:
    """`count` blocks of indices along an axis: `[start + i * size, +size)` belongs to unit `unit + i` of a group."""

    start: int
    size: int
    unit: int
    count: int

    def __post_init__(self) -> None:
        if min(self.size, self.count) < 1:
            raise bad("run", dataclasses.asdict(self), "size and count must be positive")


@dataclass(frozen=True, kw_only=True)
class Member:
    """An axis that shrinks with a group.

    Attributes:
        name: The name of the module, or of the parameter that stands alone.
        runs: Which of its indices belong to which unit; other indices stay whatever becomes of the group.
        axis: Of a parameter that stands alone, which axis; of a norm, how many axes of its input follow its channels;
            0 for others.
    """

    name: str
    runs: tuple[Run, ...]
    axis: int = 0


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number that a module keeps and reshapes or splits by, and that shrinks with the units of a group.

    Attributes:
        module: The name of the module.
        name: The attribute.
        value: What it is while all units are alive: a multiple of their number.
    """

    module: str
    name: str
    value: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """A dependency group: units that live or die whole, each with all that leads to it and all that reads it.

    Attributes:
        kind: `"heads"`, `"neurons"`, `"channels"` or, where several layers read it or an embedding makes it,
            `"streams"`.
        units: How many units it has.
        producers: Layers that lose rows and embeddings that lose columns.
        consumers: Layers that lose inputs. The first one holds the mask of the group.
        passers: Modules on the way that have something for each channel: BatchNorm, PReLU, depthwise convolutions, and
            norms, which take their statistics over the channels that are left.
        parameters: Parameters that stand alone and lose entries along an axis: class tokens, positions, layer scales.
        cut: True if the tensors between them can shrink; False if removed channels must stay as zeros.
        numbers: Numbers of modules that have to be changed with the number of units.
    """

    kind: str
    units: int
    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]
    passers: tuple[Member, ...] = ()
    parameters: tuple[Member, ...] = ()
    cut: bool = True
    numbers: tuple[Number, ...] = ()

    @property
    def host(self) -> str:
        """The layer that holds the mask of the group."""
        return self.consumers[0].name

    @property
    def members(self) -> tuple[Member, ...]:
        """All members that are modules."""
        return (*self.producers, *self.consumers, *self.passers)

    def __post_init__(self) -> None:
        if self.units < 1 or not self.consumers or self.kind not in KINDS:
            raise bad("group", dataclasses.asdict(self), f"must have units, consumers and a kind of {', '.join(KINDS)}")


@dataclass(frozen=True, kw_only=True)
class Dial:
    """What a stock config can turn: numbers in it that say how many units each of some modules has.

    Attributes:
        fields: The numbers, by dotted path; they scale with the units that are kept.
        members: The first consumers of groups that are cut, or stacks, whose units are blocks. The dial has as many
            units as the member that has the fewest, and of each of the others a multiple; all keep the same part.
        counts: The ascending numbers of units that the config admits; empty for every number.
        lists: Lists in the config with one entry for each unit of a stack, by dotted path.
    """

    fields: tuple[str, ...]
    members: tuple[str, ...]
    counts: tuple[int, ...]
    lists: tuple[str, ...]
