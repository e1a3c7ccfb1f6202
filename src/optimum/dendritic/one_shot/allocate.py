"""`search_allocation`: how to divide the budget between the parts of a model, found on calibration batches."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..config import ALLOCATIONS, SEARCHES
from ..errors import invalid, near
from ..process_state import kept_random_state
from ..search.agent import learn
from ..search.allocation import Allocation
from ..search.evolution import evolve
from ..search.objective import Objective, Vector
from ..state import gates_in, injected_layout, layers_in
from ..structure.labelled_batches import LabelledBatch, as_batches
from ..structure.probing import quiet
from ..structure.readiness import refuse_unready
from ..undo import Notes
from .calibration import score_on_
from .reconstruction import check_damping
from .refits import Refits

logger = logging.get_logger(__name__)

Search = Callable[[Objective], Mapping[str, float]]


def search_allocation(
    model: nn.Module,
    batches: Any,
    *,
    method: str | Search = "evolution",
    evaluations: float = 200,
    seed: int = 0,
    reconstruct: bool = True,
    damping: float = 0.01,
    cache: str | os.PathLike[str] | None = None,
) -> Allocation:
    """Search how much each part of an injected model is to keep under its config's budget.

    Every division that is tried meets the budget exactly, and is judged by the loss of the model that is pruned so and
    not trained.

    Args:
        model: a model that `inject_` prepared; it is not changed.
        batches: an iterable of mappings with keyword arguments of `model.forward`, with labels; a few hundred samples.
        method: `"evolution"`: switches at equal cost (EvoPress), from the global ranking on; `"rl"`: an agent of
            stable-baselines3 in an environment after AMC (extra `rl`); `"global"` or `"uniform"`: what there is without
            a search; or a function that takes the `Objective` and returns the fraction that each keeps, by name.
        evaluations: how often the model is run on all batches, at most.
        seed: of the search; the same seed finds the same.
        reconstruct: judge each division with its layers fitted, each for itself, as `prune_` will fit them one after
            the other. False judges the bare weights, which is faster.
        damping: of that, as for `prune_`.
        cache: a file of losses. A search that is started again with it catches up where it was stopped.

    Returns:
        What was found; `DendriticConfig(allocation=found.kept)` trains with it, and `found.save(file)` keeps it.

    Raises:
        DendriticError: the model is not injected, has a native config or is sharded; there is no batch, or the outputs
            hold no loss; the method is unknown, or a number is out of range; the cache is that of another search.
        ImportError: a package of the extra `rl` is missing.
    """
    injected_layout(model)
    refuse_unready(model)
    check_method(method)
    if not isinstance(evaluations, int | float) or not evaluations >= 1:
        raise invalid("evaluations", evaluations, "must be a number of at least 1", "Some hundred are a good start.")
    check_damping(damping)
    found = as_batches(batches)
    layout = injected_layout(model)
    layers = layers_in(model, layout)
    gates, notes = gates_in(model, layout, layers), Notes()
    with quiet(model):
        try:
            for gate in gates.values():
                notes.note_counters(gate)
            score_on_(model, layers, gates, layout.config.importance, found)
            fits = Refits(model, layout, layers, gates, found, damping) if reconstruct else None
            return found_allocation(
                model,
                found,
                layout.sparsity,
                method=method,
                evaluations=evaluations,
                seed=seed,
                fits=fits,
                cache=cache,
            )
        finally:
            notes.restore()


def found_allocation(
    model: nn.Module,
    batches: list[LabelledBatch],
    sparsity: float,
    *,
    method: str | Search,
    evaluations: float = 200,
    seed: int = 0,
    fits: Refits | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Allocation:
    """As `search_allocation`, of a model that is scored and in eval mode. Without fits the bare model is judged."""
    left = total = round((evaluations + 3) * len(batches))  # with the controls, and the result once more

    def advance(done: int) -> None:
        nonlocal left
        bar.update(min(done, left))
        left -= min(done, left)

    with logging.tqdm(total=total, desc="search", unit="batch") as bar, kept_random_state():
        file = None if cache is None else Path(cache)
        objective = Objective(model, batches, sparsity=sparsity, fits=fits, cache=file, advance=advance)
        globally = objective.fractions(objective.masks(None))
        uniform = tuple(0.0 for _ in objective.names)
        controls = {
            "dense": objective.dense_loss(),
            "uniform": objective.loss(uniform),
            "global": objective.loss(globally),
        }
        objective.spent, objective.history = 0.0, []
        torch.manual_seed(seed)
        kept = _searched(objective, method, globally, uniform, evaluations=evaluations, seed=seed)
        spent, history = objective.spent, list(objective.history)
        loss = objective.loss(kept)
    name = method if isinstance(method, str) else "function"
    logger.info(f"{name}: loss {loss:.4f} after {spent:.1f} evaluations; {controls}")
    fractions = dict(zip(objective.names, objective.fractions(objective.masks(kept)), strict=True))
    return Allocation(
        kept=fractions,
        method=name,
        sparsity=sparsity,
        loss=loss,
        controls=controls,
        evaluations=spent,
        seed=seed,
        history=history,
    )


def check_method(method: object) -> None:
    """Raises `DendriticError` for what is not a method to divide a budget by."""
    if not callable(method) and method not in SEARCHES:
        remedy = f"{near(method, SEARCHES)}Choose one of them, or pass a function."
        raise invalid("method", method, f"must be one of {', '.join(SEARCHES)}", remedy)


def _searched(
    objective: Objective, method: str | Search, globally: Vector, uniform: Vector, *, evaluations: float, seed: int
) -> Vector:
    if not isinstance(method, str):
        kept = method(objective)
        if not isinstance(kept, Mapping) or kept.keys() != set(objective.names):
            rule = "must return the fraction that each keeps, by name"
            raise invalid("method", method, rule, "The names are objective.names.")
        return tuple(float(kept[name]) for name in objective.names)
    if method in ALLOCATIONS:
        return globally if method == "global" else uniform
    search = evolve if method == "evolution" else learn
    return search(objective, evaluations=evaluations, seed=seed)
