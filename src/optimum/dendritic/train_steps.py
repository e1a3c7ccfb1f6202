"""Pruning while training: the steps that a training loop takes, as plain functions.

plan = update_plan(config, max_steps)
for step in range(1, max_steps + 1):
    loss.backward()
    score_(model)  # read the importance from the gradients
    if step in plan:  # choose the masks anew
        update_(model, plan[step].sparsity, regrow=plan[step].regrow, optimizer=optimizer)
    optimizer.step()
    mask_(model)  # set what is pruned to zero
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.utils import logging

from .config import DendriticConfig
from .distributed.collectives import from_first_rank_, mean_over_ranks, world_size
from .distributed.dtensor import reshard
from .errors import invalid
from .functional.costs import Masks
from .functional.importance import IMPORTANCE
from .functional.selection import Costs, Scores, choose_regrown, total_cost
from .functional.transfer import beside, on_cpu
from .layout.layout import Layout
from .schedules import SCHEDULES, cosine_decay, update_steps
from .state import gates_in, gates_of, injected_layout, layers_in, set_layout
from .structure.model_costs import costs_in
from .structure.ranking import AllGates, masks_of, ranking_of
from .structure.time_correction import corrected, is_due
from .undo import all_or_nothing

logger = logging.get_logger(__name__)

UNSCORED = "dendritic_unscored"  # of a model: the number of steps that were not scored since the last update


@dataclass(frozen=True)
class Update:
    """What one mask update aims at.

    Attributes:
        sparsity: The fraction of the budget that is removed after it.
        regrow: The fraction of the pruned (or live, if fewer) segments of each layer that returns.
    """

    sparsity: float
    regrow: float


def update_plan(
    config: DendriticConfig, max_steps: int, sparsity: float | None = None, begin: float = 0.0
) -> dict[int, Update]:
    """Optimizer step (1-based, ascending) -> the update due in it. The last one reaches the `sparsity` and is final.

    A plan of one update, where several were asked for, takes everything at once; that is logged as a warning.

    Args:
        sparsity: what the updates reach; by default `config.sparsity`. Where the config has another target, it is what
            that comes to for an injected model: `target_sparsity(model)`.
        begin: what the climb begins from: what is gone before the first update, `initial_sparsity(model)`.

    Raises:
        DendriticError: training is too short for a single update; the target of the config is not a sparsity and
            none is given.

    >>> plan = update_plan(DendriticConfig(sparsity=0.6, updates=2), max_steps=100)
    >>> {step: (round(update.sparsity, 3), round(update.regrow, 3)) for step, update in plan.items()}
    {33: (0.529, 0.049), 60: (0.6, 0.0)}
    """
    sparsity = config.removed if sparsity is None else sparsity
    if sparsity is None:
        rule = f"depends on the model where {config.target} is the target"
        raise invalid("sparsity", None, rule, "Pass sparsity=target_sparsity(model), of the injected model.")
    steps = update_steps(max_steps, config.start, config.end, config.updates)
    if not steps:
        rule = f"no mask update fits between start = {config.start} and end = {config.end}"
        raise invalid("max_steps", max_steps, rule, "Train longer, or widen start … end.")
    if len(steps) == 1 < config.updates and sparsity:
        logger.warning(
            f"max_steps = {max_steps} leaves room for one of {config.updates} mask updates: everything that is pruned "
            f"goes at once, in step {steps[0]}. Train longer for better accuracy."
        )
    climb = SCHEDULES[config.schedule](sparsity - begin, config.start, config.end)
    regrow = cosine_decay(config.regrow, config.start, config.end)
    progress = {step: step / max_steps for step in steps} | {steps[-1]: config.end}
    climbed = {step: begin + climb(p) for step, p in progress.items()} | {steps[-1]: sparsity}
    return {step: Update(climbed[step], regrow(p)) for step, p in progress.items()}


@dataclass(frozen=True)
class Pruning:
    """How much is pruned.

    Attributes:
        sparsity: The fraction of the budget that is removed, counted as in the packed model.
        density: The fraction of the segments that each layer keeps, by its name.
        regrown: The number of segments that the update brought back.
    """

    sparsity: float
    density: dict[str, float]
    regrown: int = 0


@torch.no_grad()
def score_(model: nn.Module) -> None:
    """Take one reading of every segment's importance from the gradients, after backward and before the optimizer.

    In a distributed training every rank calls, once the gradients are averaged (and unscaled, under a GradScaler).
    A step in which any reading is not finite, such as one that a GradScaler skips, is not scored; the next `update_`
    warns of it, because nothing here waits for the device. Whatever is raised, the scores are then as they were.
    """
    layout = injected_layout(model)
    config, layers = layout.config, layers_in(model, layout)
    gates = gates_in(model, layout, layers)
    reshard(model)
    with all_or_nothing() as notes:
        for layer in layers.values():
            notes.note_counters(layer)
        observing = [layer for layer in layers.values() if layer.dendrite_activity is not None]
        for layer, seen in zip(observing, mean_over_ranks([layer.seen_here() for layer in observing]), strict=True):
            layer.note_activity_(seen)
        readings = {name: gate.read(config.importance) for name, gate in gates.items()}
        found = {name: reading for name, reading in readings.items() if reading is not None}
        finite = _all_finite(found.values())
        for name, reading in found.items():  # of what is not finite nothing is noted
            whole = reading.where(finite.to(reading.device), torch.nan)
            gates[name].note_(whole, config.importance, config.decay)
        model.__dict__[UNSCORED] = model.__dict__.get(UNSCORED, 0) + (~finite).int()


@torch.no_grad()
def update_(
    model: nn.Module,
    sparsity: float,
    *,
    regrow: float = 0.0,
    optimizer: Optimizer | None = None,
    allocation: str | Mapping[str, float] | None = None,
) -> Pruning:
    """Choose the masks anew so that `sparsity` of the budget is gone, and set what is pruned to zero.

    Args:
        sparsity: fraction of the budget to remove by now, in [0, 1).
        regrow: fraction of each layer's segments (the pruned or the live ones, whichever are fewer) that returns, by
            the gradients of this step; weaker ones go instead.
        optimizer: its state for regrown segments and for sprouts is set to zero.
        allocation: how the budget is divided, in place of the config's `allocation`.

    With `dormant` or `sizes`, masks never prune more than the largest model may lose: what more goes of a smaller one
    is chosen inside of them.

    Inactive sprouts absorb what is pruned. The update that reaches the config's sparsity is the final one: sprouts that
    cost less than what is pruned become active in it, and learn from then on. In a distributed training every rank
    calls, and rank 0 chooses.
    Whatever is raised, weights, masks, scores, sprouts and the optimizer's state are then as they were.
    """
    reshard(model)
    layout = injected_layout(model)
    layers = layers_in(model, layout)
    gates = gates_in(model, layout, layers)
    _tell_not_finite(model)
    masks, scores, growth = _held(gates, growth=bool(regrow))
    ranking = ranking_of(model, layout, layers, gates, masks=masks, scores=scores)
    costs = ranking.costs
    if all(bool(mask.all()) for mask in masks.values()):
        _tell_unscored(gates, layout.config.importance)
    regrown = choose_regrown(growth or ranking.scores, masks, regrow)
    largest, held = layout.config.largest, {name: gate.dendrite_mask for name, gate in gates.items()}
    reached = sparsity if largest is None or not layout.config.smaller else min(sparsity, largest)

    def choose(gone: float) -> dict[str, Tensor]:
        chosen = ranking.choose(gone, regrown=regrown, allocation=allocation)
        if world_size() == 1:
            return chosen
        chosen = beside(chosen, held)
        from_first_rank_(chosen.values())  # ranks that add up in another order might decide a close call otherwise
        return on_cpu(chosen)

    final, times = sparsity >= layout.sparsity, layout.times
    if times is not None and is_due(times, sparsity / layout.sparsity):
        chosen, times = corrected(model, layers, gates, layout, sparsity, choose, partial(_removed, costs, layout))
    else:
        chosen = choose(reached if times is None else times.to_count(reached))
    pruning = _pruning(chosen, costs, replace(layout, times=times))
    with all_or_nothing() as notes:
        returning = {name: int((chosen[name] & ~old).sum()) for name, old in masks.items()}  # now: masks may be views
        new_masks = beside(chosen, held)
        for name, gate in gates.items():
            new, old = new_masks[name], gate.dendrite_mask
            back, gone = new & ~old, old & ~new
            notes.note_update(gate, new, back, optimizer)
            gate.dendrite_mask.copy_(new)
            if returning[name]:
                gate.regrow_(back, optimizer)
            alive, pays = costs[name].alive_rows(chosen), costs[name].sprout_cost(chosen, name) > 0
            gate.update_sprout_(gone, alive, pays=pays, final=final, optimizer=optimizer)
        for gate in gates.values():
            gate.mask_()
        if times != layout.times:
            set_layout(model, replace(layout, times=times))
    model.__dict__.pop(UNSCORED, None)  # not before: an update that fails leaves it
    return replace(pruning, regrown=sum(returning.values()))


@torch.no_grad()
def mask_(model: nn.Module) -> None:
    """Set every pruned segment to zero, after the optimizer's step.

    Where it is interrupted, some of what is pruned is zero already and the next call zeroes the rest.
    """
    reshard(model)
    for gate in gates_of(model).values():
        gate.mask_()


def target_sparsity(model: nn.Module) -> float:
    """The fraction of what is counted that an injected model, or the smallest of its sizes, is to lose: its config's,
    or what another target comes to for this model, of all of its parameters, bytes or time."""
    layout = injected_layout(model)
    return max(layout.config.smaller, default=layout.sparsity)


def initial_sparsity(model: nn.Module) -> float:
    """The fraction of what is counted that an injected model has lost before anything of it is pruned: 0, but for what
    the two factors of an embedding save."""
    layout = injected_layout(model)
    if not layout.factored:
        return 0.0
    layers = layers_in(model, layout)
    dense = {name: torch.ones_like(mask) for name, mask in masks_of(gates_in(model, layout, layers)).items()}
    return _removed(costs_in(model, layers, layout), layout, dense)


def pruning_of(model: nn.Module) -> Pruning:
    """How much of an injected model is pruned at present."""
    layout = injected_layout(model)
    layers = layers_in(model, layout)
    return _pruning(masks_of(gates_in(model, layout, layers)), costs_in(model, layers, layout), layout)


def _held(gates: AllGates, growth: bool) -> tuple[Masks, Scores, Scores]:
    """The masks, the scores and, where it is asked for, how much each segment wants to come back, all on the CPU."""
    held = {("mask", name): gate.dendrite_mask for name, gate in gates.items()}
    held |= {("score", name): gate.dendrite_score for name, gate in gates.items()}
    held |= {("growth", name): gate.growth() for name, gate in gates.items()} if growth else {}
    here = on_cpu(held)
    masks, scores, wanted = (
        {name: tensor for (kind, name), tensor in here.items() if kind == own} for own in ("mask", "score", "growth")
    )
    return masks, scores, wanted


def _pruning(masks: Masks, costs: Costs, layout: Layout) -> Pruning:
    density = {name: mask.float().mean().item() for name, mask in masks.items()}
    gone = _removed(costs, layout, masks)
    return Pruning(gone if layout.times is None else layout.times.really(gone), density)


def _removed(costs: Costs, layout: Layout, masks: Masks) -> float:
    """The part of what is counted that is gone."""
    return 1 - total_cost(masks, costs) / layout.dense_cost


def _all_finite(tensors: Iterable[Tensor]) -> Bool[Tensor, ""]:
    """Whether all entries are finite, on the device of the first tensor."""
    flags = [tensor.isfinite().all() for tensor in tensors]
    return torch.stack([flag.to(flags[0].device) for flag in flags]).all() if flags else torch.tensor(True)


def _tell_not_finite(model: nn.Module) -> None:
    if int(model.__dict__.get(UNSCORED, 0)):
        logger.warning_once(  # the same words each time, or it would not be once
            "Gradients or weights are not finite: such a step is not scored. A GradScaler skips it and goes on; "
            "without one, lower the learning rate or look for bad samples."
        )


def _tell_unscored(gates: AllGates, importance: str) -> None:
    """Warn of layers that have had no gradient: they are pruned first, although the outputs may depend on them."""
    unscored = [name for name, gate in gates.items() if not bool(gate.dendrite_score.any())]
    if IMPORTANCE[importance].running and 0 < len(unscored) < len(gates):
        logger.warning(
            f"No gradient has reached {', '.join(unscored)} so far: they count as unimportant and are pruned first. "
            "Where the model needs them, name them in exclude_modules."
        )
