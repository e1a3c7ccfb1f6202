"""`inject_`: give a stock model dendritic segments. Exact: the outputs and the parameters stay what they were."""

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers.utils import logging

from .config import DendriticConfig
from .distributed.collectives import made_by_first_rank
from .distributed.dtensor import refuse_sharded
from .errors import DendriticError, invalid
from .functional.importance import IMPORTANCE, random_scores
from .functional.selection import total_cost
from .functional.units import needed_hosts
from .layout.layout import Layout
from .layout.records import Group, Record, Stack
from .layout.times import Times
from .nn import (
    DendriticLayer,
    inject_layer,
    inject_stack,
    prunable_layer,
)
from .nn.surgery import swap
from .state import layout_of, note_base, set_layout
from .stock_config.find import find_dials
from .structure.dependency_groups import Wiring, trace_wiring
from .structure.example_inputs import as_mapping
from .structure.goal import allowed_cost, check_factors, check_reachable
from .structure.input_embedding import factor_embedding_
from .structure.made_inputs import TRACING_IMAGE_SIZE, example_inputs_for, timed_inputs_for
from .structure.model_costs import costs_of, dense_cost_of
from .structure.multiples import units_together
from .structure.norms import norms_of
from .structure.probing import quiet
from .structure.ranking import Ranking
from .structure.readiness import refuse_unready
from .structure.segments import may_go, segments_of, why_no_sprout
from .structure.stacks import stacks_that_skip
from .structure.targets import prunable_names, refuse_adapters, spared_names, target_names
from .structure.time_cache import cached, key_of
from .structure.time_table import measured_times
from .structure.timed_runs import note_timed_inputs
from .undo import all_or_nothing
from .unofficial import is_compiled

logger = logging.get_logger(__name__)


def inject_(
    model: nn.Module,
    config: DendriticConfig,
    *,
    example_inputs: Any = None,
    layer_by_layer: bool = False,
    timed_on: Any = None,
    token_counts: Any = None,
) -> nn.Module:
    """Replace the target layers by layers with dendritic segments, in place.

    Args:
        model: any module; not yet wrapped for training. Wrapping, optimizers and compilation come after.
        config: what to prune and how far.
        example_inputs: keyword arguments of `model.forward` with one sample or more, from which the wiring is traced.
            Default: made from the config of a `PreTrainedModel`.
        layer_by_layer: whether to prune a model whose forward pass cannot be traced all the same. Each layer of it is
            then packed alone, nothing is cut across layers, and nothing can prove that the packed model answers alike.
        timed_on: keyword arguments of `model.forward` that the model is timed on, where `speedup` or `latency_ms` is
            the target. Default: `example_inputs`, or one sample of 128 tokens or of the config's image size.
        token_counts: with `embedding_rank`, how often each token occurs in the training data, `[tokens]`: the two
            factors come nearest to the embeddings of those that occur. Default: all alike.

    Returns:
        `model`.

    Raises:
        DendriticError: `model` is wrapped, has adapters, is injected with another config, or is packed; a pattern
            matches nothing; its embedding cannot be two factors; floors forbid the sparsity; no inputs can be made; the
            forward pass cannot be traced; MACs cannot be counted; `native` is asked of a model whose config cannot say
            what pruning would do. The model is then as it was.
    """
    with all_or_nothing() as notes:
        notes.note_modules(model)
        return _inject_(model, config, example_inputs, layer_by_layer, timed_on, token_counts)


