"""All or nothing: whatever a step is about to overwrite is noted, and put back if anything is raised.

Noted is as little as will do: of a weight the tiles that are being pruned, of an optimizer's moments those that return,
masks, scores and sprouts whole. The notes live as long as the step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from .distributed.dtensor import local, reshard
from .errors import DendriticError
from .functional.tiles import Piece
from .nn import DendriticStack, DendriticWeight, Gates
from .nn.base import moments


class Notes:
    """What tensors held before they were overwritten; of a sharded one, what this process holds of it."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def note(self, *tensors: Tensor) -> list[Tensor]:
        """All of these tensors. Returns the copies."""
        parts = [local(tensor.detach()) for tensor in tensors]
        copies = [part.clone() for part in parts]
        self._undo += [partial(part.copy_, copy) for part, copy in zip(parts, copies, strict=True)]
        return copies

    def note_modules(self, model: nn.Module) -> None:
        """What its modules are and hold but for the values of their tensors: classes, flags, hooks, submodules, which
        tensor stands where; and its config."""
        held = [(module, type(module), vars(module)) for module in model.modules()]
        held += [(model.config, type(model.config), vars(model.config))] if isinstance(model, PreTrainedModel) else []
        for thing, kind, own in held:
            before = dict(own)
            contents = [(v, v.copy()) for v in before.values() if isinstance(v, dict | set | list)]
            self._undo.append(partial(_become_again_, thing, kind, before, contents))
        self._undo.append(partial(_reshard_if_possible, model))  # first, or FSDP2 would take a shard for the whole

    def note_tiles(self, pieces: Sequence[Piece], chosen: Bool[Tensor, "arbors segments"]) -> None:
        """Of these pieces what is part of the layer's `chosen` tiles."""
        for part in pieces:
            self._undo.append(partial(part.put_, chosen, part.take(chosen)))

    def note_counters(self, gates: Gates) -> None:
        """The mask, the score and what the layer has seen of its inputs."""
        self.note(gates.dendrite_mask, gates.dendrite_score)
        if gates.dendrite_activity is not None:
            self.note(gates.dendrite_activity, gates.seen_here())

    def note_pruned(self, gates: Gates) -> None:
        """All that setting what is pruned to zero overwrites: most likely it is zero already, and that is nothing."""
        if not gates.pruned_is_zero(gates.dendrite_mask, gates.segmented()):
            self.note(*gates.segmented().values())
        if gates.dendrite_activity is not None:
            self.note(gates.seen_here())

    def note_update(
        self,
        gates: Gates,
        mask: Bool[Tensor, "arbors segments"],
        back: Bool[Tensor, "arbors segments"],
        optimizer: Optimizer | None,
    ) -> None:
        """All that an update to a new `mask`, in which the segments `back` return, overwrites in a layer and in the
        state of the optimizer."""
        self.note_counters(gates)
        if isinstance(gates, DendriticStack):
            self.note(gates.dendrite_gate)  # those that are open are set, too
        for name, parameter in gates.segmented().items():
            self.note_tiles(gates.pieces({name: parameter.detach()}), ~mask)
            for moment in moments(parameter, optimizer):
                self.note_tiles(gates.pieces({name: moment}), back)
        if isinstance(gates, DendriticWeight) and gates.sprout is not None and gates.dendrite_awake is not None:
            grown = list(gates.sprout.parameters())
            self.note(gates.dendrite_awake, *grown, *(m for each in grown for m in moments(each, optimizer)))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, the last note first."""
        for undo in reversed(self._undo):
            undo()


def _reshard_if_possible(model: nn.Module) -> None:
    """Nothing where that is refused: what was raised before it is what is told."""
    with suppress(DendriticError):
        reshard(model)


def _become_again_(thing: object, kind: type, before: dict[str, Any], contents: list[tuple[Any, Any]]) -> None:
    """Give an object its class and attributes back; dicts, sets and lists among them stay the objects that they are."""
    thing.__class__ = kind
    own = vars(thing)
    own.clear()
    own.update(before)
    for container, content in contents:
        container.clear()
        (container.extend if isinstance(container, list) else container.update)(content)


@contextmanager
def all_or_nothing() -> Iterator[Notes]:
    """Notes that are put back if anything is raised, an interruption by the user, too."""
    notes = Notes()
    try:
        yield notes
    except BaseException:
        notes.restore()
        raise
