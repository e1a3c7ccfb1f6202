"""The ways in which numbers of a config may be a dial: one alone, several together, one with some that no tensor shows.

Each of them compares the change of the tensors that numbers make with the change that pruning some members would make,
and hands what agrees to the proof.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ..layout.records import Dial
from .changes import Blueprint, Change, merged
from .fields import fields_of, written_numbers
from .per_layer import layers_of

Prove = Callable[[Sequence[str], Sequence[str], Sequence[str]], Dial | None]


@dataclass(frozen=True)
class Attempt:
    """One number of units at which dials are looked for.

    Attributes:
        blueprint: The model.
        left: The members that are in no dial so far.
        used: The fields that are.
        size: The units of the dials that are looked for.
        count: How many of them are left.
        proved: The dial of some fields, lists beside them and members, if it is one.
    """

    blueprint: Blueprint
    left: Sequence[str]
    used: Collection[str]
    size: int
    count: int
    proved: Prove

    @property
    def members(self) -> list[str]:
        """Those of so many units that are in no dial."""
        return [member for member in self.left if self.blueprint.units[member] == self.size]

    def without(self, members: Sequence[str]) -> Change:
        """The change when members lose their part."""
        return self.blueprint.without(members, self.size, self.count)

    def turned(self, fields: Sequence[str], lists: Sequence[str] = ()) -> Change:
        """The change when numbers of the config say so."""
        return self.blueprint.turned(fields, lists, self.size, self.count)

    def numbers(self) -> dict[str, int]:
        """The numbers of the config that may say it."""
        numbers = written_numbers(self.blueprint.config).items()
        return {p: n for p, n in numbers if n >= self.size and n % self.size == 0 and p not in self.used}


def alone(attempt: Attempt) -> Iterator[Dial]:
    """Single numbers, or fields that are None, that change exactly the tensors of some members; with lists of as many
    entries where the units are blocks."""
    wants = {member: attempt.without([member]) for member in attempt.members}
    stacked = any(None in want.values() for want in wants.values())
    numbers = attempt.numbers()
    for path in [*numbers, *fields_of(attempt.blueprint.config, type(None))] if wants else ():
        lists = _lists_beside(attempt, path) if stacked and path in numbers else ()
        for beside in dict.fromkeys([lists, ()]):
            change = attempt.turned([path], beside)
            members = [m for m, want in wants.items() if want and want.items() <= change.items()]
            if members and change == merged(wants[m] for m in members):
                if (dial := attempt.proved([path], beside, members)) is not None:
                    wants = {m: want for m, want in wants.items() if m not in members}
                    yield dial
                    break


def together(attempt: Attempt) -> Iterator[Dial]:
    """Several numbers each of which changes a part of the tensors of some members (query heads and key-value heads)."""
    wants = {member: attempt.without([member]) for member in attempt.members}
    every = merged(wants.values())
    paths = [*attempt.numbers(), *fields_of(attempt.blueprint.config, type(None))] if wants else []
    moved = {path: attempt.turned([path]) for path in paths}
    moved = {path: change for path, change in moved.items() if change and change.items() <= every.items()}
    reached = merged(moved.values())
    members = [m for m, want in wants.items() if want and want.items() <= reached.items()]
    wanted = merged(wants[m] for m in members)
    parts = [path for path, change in moved.items() if change.items() < wanted.items()]
    if members and attempt.turned(parts) == wanted and (dial := attempt.proved(parts, (), members)) is not None:
        yield dial


def with_silent(attempt: Attempt) -> Iterator[Dial]:
    """A width with the numbers that divide it, of which the tensors do not tell (`hidden_size` and the heads, where
    the config says no width of a head): members that several units go of with each."""
    units, size = attempt.blueprint.units, attempt.size
    members = [m for m in attempt.left if m in attempt.blueprint.readers and units[m] % size == 0]
    wide, numbers = {units[member] for member in members} - {size}, attempt.numbers()
    widths = [path for path, value in numbers.items() if any(value % width == 0 for width in wide)]
    if len(members) < 2 or not attempt.members or not widths:
        return
    names = {member: attempt.without([member]).keys() for member in members}
    for path in widths:
        others = [other for other, value in numbers.items() if value <= numbers[path] and other != path]
        for beside in ([other for other in others if numbers[other] == size], others):
            change = attempt.turned([path, *beside])
            reached = [member for member in members if names[member] and names[member] <= change.keys()]
            if size not in {units[member] for member in reached} or change != attempt.without(reached):
                continue
            if (dial := attempt.proved([path, *beside], (), reached)) is not None:
                yield _fewest(attempt, dial)
                return


def _fewest(attempt: Attempt, dial: Dial) -> Dial:
    """The dial with no number that it holds without."""
    for path in dial.fields[1:]:
        rest = [field for field in dial.fields if field != path]
        if attempt.turned(rest) == attempt.turned(dial.fields):
            dial = attempt.proved(rest, (), dial.members) or dial
    return dial


def _lists_beside(attempt: Attempt, path: str) -> tuple[str, ...]:
    """Lists with one entry for each unit in the config that holds the field at `path`; what single layers have of their
    own among them."""
    config, holder = attempt.blueprint.config, path.rpartition(".")[0]
    lists = fields_of(config, list) | {name: layers for name, layers in layers_of(config).items() if any(layers)}
    return tuple(n for n, value in lists.items() if len(value) == attempt.size and n.rpartition(".")[0] == holder)
