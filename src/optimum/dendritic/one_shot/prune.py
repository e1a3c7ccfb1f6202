"""One shot: score on calibration batches, prune, reconstruct. Minutes, and no Trainer.

inject_(model, DendriticConfig(sparsity=0.4))
prune_(model, batches)  # a few hundred samples, with labels
compress_(model)
"""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.utils import logging

from ..config import ALLOCATIONS, DendriticConfig
from ..distributed.dtensor import refuse_sharded
from ..errors import invalid
from ..nn import DendriticGroup, DendriticLayer, Gates
from ..search.allocation import Allocation
from ..state import gates_in, injected_layout, kept_in, layers_in
from ..structure.labelled_batches import as_batches
from ..structure.probing import quiet
from ..structure.readiness import refuse_unready
from ..train_steps import initial_sparsity, pruning_of, update_
from ..undo import all_or_nothing
from .allocate import Search, check_method, found_allocation
from .calibration import readings, score_on_
from .reconstruction import check_damping, fitted_layers, reconstruct_, stages
from .refits import Refits

logger = logging.get_logger(__name__)


def prune_(
    model: nn.Module,
    batches: Any,
    *,
    reconstruct: bool = True,
    rounds: int = 4,
    passes: int = 8,
    damping: float = 0.01,
    allocation: str | Mapping[str, float] | Allocation | Search | os.PathLike[str] | None = None,
) -> nn.Module:
    """Prune an injected model to its config's target in one go, in place; `compress_` packs it afterwards.

    Args:
        model: a model that `inject_` prepared.
        batches: an iterable (a list, a DataLoader) of mappings with keyword arguments of `model.forward`; a few
            hundred samples in all, with labels where the importance is taken from gradients.
        reconstruct: fit what is left of every layer to what the dense layer answered; see `reconstruction.py`.
            Recurrent layers, which do not answer linearly, stay as they are.
        rounds: the number of equal steps in which the sparsity is reached, each scored anew.
        passes: the number of groups of layers that are reconstructed one after the other; more groups are more accurate
            and slower.
        damping: ridge of the reconstruction, as a fraction of the mean square of the inputs.
        allocation: how the budget is divided, in place of the config's `allocation`: `"global"`, `"uniform"`, the
            fraction that each keeps, by name, what `search_allocation` found or a path that it was saved to; or a
            search to do here, as its `method` names it.

    Returns:
        `model`, in the mode that it was in; gradients and the random state are untouched.

    Raises:
        DendriticError: the model is not injected, is packed or sharded; there is no batch, or one is not a mapping; the
            outputs hold no loss, or the scores are not finite. The model is then as it was.
    """
    layout = injected_layout(model)
    config, layers = layout.config, layers_in(model, layout)
    refuse_sharded(model, "Call prune_ before the model is sharded; while it trains, use score_, update_ and mask_.")
    refuse_unready(model)
    for field, count in {"rounds": rounds, "passes": passes}.items():
        if type(count) is not int or count < 1:
            raise invalid(field, count, "must be an integer of at least 1", f"Leave {field} at its default.")
    check_damping(damping)
    fitted, gates = fitted_layers(layers), gates_in(model, layout, layers)
    given, search = _given(allocation)
    with quiet(model), all_or_nothing() as notes:
        notes.note_modules(model)
        tensors = _tensors(layers, gates)
        before = dict(zip(tensors, notes.note(*tensors.values()), strict=True))
        calibration = as_batches(batches)
        dense = {name: value for name, value in before.items() if name.endswith((".weight", ".bias"))}
        groups = stages(model, fitted, calibration[0], passes) if reconstruct else []
        begin, end = initial_sparsity(model), layout.sparsity
        total = rounds * readings(config.importance, len(calibration)) + len(groups) * len(calibration)
        with logging.tqdm(total=total, desc="prune", unit="batch") as bar:
            for step in range(1, rounds + 1):
                score_on_(model, layers, gates, config.importance, calibration, bar.update)
                if search is not None:
                    fits = Refits(model, layout, layers, gates, calibration, damping) if reconstruct else None
                    given = found_allocation(model, calibration, end, method=search, fits=fits).kept
                    search = None
                due = begin + (end - begin) * step / rounds if step < rounds else end
                update_(model, due, allocation=given)
            kept = kept_in(model, layout, layers)[0]
            reconstruct_(model, fitted, kept, dense, calibration, groups, damping=damping, advance=bar.update)
            pruned = pruning_of(model).sparsity  # in here: whatever is raised, also by this, leaves the model as it was
    logger.info(f"Pruned {pruned:.4f} of the {config.counted}.")
    return model


def _given(allocation: Any) -> tuple[Any, Any]:
    """A division of the budget, None for the config's; and the search to do for one, None for none.

    Raises:
        DendriticError: it is neither.
        OSError: a file is not there.
    """
    if isinstance(allocation, os.PathLike):
        allocation = Allocation.load(allocation)
    if isinstance(allocation, Allocation):
        return allocation.kept, None
    if isinstance(allocation, Mapping):
        return DendriticConfig(allocation=allocation).allocation, None
    if allocation is None or (isinstance(allocation, str) and allocation in ALLOCATIONS):
        return allocation, None
    check_method(allocation)
    return None, allocation


def _tensors(layers: Mapping[str, DendriticLayer], gates: Mapping[str, Gates]) -> dict[str, Tensor]:
    """Parameters and buffers of the injected layers, what they have seen, and the weights of other layers that read a
    group, by full name: all that changes."""
    seen = {f"{name}.seen": layer.seen for name, layer in layers.items() if layer.dendrite_activity is not None}
    grouped = [group.segmented() for group in gates.values() if isinstance(group, DendriticGroup)]
    return (
        seen
        | {name: weight for weights in grouped for name, weight in weights.items()}
        | {
            f"{name}.{key}": value
            for name, layer in layers.items()
            for key, value in (*layer.named_parameters(), *layer.named_buffers())
        }
    )
