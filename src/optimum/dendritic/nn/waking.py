"""When what is dormant in a packed model wakes, by hooks: for the inputs of which the core is unsure, which the whole
awake model answers, or for the rows whose gates fire, to which packs add what they read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..efficiency.wakeful import ATTRIBUTE
from ..errors import invalid
from ..functional.dormant import add_packs_, margins
from ..unofficial import convolve
from .dormant import Dormant, packable
from .packed import PackedLayer

MODES = ("doubt", "rows")


def attach_(model: nn.Module, dormant: Dormant) -> None:
    """Give a packed model what is dormant; until a rate is set, it sleeps."""
    dormant.share_(model)
    vars(model)[ATTRIBUTE] = dormant
    model.register_forward_hook(_wake_on_doubt, with_kwargs=True)
    for name in packable(model, dormant):
        model.get_submodule(name).register_forward_hook(partial(_wake_rows, dormant, name))


@contextmanager
def asleep(model: nn.Module) -> Iterator[None]:
    """The model as its core, while the context lasts."""
    dormant: Dormant | None = vars(model).get(ATTRIBUTE)
    before = None if dormant is None else (dormant.by, dormant.threshold, dormant.packs)
    try:
        if dormant is not None:
            dormant.by, dormant.threshold, dormant.packs = "doubt", -float("inf"), {}
        yield
    finally:
        if dormant is not None and before is not None:
            dormant.by, dormant.threshold, dormant.packs = before


def in_rows(layer: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor that a layer reads or makes, a row for each token or image: `[rows, channels, *positions]`."""
    return tensor if isinstance(layer, nn.Conv2d) else tensor.reshape(-1, tensor.shape[-1])


def logits_of(outputs: Any) -> Tensor:
    """What a classifier answers, `[samples, classes]`.

    Raises:
        DendriticError: the outputs are not logits of at least two classes for each sample.
    """
    logits = outputs if isinstance(outputs, Tensor) else outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        found = type(outputs).__name__ if logits is None else tuple(logits.shape)
        rule = "are not logits of at least two classes for each sample, so that no doubt can be read of them"
        raise invalid("outputs", found, rule, 'Wake by="rows", or leave the rate at 0.')
    return logits


def _wake_on_doubt(model: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
    """Let the awake model answer where the core is unsure."""
    dormant: Dormant | None = vars(model).get(ATTRIBUTE)
    if dormant is None or dormant.by != "doubt" or dormant.threshold == -float("inf") or _asleep(model):
        return None
    logits = logits_of(outputs)
    if dormant.threshold == float("inf"):
        dormant.seen, dormant.woken = dormant.seen + len(logits), dormant.woken + len(logits)
        dormant.follow_(model)
        return dormant.awake(*args, **kwargs)
    unsure = (margins(logits) < dormant.threshold).nonzero().flatten()
    dormant.seen, dormant.woken = dormant.seen + len(logits), dormant.woken + len(unsure)
    if not len(unsure):
        return None
    dormant.follow_(model)
    rows = partial(_rows_of, unsure, len(logits))
    again = dormant.awake(*map(rows, args), **{k: rows(v) for k, v in kwargs.items() if k != "labels"})
    answers = logits.index_copy(0, unsure, logits_of(again).to(logits.dtype))
    if isinstance(outputs, Tensor):
        return answers
    outputs["logits"] = answers
    labels = kwargs.get("labels")
    if outputs.get("loss") is not None and labels is not None:
        outputs["loss"] = F.cross_entropy(answers, labels)
    return outputs


def _rows_of(rows: Tensor, samples: int, value: Any) -> Any:
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.shape[:1] == (samples,) else value


def _wake_rows(dormant: Dormant, name: str, layer: PackedLayer, args: Any, y: Tensor) -> Tensor | None:
    """Add to what a layer of the core answers what its packs answer for the rows whose gates fire."""
    packs = dormant.packs.get(name)
    if packs is None or dormant.by != "rows" or _asleep(layer):
        return None
    dormant.follow_(layer)
    rows, answers = in_rows(layer, args[0]), in_rows(layer, y)

    def multiply(index: int, part: Tensor) -> Tensor:
        weight = packs.weights[index]
        found = convolve(layer, part, weight, None) if isinstance(layer, nn.Conv2d) else F.linear(part, weight)
        return layer.scatter(found)

    answers = answers.clone()
    dormant.seen += len(rows) * len(packs.inputs)
    dormant.woken += add_packs_(answers, rows, packs.inputs, packs.thresholds, multiply)
    return answers.reshape(y.shape)


def _asleep(module: nn.Module) -> bool:
    """While it trains, and while it is exported, a model is its core."""
    return module.training or torch.compiler.is_exporting()
