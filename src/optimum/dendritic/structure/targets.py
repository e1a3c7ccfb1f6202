"""Which modules are pruned: names, suffixes or a regular expression, as in PEFT."""

import sys
import time
from collections import Counter
from collections.abc import Collection
from difflib import get_close_matches
from functools import partial
from typing import Any

import regex
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..config import DendriticConfig
from ..errors import DendriticError, invalid
from ..nn import INJECTED, is_prunable, is_weight_layer, weight_names
from .heads import output_layers

logger = logging.get_logger(__name__)

READ_THEIR_PARTS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
SECONDS = 5.0  # for a regular expression and all names of a model


def target_names(model: nn.Module, config: DendriticConfig, example_inputs: Any = None) -> list[str]:
    """Names of the modules to inject, in the model's order.

    Prunable are modules that compute as Linear, Conv2d (one group), Conv1D, LSTM and GRU (no projection) and whose
    parameters are trained and belong to them alone. By default all of them in the body: not the head, which is what
    stands outside `model.base_model` and what makes the model's outputs.

    Args:
        example_inputs: with which it is found out what makes the outputs. Where that cannot be traced, it is taken for
            the last layer of a model that has no part outside `model.base_model`.

    Raises:
        DendriticError: a pattern matches no prunable module, or nothing is left to prune.
    """
    prunable = prunable_names(model)
    if config.target_modules is None:
        chosen = _body(model, prunable, example_inputs)
    else:
        chosen = _matching("target_modules", config.target_modules, prunable)
    if config.exclude_modules is not None:
        everything = [name for name, _ in model.named_modules() if name]
        excluded = set(_matching("exclude_modules", config.exclude_modules, everything))
        chosen = [name for name in chosen if name not in excluded]
    if not chosen:
        rule = f"no prunable module is left in {type(model).__name__}"
        raise invalid(
            "target_modules", config.target_modules, rule, "Name Linear, Conv2d, Conv1D, LSTM or GRU modules."
        )
    return chosen


def spared_names(model: nn.Module, config: DendriticConfig, targets: Collection[str]) -> set[str]:
    """Names of the layers of one weight that keep their shape, so that no dependency group of theirs is cut.

    They are those that the config excludes or does not name, and those that are not prunable. The head, which is not a
    target by default, may lose inputs with the stream that it reads, and so may one that shares the weight of an
    embedding.
    """
    layers = {name for name, module in model.named_modules() if name and is_weight_layer(module)}
    free = set(targets)
    if config.target_modules is None:
        excluded = set()
        if config.exclude_modules is not None:
            everything = [name for name, _ in model.named_modules() if name]
            excluded = set(_matching("exclude_modules", config.exclude_modules, everything))
        tables = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)}
        tied = {name for name in layers if id(model.get_submodule(name).get_parameter("weight")) in tables}
        free |= (set(prunable_names(model)) | tied) - excluded
    return layers - free


def prunable_names(model: nn.Module) -> list[str]:
    """Names of the modules that could be injected; why another one could not is logged."""
    named = partial(nn.Module.named_parameters, recurse=False, remove_duplicate=False)
    owners = Counter(id(p) for m in model.modules() for _, p in named(m))
    fused = {id(child): m for m in model.modules() if isinstance(m, READ_THEIR_PARTS) for child in m.children()}
    names = []
    for name, module in model.named_modules():
        if not name or not isinstance(module, tuple(INJECTED)):
            continue
        if isinstance(module, nn.RNNBase) and module.proj_size > 0:
            logger.info(f"{name} is left alone: it projects its hidden state (proj_size > 0)")
        elif not is_prunable(module):
            if type(module) not in INJECTED:
                logger.info(f"{name} is left alone: a {type(module).__name__} does not compute as its stock class")
        elif not all(parameter.numel() for parameter in module.parameters()):
            logger.info(f"{name} is left alone: it has no inputs or no outputs")
        elif id(module) in fused:
            logger.info(f"{name} is left alone: {type(fused[id(module)]).__name__} may read its weight itself")
        elif not _matrices(module) <= dict(named(module)).keys():
            logger.info(f"{name} is left alone: its weight is computed (weight or spectral norm, torch.nn.utils.prune)")
        elif any(owners[id(p)] > 1 for p in module.parameters()):
            logger.info(f"{name} is left alone: its parameters are tied to another module's")
        elif not all(module.get_parameter(weight).requires_grad for weight in _matrices(module)):
            logger.info(f"{name} is left alone: its weight is frozen (requires_grad=False)")
        else:
            names.append(name)
    return names


