"""What the pruned model really takes, measured in its packed form while it trains, beside the dense one.

A table cannot know everything, such as what caches do for a model that has become small. So a few of the updates,
the last one among them, measure the model as it would be packed, and set right how much of the counted time has to go.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..distributed.collectives import made_by_first_rank
from ..distributed.dtensor import sharded
from ..functional.costs import Masks
from ..layout.layout import Layout
from ..layout.times import WHOLE, Times
from ..nn import DendriticLayer, Gates
from ..nn.pack_model import Packed, pack_modules
from ..nn.stock import stock_modules
from ..state import injected_layout, kept_in, set_layout
from .timed_runs import as_deployed, paired_share, run, timed_inputs_of
from .verification import exchanged

logger = logging.get_logger(__name__)

LEVELS = (0.5, 0.75, 0.9, 1.0)  # parts of the target at which is measured
TRIES = 3  # of the last update; the others measure once
RUNS = 2
CLOSE = 0.02  # of the time that is wanted
PROMISED = 0.1


def timing_of(model: nn.Module) -> dict[str, Any] | None:
    """What an injected model knows of times, to be kept beside a checkpoint; None where its target is not a time."""
    layout = injected_layout(model)
    if layout.times is None:
        return None
    return {"times": asdict(layout.times), "dense_cost": layout.dense_cost, "allowed": layout.allowed}


def restore_timing_(model: nn.Module, timing: Mapping[str, Any]) -> None:
    """Go on with what `timing_of` gave, whatever was measured when the model was injected anew.

    Raises:
        CheckpointError: it gave nothing like it.
    """
    layout = injected_layout(model)
    fields = {name: timing.get(name) for name in ("times", "dense_cost", "allowed")}
    set_layout(model, Layout.from_dict(layout.to_dict() | fields))


def is_due(times: Times, reached: float) -> bool:
    """Whether an update that reaches this part of the target measures the model."""
    return reached >= 1 or any(times.level / WHOLE < level <= reached for level in LEVELS)


def corrected(
    model: nn.Module,
    layers: Mapping[str, DendriticLayer],
    gates: Mapping[str, Gates],
    layout: Layout,
    sparsity: float,
    choose: Callable[[float], dict[str, Tensor]],
    removed: Callable[[Masks], float],
) -> tuple[dict[str, Tensor], Times]:
    """The masks whose packed model has lost `sparsity` of the dense one's measured time, as nearly as a few tries find
    them, and the table with what was measured.

    Args:
        choose: the masks for a part of the counted time that has to go.
        removed: the part of the counted time that is gone under some masks.
    """
    times = layout.times
    assert times is not None
    chosen, share, wanted = choose(times.to_count(sparsity)), None, 1 - sparsity
    final = sparsity >= layout.sparsity
    for _ in range(TRIES if final else 1):
        share = _share(model, layers, gates, layout, chosen)
        if share is None:
            return chosen, times
        times = _with_measurement(times, removed(chosen), 1 - share)
        if abs(share - wanted) <= CLOSE * wanted:
            break
        again = choose(times.to_count(sparsity))
        if all(torch.equal(again[name], mask) for name, mask in chosen.items()):
            break
        chosen = again
    else:
        share = _share(model, layers, gates, layout, chosen) if final else share
    if share is not None and final:
        told = logger.warning if abs(share - wanted) > PROMISED * wanted else logger.info
        told(f"The packed model takes {share:.3f} of the dense one's time; {wanted:.3f} is the target.")
    return chosen, replace(times, level=min(WHOLE, round(sparsity / layout.sparsity * WHOLE)))


def _with_measurement(times: Times, counted: float, measured: float) -> Times:
    """What is counted and measured lies between nothing and all of the time; a small model may even take longer."""
    parts = {"counted": counted, "measured": measured}
    return replace(times, **{name: min(WHOLE - 1, max(1, round(part * WHOLE))) for name, part in parts.items()})


def _share(
    model: nn.Module,
    layers: Mapping[str, DendriticLayer],
    gates: Mapping[str, Gates],
    layout: Layout,
    chosen: Masks,
) -> float | None:
    """The time of the packed model as a share of that of the dense one, as the first rank measures it; None where it
    cannot be measured."""
    inputs = timed_inputs_of(model)
    if inputs is None or any(sharded(parameter) is not None for parameter in model.parameters()):
        logger.warning_once("The model cannot be timed while it trains: the target is met by the measured table alone.")
        return None

    def measured() -> float | None:
        before = {name: gate.dendrite_mask.clone() for name, gate in gates.items()}
        try:
            for name, gate in gates.items():
                gate.dendrite_mask.copy_(chosen[name])
            kept, alive = kept_in(model, layout, layers)
            forms = [Packed(stock_modules(model)), pack_modules(model, kept, layout.groups, alive)]
            with as_deployed(model):
                return paired_share(*(_timed(model, form, inputs) for form in forms))
        except Exception as error:  # the packed model is proved at the end, and not here
            logger.warning(f"The packed model could not be timed: {type(error).__name__}: {error}")
            return None
        finally:
            for name, gate in gates.items():
                gate.dendrite_mask.copy_(before[name])

    return made_by_first_rank(measured)


def _timed(model: nn.Module, form: Packed, inputs: Mapping[str, object]) -> Callable[[], float]:
    def seconds() -> float:
        with exchanged(model, form.modules, form.parameters, form.numbers):
            return min(run(model, inputs).total for _ in range(RUNS))

    return seconds
