"""What the rest of a model costs: all that is not a target, some of which shrinks with the groups that are cut."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..efficiency.size import largest_header
from ..functional.costs import Block, Cost, Link
from ..functional.other_costs import TensorCost
from ..functional.units import units_along
from ..layout.records import Group, Member
from ..nn import DendriticLayer, DendriticStack, is_weight_layer
from ..nn.base import OWN_BUFFERS

HEADER = "header"  # no tensor has the name: a tensor's begins with that of a module, or the model has no modules
Links = dict[str, dict[int, Link]]  # parameter -> axis -> the units that its entries die with


def costs_of_rest(
    model: nn.Module,
    layers: Mapping[str, DendriticLayer],
    groups: Iterable[Group],
    *,
    stacks: Collection[str],
    positions: Mapping[str, int] | None,
) -> dict[str, Cost]:
    """What the model costs besides its `layers`: each of its other tensors, by its name.

    Args:
        layers: the targets, whose parameters are counted elsewhere; in the model or about to be.
        groups: those that may be cut; what belongs to one that is cut shrinks with it.
        stacks: names of the stacks of blocks that may be skipped.
        positions: how often each layer multiplies in one sample, where multiply-accumulates are counted; None where
            parameters are. Only layers multiply.
    """
    targets = _targets(layers)
    links = _links(model, groups)
    matrices = {f"{name}.weight": name for name, module in model.named_modules() if is_weight_layer(module)}
    costs: dict[str, Cost] = {}
    for name, parameter in model.named_parameters(remove_duplicate=positions is None):
        products = 1 if positions is None else positions.get(matrices.get(name, ""), 0)
        if id(parameter) not in targets and products:
            costs[name] = _tensor_cost(parameter, products, links.get(name, {}), block_of(name, stacks))
    return costs


def bytes_of_rest(
    model: nn.Module, layers: Mapping[str, DendriticLayer], groups: Iterable[Group], stacks: Collection[str]
) -> dict[str, Cost]:
    """The bytes of the model's safetensors file besides those of its `layers`: each other tensor that is saved, by its
    name, buffers too; and the header at its largest."""
    targets, links = _targets(layers), _links(model, groups)
    costs: dict[str, Cost] = {}
    saved = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not _is_own(name)}
    first = {id(tensor): name for name, tensor in reversed(saved.items())}
    for name, tensor in saved.items():
        if id(tensor) not in targets and first[id(tensor)] == name:
            costs[name] = _tensor_cost(tensor, tensor.element_size(), links.get(name, {}), block_of(name, stacks))
    added = [f"{name}.{index}" for name in layers for index in ("inputs", "outputs")]
    costs[HEADER] = TensorCost(each=largest_header(saved, added))
    return costs


def block_of(name: str, stacks: Collection[str]) -> Block | None:
    """The block that a module or tensor of this name stands in; None outside of the stacks.

    >>> block_of("encoder.layer.3.output.bias", ["encoder.layer"])
    Block(stack='encoder.layer', index=3)
    """
    stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
    index = name.removeprefix(f"{stack}.").split(".")[0]
    return Block(stack, int(index)) if stack is not None and index.isdecimal() else None


def _is_own(name: str) -> bool:
    return name.rpartition(".")[2] in OWN_BUFFERS


def _targets(layers: Mapping[str, DendriticLayer]) -> set[int]:
    """The parameters that are counted elsewhere, by identity."""
    parameters = (layer.parameters(recurse=not isinstance(layer, DendriticStack)) for layer in layers.values())
    return {id(parameter) for each in parameters for parameter in each}


def _tensor_cost(tensor: Tensor, each: int, links: Mapping[int, Link], block: Block | None) -> TensorCost:
    """A tensor of which one entry costs `each`."""
    fixed = [size for axis, size in enumerate(tensor.shape) if axis not in links]
    return TensorCost(each=each * math.prod(fixed), links=tuple(links.values()), block=block)


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
            for key, tensor in modules[member.name].state_dict(keep_vars=True).items():
                if tensor.dim():
                    found[f"{member.name}.{key}"][0] = _link(group, member, len(tensor))
    return found


def _link(group: Group, member: Member, length: int) -> Link:
    return Link(host=group.host, segments=units_along(member.runs, length))