def _inject_(
    model: nn.Module,
    config: DendriticConfig,
    example_inputs: Any,
    layer_by_layer: bool,
    timed_on: Any,
    token_counts: Any,
) -> nn.Module:
    _refuse_wrapped(model)
    refuse_unready(model)
    refuse_adapters(model)
    present = layout_of(model)
    if present is not None and not present.packed and present.config == config:
        return model
    if present is not None:
        state = "packed" if present.packed else "injected with another config"
        raise invalid("model", type(model).__name__, f"is {state} already", "Start from the dense model.")
    inputs = _inputs(model, example_inputs, layer_by_layer)
    factored = factor_embedding_(model, config, token_counts)
    targets = target_names(model, config, inputs)
    wiring = Wiring(fault="no inputs could be made")
    if inputs is not None:
        wide = config.native and config.may_go("streams")  # what a head reads has the width of the stream, too
        hosts = prunable_names(model) if wide else targets
        wiring = trace_wiring(model, inputs, targets=hosts, spared=spared_names(model, config, targets))
    if not wiring.positions:
        _refuse_untraced(model, config, wiring.fault or "it calls no target", layer_by_layer)
    targets = _called(targets, wiring)
    groups = tuple(group for group in wiring.groups if may_go(group, config))
    dials = ()
    if config.native and inputs is not None:
        dials = find_dials(model, as_mapping(model, inputs), config, targets, groups)
    turned = {member for dial in dials for member in dial.members}
    groups = tuple(group for group in groups if not config.native or group.host in turned)
    targets += [group.host for group in groups if group.host not in targets]
    counted = set(wiring.positions) if config.counts_model else set(targets)
    positions = {name: count for name, count in wiring.positions.items() if name in counted}
    reads = {member.name: group for group in groups for member in group.consumers}
    shapes = {name: segments_of(name, prunable_layer(model, name), reads.get(name), config) for name in targets}
    stacks = {name: module for name in turned if isinstance(module := model.get_submodule(name), nn.ModuleList)}
    if config.may_go("blocks") and not config.native:
        stacks = _stacks(model, config, inputs if wiring.positions else None, targets)
    replacements: dict[str, DendriticLayer] = {
        name: inject_layer(prunable_layer(model, name), s.arbors, s.segments, s.activity, s.sprout)
        for name, s in shapes.items()
    }
    times = None
    if config.counted == "time":
        times = _times(model, replacements, groups, timed_on or (example_inputs and inputs))
    costs = costs_of(model, replacements, groups, positions=positions, config=config, stacks=stacks, times=times)
    dense = {name: layer.dendrite_mask.cpu() for name, layer in replacements.items() if layer.dendrite_mask.numel()}
    dense |= {name: torch.ones(1, len(stack), dtype=torch.bool) for name, stack in stacks.items()}
    about = {"config": config, "positions": positions, "factored": factored}
    dense_cost = dense_cost_of(model, dense, costs, **about)
    allowed = allowed_cost(config, dense_cost, times)
    sparsity = 1 - allowed / dense_cost if config.removed is None else config.removed
    check_factors(config, 1 - total_cost(dense, costs) / dense_cost, config.largest or sparsity)
    ranking = Ranking(
        config=config,
        masks=dense,
        scores={name: mask.float() for name, mask in dense.items()},
        costs=costs,
        dense_cost=dense_cost,
        dials=dials,
        needed=needed_hosts(groups, config.counts_model),
        together=units_together(replacements, groups, config.multiple_of),
    )
    check_reachable(ranking, max(config.smaller, default=sparsity))
    replacements |= {name: inject_stack(stack) for name, stack in stacks.items()}
    if config.importance == "random":
        for name, layer in replacements.items():
            arbors, segments = layer.dendrite_mask.shape
            layer.dendrite_score.copy_(random_scores(arbors, segments, config.seed, name))
    swap(model, {**replacements, **norms_of(model, groups, replacements)})
    note_base(model)
    records: dict[str, Record] = {**shapes, **{name: Stack(len(stack)) for name, stack in stacks.items()}}
    layout = Layout(
        config=config,
        modules=records,
        groups=groups,
        positions=positions,
        dense_cost=dense_cost,
        dials=dials,
        allowed=allowed,
        times=times,
        factored=factored,
    )
    set_layout(model, layout)
    for name in shapes:
        if shapes[name].sprout < config.sprout_rank:
            logger.info(f"{name} gets no sprout: {why_no_sprout(prunable_layer(model, name), name in reads)}")
    kinds = Counter(group.kind for group in groups if group.cut)
    found = ", ".join(f"{count} of {kind}" for kind, count in kinds.items()) or "none"
    logger.info(f"Injected {len(shapes)} layers of {type(model).__name__}; groups that can be cut: {found}.")
    return model


def _stacks(model: nn.Module, config: DendriticConfig, inputs: Any, targets: list[str]) -> dict[str, nn.ModuleList]:
    """The stacks whose blocks may go."""
    if IMPORTANCE[config.importance].needs_activity:
        rule = f"has blocks among it, which {config.importance!r} cannot score, as it reads the inputs of layers"
        raise invalid("units", config.units, rule, "Choose another importance, or leave blocks out.")
    if inputs is None:
        return {}
    with quiet(model), torch.no_grad():
        return stacks_that_skip(model, as_mapping(model, inputs), targets)


def _inputs(model: nn.Module, example_inputs: Any, layer_by_layer: bool) -> Any:
    if example_inputs is not None:
        return example_inputs
    try:
        return example_inputs_for(model, image_size=TRACING_IMAGE_SIZE)
    except DendriticError as error:
        if layer_by_layer:
            return None
        raise DendriticError(f"The wiring cannot be traced without inputs: {error}") from None


def _times(model: nn.Module, layers: dict[str, DendriticLayer], groups: tuple[Group, ...], timed_on: Any) -> Times:
    """The measured table, from the disk where the model was timed before; the same on every rank."""
    inputs = as_mapping(model, timed_on or timed_inputs_for(model))
    note_timed_inputs(model, inputs)

    def measured() -> Times:
        key = key_of(model, layers, groups, inputs)
        return cached(key, lambda: measured_times(model, layers, groups, inputs))

    return made_by_first_rank(measured)


def _refuse_untraced(model: nn.Module, config: DendriticConfig, fault: str, layer_by_layer: bool) -> None:
    """Refuse what needs a trace: all but counting the parameters of each layer alone."""
    rule = f"its forward pass could not be traced ({fault})"
    if config.counted in ("macs", "time"):
        field = "budget" if config.counted == "macs" else config.target
        other = 'pass budget="params"' if config.counted == "macs" else "ask for sparsity, parameters or megabytes"
        remedy = f"Pass other example_inputs, or {other}."
        raise invalid(field, vars(config)[field], f"{rule}, so the model's {config.counted} cannot be counted", remedy)
    if not layer_by_layer:
        remedy = "Pass other example_inputs, or layer_by_layer=True to pack each layer alone, without a proof."
        raise invalid("model", type(model).__name__, rule, remedy)


def _called(targets: list[str], wiring: Wiring) -> list[str]:
    """Targets that the forward pass uses; all of them where it could not be traced."""
    if not wiring.positions:
        return targets
    for name in targets:
        if name not in wiring.positions:
            logger.info(f"{name} is left alone: the forward pass does not call it")
    return [name for name in targets if name in wiring.positions]


def _refuse_wrapped(model: nn.Module) -> None:
    refuse_sharded(model, "Inject the model before it is sharded.")
    wrapped = isinstance(model, DataParallel | DistributedDataParallel) or is_compiled(model)
    if wrapped:
        remedy = "Inject the inner model before it is wrapped or compiled."
        raise invalid("model", type(model).__name__, "is a wrapper around the model", remedy)
