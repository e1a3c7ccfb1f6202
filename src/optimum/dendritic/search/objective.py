"""What a division of the budget is worth: the loss of the model pruned so, on calibration batches.

Every division that is asked about is brought to the budget exactly, by one pace for all. What was asked once is not
computed again; in a file, that outlives the process, so that a search which is started again catches up in no time.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ..distributed.dtensor import refuse_sharded
from ..errors import invalid
from ..functional.selection import total_cost, unit_cost
from ..sizes import narrowed
from ..state import gates_in, injected_layout, layers_in, split_stacks
from ..structure.labelled_batches import REMEDY, LabelledBatch, on_device
from ..structure.ranking import masks_of, ranking_of

Vector = tuple[float, ...]
DIGITS = 6  # of a loss that is kept


class Fits(ABC):
    """What is done to a pruned model before it is judged.

    Attributes:
        damping: of the fit, as for `prune_`.
    """

    damping: float

    @abstractmethod
    def applied(self) -> AbstractContextManager[object]:
        """A context in which layers are fitted; what it changes is put back at its end."""


class Objective:
    """The loss on batches of an injected, scored model in eval mode, as a function of what each gate keeps.

    Attributes:
        names: The gates, by the layers that hold their masks.
        sizes: How many segments each has.
        kinds: What its segments are, of `config.UNITS`; the hidden units of a recurrent layer count as `"inputs"`.
        costs: What all of each costs by itself, as a fraction of the dense cost.
        masses: The sum of its scores, as a fraction of that of all.
        sparsity: The fraction of the budget that goes.
        spent: How often all batches were run so far, or would have been without the file.
        history: The best loss over all batches after so much was spent, whenever it fell.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[LabelledBatch],
        *,
        sparsity: float,
        fits: Fits | None = None,
        cache: Path | None = None,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """
        Args:
            fits: how the pruned model is fitted before it is judged; None judges it bare.
            advance: called with the number of batches that were run.
        """
        refuse_sharded(model, "Search before the model is sharded.")
        layout = injected_layout(model)
        if layout.dials:
            remedy = "Search for a config without native."
            raise invalid("native", True, "a stock config divides the budget alone", remedy)
        layers = layers_in(model, layout)
        gates = gates_in(model, layout, layers)
        self._model, self._batches, self._layout, self._advance = model, list(batches), layout, advance
        self._fits = fits
        dense = {name: torch.ones_like(mask) for name, mask in masks_of(gates).items()}
        self._gates, self._ranking = gates, ranking_of(model, layout, layers, gates, masks=dense)
        self.sparsity = sparsity
        self.names = list(dense)
        self.sizes = [mask.shape[1] for mask in dense.values()]
        kinds = {group.host: group.kind for group in layout.groups if group.cut}
        kinds |= dict.fromkeys(split_stacks(layers)[0], "blocks")
        self.kinds = [kinds.get(name, "inputs") for name in self.names]
        units, cost = unit_cost(dense, self._ranking.costs), total_cost(dense, self._ranking.costs)
        self.costs = [units[name] * size / cost for name, size in zip(self.names, self.sizes, strict=True)]
        mass = [float(self._ranking.scores[name].clamp(min=0).sum()) for name in self.names]
        self.masses = [each / max(sum(mass), 1e-30) for each in mass]
        self.spent, self.history = 0.0, list[tuple[float, float]]()
        self._cache = _Cache(cache, self._fingerprint())

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    def masks(self, kept: Vector | None) -> dict[str, Tensor]:
        """The masks on the budget that keep about these fractions; None for the global ranking."""
        allocation = "global" if kept is None else dict(zip(self.names, kept, strict=True))
        return self._ranking.choose(self.sparsity, allocation=allocation)

    def fractions(self, masks: Mapping[str, Tensor]) -> Vector:
        """What each gate keeps with these masks."""
        return tuple(float(masks[name].float().mean()) for name in self.names)

    def dense_loss(self) -> float:
        """The mean loss with nothing pruned; it is not counted."""
        return sum(map(self._run, range(len(self._batches)))) / len(self._batches)

    def loss(self, kept: Vector | None, batches: int | None = None) -> float:
        """The mean loss on the first so many batches (default: all) of the model pruned so."""
        count = len(self._batches) if batches is None else batches
        masks = self.masks(kept)
        key = hashlib.sha256(b"".join(masks[name].numpy().tobytes() for name in self.names)).hexdigest()[:24]
        known = self._cache.known(key)
        missing = [i for i in range(count) if i >= len(known)]
        if missing:
            with narrowed(self._model, self._gates, masks), self._fits.applied() if self._fits else nullcontext():
                known = [*known, *(self._run(i) for i in missing)]
            self._cache.note(key, known)
        self.spent += count / len(self._batches)
        self._advance(count)
        value = sum(known[:count]) / count
        if count == len(self._batches) and (not self.history or value < self.history[-1][1]):
            self.history.append((self.spent, value))
        return value

    @torch.no_grad()
    def _run(self, index: int) -> float:
        outputs = self._model(**on_device(self._model, self._batches[index]))
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if loss is None:
            raise invalid("batches", sorted(self._batches[index]), "the outputs hold no loss to judge by", REMEDY)
        found = float(loss)
        return round(found, DIGITS) if found == found else float("inf")

    def _fingerprint(self) -> str:
        """What losses depend on beside the masks: weights, batches, config."""
        judged = "" if self._fits is None else f"fitted, damping {self._fits.damping!r} "
        digest = hashlib.sha256(f"{judged}{self._layout.config.to_json()}".encode())
        tensors = [*self._model.parameters(), *(v for b in self._batches for v in b.values() if isinstance(v, Tensor))]
        for tensor in tensors:
            wide = tensor.detach().double()
            digest.update(f"{tuple(tensor.shape)} {float(wide.sum()):.10g} {float(wide.abs().sum()):.10g}".encode())
        return digest.hexdigest()[:24]


class _Cache:
    """Losses by batch of what was asked about, in memory and, line by line, in a file."""

    def __init__(self, file: Path | None, conditions: str) -> None:
        self.file, self._known = file, dict[str, list[float]]()
        if file is None:
            return
        first, text = json.dumps({"conditions": conditions}), file.read_text("utf-8") if file.exists() else ""
        whole = text.rpartition("\n")[0] if text else first
        lines = whole.splitlines()
        if lines[:1] != [first]:
            remedy = "Name another file, or delete it."
            raise invalid("cache", str(file), "is of another model, config, damping or other batches", remedy)
        for line in lines[1:]:
            key, losses = json.loads(line)
            self._known[key] = [float(loss) for loss in losses]
        if text != f"{whole}\n":  # new, or of a process that was killed while it wrote
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{whole}\n")

    def known(self, key: str) -> list[float]:
        return self._known.get(key, [])

    def note(self, key: str, losses: list[float]) -> None:
        self._known[key] = losses
        if self.file is not None:
            with self.file.open("a") as opened:
                opened.write(json.dumps([key, losses]) + "\n")
