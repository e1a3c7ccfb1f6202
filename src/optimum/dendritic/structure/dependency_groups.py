"""Dependency groups: what must go together, traced by marks and proved by trial cuts.

Nodes are the channels of producers (rows of layers, columns of embeddings, entries along an axis of parameters that
stand alone) and the inputs of consumers (columns of layers); an edge says that a channel reaches an input. A connected
component is a unit: it lives or dies whole. Components with the same members are units of one family, and families that
share a consumer are one group. So neurons, heads with the keys and values that they need, inner channels and whole
residual streams are found by one rule and without a table of families.

Each group is proved: one of its units is cut out, and all that arrives anywhere must be what arrives there when the
unit is dead in place.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..errors import invalid
from ..functional.units import runs_along
from ..layout.records import Group, Member
from ..nn import is_recurrent_layer, is_weight_layer
from ..nn.pack_model import can_stay_wide
from .channel_reach import Reached, channel_reach
from .components import Labels, closed_components, components, families_of, joined_by_consumers, units_of
from .example_inputs import as_mapping
from .marks import Tangled
from .nan_tracing import Tracer
from .probing import quiet
from .trial_cut import Trial

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Wiring:
    """What `trace_wiring` found.

    Attributes:
        groups: The dependency groups, in order of their first consumers.
        positions: For each layer that is called, the products per sample of each of its weights (1 for a vector,
            tokens, time steps or pixels otherwise), hence `macs = positions * weight.numel()`.
        fault: Why the forward pass could not be traced; empty where it could.
    """

    groups: tuple[Group, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    fault: str = ""


@torch.no_grad()
def trace_wiring(
    model: nn.Module,
    example_inputs: Any,
    *,
    targets: Sequence[str] | None = None,
    spared: Collection[str] = (),
) -> Wiring:
    """Find the dependency groups that `targets` read (names of prunable layers; default: all that the model calls).

    Args:
        example_inputs: keyword arguments of `model.forward`, tensors with the batch first; one sample is enough.
        spared: layers that keep their shape: a group that has one of them as a member is left out.

    Returns:
        The wiring. Where the model's forward cannot be traced, a wiring without groups, and a logged warning.

    Raises:
        DendriticError: `example_inputs` is not a mapping of tensors, or a target is not a module of the model.
    """
    inputs = as_mapping(model, example_inputs)
    modules = dict(model.named_modules())
    names = list(modules) if targets is None else list(targets)
    for name in names:
        if name not in modules:
            raise invalid(
                "targets", name, f"is not a module of {type(model).__name__}", "Pass names of named_modules()."
            )
    wanted = {name for name in names if name and (is_weight_layer(modules[name]) or is_recurrent_layer(modules[name]))}
    with quiet(model):
        tracer = Tracer(model, inputs)
        try:
            positions = tracer.positions()
        except Exception as error:  # any model may fail in any way; without a trace nothing is cut
            logger.warning(f"The wiring could not be traced, so no channels are cut: {type(error).__name__}: {error}")
            return Wiring(fault=f"{type(error).__name__}: {error}")
        groups = _groups(tracer, [name for name in positions if name in wanted], spared)
        return Wiring(_proved(groups, Trial(tracer)), positions)


def _groups(tracer: Tracer, targets: Sequence[str], spared: Collection[str]) -> list[Group]:
    """All groups that one of the `targets` reads, not yet proved."""
    reached, failed = channel_reach(tracer, [*tracer.layers, *tracer.tables, *tracer.axes])
    _tell_failed(failed)
    labels = components(tracer, reached)
    closed = closed_components(tracer, reached, labels, spared)
    families = families_of(labels, closed)
    position = {name: place for place, name in enumerate(dict.fromkeys([*targets, *tracer.layers]))}
    groups: list[Group] = []
    for units, axes in joined_by_consumers(families, labels):
        members = {axis: units_of(labels[axis], units) for axis in axes}
        group = _group(tracer, units, members, reached, position)
        if group is not None and group.host in targets:
            groups.append(group)
    return sorted(groups, key=lambda group: position[group.host])


def _group(
    tracer: Tracer,
    units: Tensor,
    members: Mapping[str, Labels],
    reached: Mapping[str, Reached],
    position: Mapping[str, int],
) -> Group | None:
    """The group of these units; None where a module on the way mixes them."""
    consumers = sorted((axis[1:] for axis in members if axis[0] == ">"), key=position.__getitem__)
    producers = [name for name in members if name in tracer.widths and name not in tracer.axes]
    passers = _passers(tracer, units, reached, members)
    if passers is None:
        return None
    lead = [tracer.layers[name] for name in producers if name in tracer.layers]
    wide = any(run.size > 1 for name in producers for run in runs_along(members[name]))
    convolved = any(isinstance(layer, nn.Conv2d) for layer in lead)
    looked_up = any(name in tracer.tables for name in producers)
    kind = "streams" if len(consumers) > 1 or looked_up else "channels" if convolved else "heads" if wide else "neurons"
    axes = [tracer.axes[key] for key in members if key in tracer.axes]
    return Group(
        kind=kind,
        units=len(units),
        producers=tuple(Member(name=name, runs=runs_along(members[name])) for name in producers),
        consumers=tuple(Member(name=name, runs=runs_along(members[f">{name}"])) for name in consumers),
        passers=tuple(_passer(tracer, name, own) for name, own in sorted(passers.items())),
        parameters=tuple(Member(name=a.name, runs=runs_along(members[a.key]), axis=a.axis) for a in axes),
    )


def _passer(tracer: Tracer, name: str, units: Labels) -> Member:
    module = tracer.model.get_submodule(name)
    after = -1 - tracer.norm_axis(module) if module in tracer.norms else 0
    return Member(name=name, runs=runs_along(units), axis=after)


def _passers(
    tracer: Tracer, units: Tensor, reached: Mapping[str, Reached], members: Mapping[str, Labels]
) -> dict[str, Labels] | None:
    """The modules on the way whose channels belong to the units, one unit to each; None where a follower mixes them.

    A norm each of whose channels several units reach (one norm for all heads) takes its statistics within a unit.
    """
    norms = set(tracer.norms.values())
    on_the_way = norms | set(tracer.followers.values())
    found: dict[str, Labels] = {}
    mixed: set[str] = set()
    for producer in members.keys() & reached.keys():
        modules = reached[producer]
        for module in modules.keys() & on_the_way:
            reach = modules[module]
            own = members[producer][reach.channels]
            if not bool((own >= 0).any()):
                continue
            known = found.setdefault(module, torch.full((reach.width,), -1, dtype=torch.int64))
            low, high = known.clone(), known.clone()
            low[known < 0] = len(units)
            low.scatter_reduce_(0, reach.inputs, torch.where(own < 0, len(units), own), "amin")
            high.scatter_reduce_(0, reach.inputs, own, "amax")
            if bool((low.where(high >= 0, high) != high).any()):
                mixed.add(module)
            found[module] = high
    if mixed - norms:
        return None
    return {name: own for name, own in found.items() if name not in mixed}


def _tell_failed(failed: Mapping[str, Exception]) -> None:
    for name, error in failed.items():
        logger.info(f"{name} stays uncut, its marks could not be read: {error}")
    raised = {name: error for name, error in failed.items() if not isinstance(error, Tangled)}
    if raised:
        name, error = next(iter(raised.items()))
        logger.warning(
            f"The forward pass raises when NaN traces the wires of {len(raised)} layers, which are not cut: "
            f"{name}: {type(error).__name__}: {error}"
        )


def _proved(groups: Sequence[Group], trial: Trial) -> tuple[Group, ...]:
    """The groups, `cut` where a trial cut leaves all that arrives anywhere alone: all at once first, then those whose
    names differ in numbers only, then each alone. Where the first of such alike groups cannot be cut alone, it may be
    that numbers of its modules have to change with it; else no other one is cut."""
    if not groups or trial.holds(groups):
        return tuple(groups)
    families: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        families[re.sub(r"(?<![^.])\d+(?![^.])", "*", group.host)].append(group)
    found: dict[str, Group] = {}
    for family in families.values():
        found |= {group.host: group for group in _cut_of_family(family, trial, alone=len(families) == 1)}
    for group in groups:
        if group.host not in found:
            logger.info(f"{group.host} keeps a gather: the tensor that it reads cannot shrink ({group.kind})")
    stay = [group for group in groups if group.host in found or can_stay_wide(trial.model, group)]
    return tuple(found.get(group.host, replace(group, cut=False)) for group in stay)


def _cut_of_family(family: list[Group], trial: Trial, alone: bool) -> list[Group]:
    """Those of a family of alike groups that can be cut.

    Args:
        alone: whether there is no other family, so that all of this one together have failed.
    """
    if not alone and trial.holds(family):
        return family
    first = family[0] if len(family) > 1 and trial.holds(family[:1]) else trial.with_numbers(family[0])
    if first is None:
        return []
    alike = [first, *(trial.like(group, first) for group in family[1:])]
    if trial.holds(alike):
        return alike
    return [group for group in alike if group is first or trial.holds([group])]
