"""The dial of a model that has something dormant: how often it wakes, calibrated on batches."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .efficiency.evaluation_mode import evaluation_mode
from .errors import invalid
from .functional.dormant import margins, pack_norms, quantiles, threshold
from .nn.dormant import Dormant, dormant_of, packs_of
from .nn.waking import MODES, asleep, in_rows, logits_of
from .structure.labelled_batches import as_batches, on_device
from .structure.probing import quiet

logger = logging.get_logger(__name__)


@torch.no_grad()
def calibrate_dormant_(model: nn.Module, batches: Any) -> nn.Module:
    """Note on batches how sure the core is and how large what its packs would read is, so that a rate can be set.

    Statistics of BatchNorm layers of the core are taken anew on the same batches: those of the training are of the
    larger model. Nothing else of the core changes.

    Args:
        model: packed with `dormant`, or given it by `load_dormant_`.
        batches: an iterable of mappings with keyword arguments of `model.forward`, of inputs as they will come; a few
            hundred samples in all.

    Returns:
        `model`, with the rate that it had; what was noted is saved with what is dormant.

    Raises:
        DendriticError: nothing is dormant, or there is no batch; the model is then as it was.
    """
    dormant, found = dormant_of(model), as_batches(batches)
    dormant.follow_(model)
    packs = packs_of(model, dormant)
    seen: dict[str, list[list[Tensor]]] = {name: [[] for _ in each.inputs] for name, each in packs.items()}
    sure: list[Tensor] = []

    def note(name: str, layer: nn.Module, args: Any) -> None:
        rows = in_rows(layer, args[0])
        for values, inputs in zip(seen[name], packs[name].inputs, strict=True):
            values.append(pack_norms(rows, inputs).cpu())

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in packs]
    try:
        with asleep(model):
            settle_norms_(model, found)
        with asleep(model), quiet(model):
            for batch in found:
                outputs = model(**on_device(model, batch))
                if _can_doubt(model):
                    sure.append(margins(logits_of(outputs)).cpu())
    finally:
        for handle in handles:
            handle.remove()
    dormant.margins = quantiles(torch.cat(sure)) if sure else None
    dormant.norms = {name: [quantiles(torch.cat(values)) for values in each] for name, each in seen.items()}
    return model


def set_wake_rate(model: nn.Module, rate: float, *, by: str = "doubt") -> nn.Module:
    """Set which share of the inputs wakes what is dormant.

    Args:
        model: packed with `dormant`, or given it by `load_dormant_`.
        rate: 0 is the core exactly; 1 is the model with all that is dormant awake. In between, `calibrate_dormant_`
            has to have been called once: the rate is then that of its batches, and that of others as they are hard.
        by: `"doubt"`: the core answers; where the margin between its two first choices is small, those inputs run again
            with everything awake. `"rows"`: each layer that gathers its inputs computes a pack of those that are
            dormant for the rows (tokens, images) to which they bring most; heads, neurons and channels that are
            dormant then sleep on, since a tensor of the core has no place for them.

    Returns:
        `model`. While it trains, and where it is exported, it is its core.

    Raises:
        DendriticError: nothing is dormant, the rate is not in [0, 1] or was not calibrated; `by="doubt"` of a model
            that generates text; `by="rows"` of a model without a layer that gathers. The dial is then as it was.
    """
    dormant = dormant_of(model)
    if by not in MODES:
        raise invalid("by", by, f"must be one of {', '.join(MODES)}", "Choose one of them.")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
        raise invalid("rate", rate, "must be a number in [0, 1]", "0 is the core alone, 1 everything.")
    if by == "doubt":
        _set_doubt(model, dormant, float(rate))
    else:
        _set_rows(model, dormant, float(rate))
    dormant.reset()
    return model


def wake_rate(model: nn.Module) -> float:
    """How often a model has woken since its dial was set: the fraction of the inputs, or of the rows of its packs.

    Raises:
        DendriticError: nothing is dormant.
    """
    return dormant_of(model).rate


def _set_doubt(model: nn.Module, dormant: Dormant, rate: float) -> None:
    if rate and not _can_doubt(model):
        rule = "generates text: what its cache holds of earlier tokens is of the core, which a second run cannot use"
        raise invalid("by", "doubt", rule, 'Wake by="rows", or generate with the core, at the rate 0.')
    if 0 < rate < 1 and dormant.margins is None:
        raise _not_calibrated(rate)
    found = {0.0: -float("inf"), 1.0: float("inf")}.get(rate)
    if found is None and dormant.margins is not None:
        found = threshold(dormant.margins, rate)
    dormant.by, dormant.packs = "doubt", {}
    dormant.threshold = -float("inf") if found is None else found


def _set_rows(model: nn.Module, dormant: Dormant, rate: float) -> None:
    dormant.follow_(model)
    packs = packs_of(model, dormant) if rate else {}
    if rate and not packs:
        rule = "no layer of the core gathers its inputs from a tensor that has those that are dormant"
        remedy = 'Prune with "inputs" among the units' + (', or wake by="doubt".' if _can_doubt(model) else ".")
        raise invalid("by", "rows", rule, remedy)
    for each in packs.values():
        if each.norms is None and rate < 1:
            raise _not_calibrated(rate)
        each.thresholds = [-float("inf")] * len(each.inputs)
        if each.norms is not None and rate < 1:
            each.thresholds = [threshold(known, 1 - rate) for known in each.norms]
    dormant.by, dormant.threshold, dormant.packs = "rows", -float("inf"), packs


def _not_calibrated(rate: float) -> Exception:
    rule = "nobody has told yet how sure the core is of its answers"
    return invalid("rate", rate, rule, "Call calibrate_dormant_(model, batches) first.")


def _can_doubt(model: nn.Module) -> bool:
    return not (isinstance(model, PreTrainedModel) and model.can_generate())


def settle_norms_(model: nn.Module, batches: list[Mapping[str, Any]]) -> None:
    """Take the statistics of the BatchNorm layers of a model anew, as means over the batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    before = [norm.momentum for norm in norms]
    try:
        with evaluation_mode(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
                norm.momentum = None  # a plain mean
            for batch in batches:
                model(**on_device(model, batch))
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
