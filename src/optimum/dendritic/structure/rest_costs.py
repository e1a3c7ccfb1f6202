"""What the rest of a model costs: all that is no target, some of which shrinks with the groups that are cut."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..functional.costs import Cost, Link, TensorCost
from ..functional.units import units_along
from ..layout.records import Group, Member
from ..nn import DendriticLayer, is_weight_layer

Links = dict[str, dict[int, Link]]  # parameter -> axis -> the units that its entries die with


def costs_of_rest(
    model: nn.Module, layers: Mapping[str, DendriticLayer], groups: Iterable[Group], positions: Mapping[str, int] | None
) -> dict[str, Cost]:
    """What the model costs besides its `layers`: each of its other tensors, by its name.

    Args:
        layers: the targets, whose parameters are counted elsewhere; in the model or about to be.
        groups: those that may be cut; what belongs to one that is cut shrinks with it.
        positions: how often each layer multiplies in one sample, where multiply-accumulates are counted; None where
            parameters are. Only layers multiply.
    """
    targets = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    links = _links(model, groups)
    matrices = {f"{name}.weight": name for name, module in model.named_modules() if is_weight_layer(module)}
    costs: dict[str, Cost] = {}
    for name, parameter in model.named_parameters(remove_duplicate=positions is None):
        products = 1 if positions is None else positions.get(matrices.get(name, ""), 0)
        if id(parameter) in targets or not products:
            continue
        own = links.get(name, {})
        fixed = [size for axis, size in enumerate(parameter.shape) if axis not in own]
        each = products
        for size in fixed:
            each *= size
        costs[name] = TensorCost(each=each, links=tuple(own.values()))
    return costs


def _links(model: nn.Module, groups: Iterable[Group]) -> Links:
    """Which axes of which parameters shrink with the groups that are cut. Those of targets are among them."""
    modules = dict(model.named_modules())
    found: Links = defaultdict(dict)
    for group in groups:
        if not group.cut:
            continue
        for member in group.parameters:
            found[member.name][member.axis] = _link(group, member, model.get_parameter(member.name).shape[member.axis])
        for member in group.consumers:
            axis = 0 if isinstance(modules[member.name], Conv1D) else 1
            weight = modules[member.name].get_parameter("weight")
            found[f"{member.name}.weight"][axis] = _link(group, member, weight.shape[axis])
        for member in group.producers:
            if isinstance(module := modules[member.name], nn.Embedding):
                found[f"{member.name}.weight"][1] = _link(group, member, module.embedding_dim)
        for member in group.passers:
            for key, parameter in modules[member.name].named_parameters(recurse=False):
                found[f"{member.name}.{key}"][0] = _link(group, member, len(parameter))
    return found


def _link(group: Group, member: Member, length: int) -> Link:
    return Link(host=group.host, segments=units_along(member.runs, length))