def _matrices(module: nn.Module) -> set[str]:
    """Names of the parameters that must be trained; all of a recurrent layer, whose biases are pruned with its rows."""
    names = weight_names(module) if isinstance(module, nn.RNNBase) else [["weight"]]
    return {name for group in names for name in group}


def _body(model: nn.Module, prunable: list[str], example_inputs: Any) -> list[str]:
    if isinstance(model, PreTrainedModel) and model.base_model is model and type(model).__name__.endswith("Model"):
        return prunable  # a bare encoder: it has no head
    split = isinstance(model, PreTrainedModel) and model.base_model is not model
    if isinstance(model, PreTrainedModel) and split:
        prunable = [name for name in prunable if name.startswith(f"{model.base_model_prefix}.")]
    heads = None if example_inputs is None else output_layers(model, example_inputs)
    if heads is None:
        heads = [] if split else [name for name, module in model.named_modules() if is_prunable(module)][-1:]
    return [name for name in prunable if name not in heads] or prunable  # a tied head is not prunable, yet the head


def _matching(field: str, patterns: str | Collection[str], names: list[str]) -> list[str]:
    """The names that match; a pattern that matches none is an error that lists near names."""
    if isinstance(patterns, str):
        matched = _matched(field, patterns, names)
        if not matched:
            raise _no_match(field, patterns, names)
    else:
        matched = set()
        for pattern in patterns:
            found = {name for name in names if name == pattern or name.endswith(f".{pattern}")}
            if not found:
                raise _no_match(field, pattern, names)
            matched |= found
    return [name for name in names if name in matched]


def _matched(field: str, pattern: str, names: list[str]) -> set[str]:
    """Those that a regular expression matches in whole, bounded in time: a config may come from anyone, and some
    expressions take longer than any run for a name of thirty characters."""
    end, matched = time.monotonic() + SECONDS, set()
    try:
        compiled = regex.compile(pattern)
        for name in names:
            if compiled.fullmatch(name, timeout=max(end - time.monotonic(), 1e-3)):
                matched.add(name)
    except (TimeoutError, regex.error, RecursionError, MemoryError) as error:
        rule = f"cannot be matched in {SECONDS} s ({type(error).__name__})"
        raise invalid(field, pattern, rule, "Pass a list of names, or a simpler expression.") from None
    return matched


def _no_match(field: str, pattern: str, names: list[str]) -> DendriticError:
    suffixes = {".".join(name.split(".")[i:]) for name in names for i in range(name.count(".") + 1)}
    near = get_close_matches(pattern, sorted(suffixes), n=5, cutoff=0.4) or names[:5]
    return invalid(field, pattern, "matches no prunable module", f"Near names: {', '.join(near) or 'none at all'}.")


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model that PEFT has wrapped or put adapters into.

    PEFT freezes the weights below its adapters, so that what remains to prune while training would be the adapters.

    Raises:
        DendriticError: `model` is a `PeftModel` or has a layer with an adapter.
    """
    peft = sys.modules.get("peft")  # whoever made such a model has imported it
    if peft is None:
        return
    layers = sys.modules["peft.tuners.tuners_utils"].BaseTunerLayer
    adapted = [name for name, module in model.named_modules() if isinstance(module, layers)]
    if adapted or isinstance(model, peft.PeftModel):
        rule = f"carries PEFT adapters ({', '.join(adapted[:3]) or 'around it'}), below which every weight is frozen"
        remedy = (
            "Merge them first, model = model.merge_and_unload().requires_grad_(True), "
            "or prune and pack the model and put adapters on the packed one."
        )
        raise invalid("model", type(model).__name__, rule, remedy)
