"""The density map: what is left of each layer that was changed, and which of its places, if that is known.

A layer `y = W x + b` has places on two sides: the inputs that it reads and the outputs that it makes. Along a wire
that packing has cut, the tensor itself is narrower: the number of places is known, and no longer which they were.
"""

import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..efficiency.wakeful import wakeful_of
from ..errors import invalid
from ..functional.selection import total_cost
from ..layout.layout import Layout
from ..layout.left import Left
from ..layout.records import Follower, Skipped
from ..nn import (
    DendriticLayer,
    DendriticStack,
    PackedLayer,
    PackedRecurrent,
    RecurrentLayer,
    WeightLayer,
    is_recurrent_layer,
    is_weight_layer,
    widths,
)
from ..nn.dormant import dormant_of
from ..nn.pack_model import pack_modules
from ..state import dense_config_of, gates_in, kept_in, layers_in, layout_of, split_stacks
from ..structure.input_embedding import put_factors_, saved_by_factors
from ..structure.rest_costs import costs_of_rest
from .describe import DENSE, described
from .groups import groups_left

DENSE_REMEDY = "Pass dense=, the model before it was pruned."


@dataclass(frozen=True)
class Side:
    """The inputs or the outputs of a layer.

    Attributes:
        size: Places in the dense layer.
        kept: Places that are left; of inputs, those that each arbor reads.
        places: For each of the `size` places the share of the arbors that have it (0 or 1 if there is one arbor), of a
            recurrent layer the share of its directions; None if only their number is known.
    """

    size: int
    kept: int
    places: Float[Tensor, " size"] | None

    @property
    def share(self) -> float:
        """What part of the places is left."""
        return self.kept / self.size


@dataclass(frozen=True, kw_only=True)
class LayerDensity:
    """What is left of one layer.

    Attributes:
        name: The full name of the layer.
        words: What `describe` says of it.
        parameters: Its parameters at present.
        dense_parameters: Its parameters before it was pruned.
        inputs: Its input side.
        outputs: Its output side.
    """

    name: str
    words: str
    parameters: int
    dense_parameters: int
    inputs: Side
    outputs: Side

    @property
    def share(self) -> float:
        """What part of the parameters is left; above 1 where a sprout costs more than what was pruned."""
        return self.parameters / self.dense_parameters


@dataclass(frozen=True, kw_only=True)
class Density:
    """The density map of a model.

    Attributes:
        model: The name of its class.
        packed: Whether it is packed; one that is not is described as it would be packed now, layer by layer.
        layers: Those that were touched, in the model's order.
        untouched: Names of other layers that multiply by a weight.
        parameters: Parameters of the whole model at present.
        dense_parameters: Parameters of the whole model before it was pruned.
        groups: How much is left of each group of units, as far as the layout tells.
        awake: The same while everything that is dormant is awake; empty where nothing is.
    """

    model: str
    packed: bool
    layers: tuple[LayerDensity, ...]
    untouched: tuple[str, ...]
    parameters: int
    dense_parameters: int
    groups: tuple[Left, ...] = ()
    awake: tuple[Left, ...] = ()

    def target_parameters(self) -> tuple[int, int]:
        """Parameters of the touched layers, at present and before they were pruned."""
        return sum(layer.parameters for layer in self.layers), sum(layer.dense_parameters for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; places are left out."""
        return {
            "model": self.model,
            "packed": self.packed,
            "parameters": self.parameters,
            "dense_parameters": self.dense_parameters,
            "layers": {
                layer.name: {
                    "form": layer.words,
                    "parameters": layer.parameters,
                    "dense_parameters": layer.dense_parameters,
                    "inputs": {"dense": layer.inputs.size, "kept": layer.inputs.kept},
                    "outputs": {"dense": layer.outputs.size, "kept": layer.outputs.kept},
                }
                for layer in self.layers
            },
            "untouched": list(self.untouched),
            "groups": [asdict(each) for each in self.groups],
        } | ({"awake": [asdict(each) for each in self.awake]} if self.awake else {})


def density(model: nn.Module, dense: nn.Module | None = None) -> Density:
    """The density map of a stock (nothing is touched), injected, packed or loaded model; it is left as it is.

    Args:
        dense: the model before it was pruned, for its shapes; only needed for a packed model that is not a
            `PreTrainedModel`. It may be on the meta device.

    Raises:
        DendriticError: the dense shapes are not known.
    """
    layout, kind = layout_of(model), type(model).__name__
    words = described(model, {} if layout is None else layout.modules)
    if layout is None:
        total = _parameters(model)
        return Density(
            model=kind, packed=False, layers=(), untouched=tuple(words), parameters=total, dense_parameters=total
        )
    if layout.packed:
        dense = _dense(model) if dense is None else dense
        dense_total = _parameters(dense)
        if layout.factored:
            dense = _with_factors(dense, layout)
        layers = [name for name, record in layout.modules.items() if not isinstance(record, Follower | Skipped)]
        modules = {name: model.get_submodule(name) for name in layers}
        _check_dense(type(model), dict(dense.named_modules()), modules)
        total = _parameters(model)
    else:
        stacks, layers = split_stacks(layers_in(model, layout))
        skipped = [f"{name}.{index}." for name, stack in stacks.items() for index in stack.skipped()]
        dense, modules = model, _packed_alone(model, layout, layers)
        modules = {name: module for name, module in modules.items() if not name.startswith(tuple(skipped))}
        added = sum(_parameters(layer) - _own(layer) for layer in layers.values()) + sum(map(_own, stacks.values()))
        dense_total = _parameters(model) - added
        total = dense_total + sum(_parameters(modules[name]) - _own(model.get_submodule(name)) for name in modules)
        total -= sum(_own(model.get_submodule(name)) for name in layers if name.startswith(tuple(skipped)))
        total -= _lost_besides(model, layout, layers, stacks)
        dense_total += saved_by_factors(model, layout.factored, counted="params", positions={})
    found = [_layer(name, modules[name], dense.get_submodule(name), words[name]) for name in words if name in modules]
    untouched = tuple(name for name, word in words.items() if word == DENSE)
    return Density(
        model=kind,
        packed=layout.packed,
        layers=tuple(found),
        untouched=untouched,
        parameters=total,
        dense_parameters=dense_total,
        groups=groups_left(model),
        awake=groups_left(dormant_of(model).awake) if wakeful_of(model) is not None else (),
    )


def _dense(model: nn.Module) -> nn.Module:
    """The stock model that the config describes, on the meta device."""
    if not isinstance(model, PreTrainedModel):
        rule = "only a PreTrainedModel tells its dense shapes once packed"
        raise invalid("model", type(model).__name__, rule, DENSE_REMEDY)
    config = copy.deepcopy(dense_config_of(model))
    try:
        with torch.device("meta"):
            return type(model)(config)
    except Exception as error:  # whatever a class raises at its own config, the config does not rebuild it
        rule = f"its config does not rebuild it: {type(error).__name__}: {error}"
        raise invalid("model", type(model).__name__, rule, DENSE_REMEDY) from error


def _with_factors(dense: nn.Module, layout: Layout) -> nn.Module:
    """The dense model with two factors, without values, in the place of its embedding."""
    with torch.device("meta"):
        dense = copy.deepcopy(dense).to("meta")
    put_factors_(dense, layout.factored)
    return dense


def _check_dense(kind: type, dense: dict[str, nn.Module], packed: dict[str, nn.Module]) -> None:
    for name, module in packed.items():
        before = dense.get(name, nn.Identity())
        if not (is_recurrent_layer(before) if isinstance(module, RecurrentLayer) else is_weight_layer(before)):
            rule = f"the dense model has no such layer as {name}, so its dense shape is not known"
            raise invalid("model", kind.__name__, rule, DENSE_REMEDY)


def _packed_alone(model: nn.Module, layout: Layout, layers: dict[str, DendriticLayer]) -> dict[str, nn.Module]:
    """The layers of an injected model, packed with nothing cut, so that every place is still known."""
    kept, alive = kept_in(model, layout, layers)
    groups = [replace(group, cut=False) for group in layout.groups]
    packed = pack_modules(model, kept, groups, alive).modules
    return {name: packed[name] for name in layers}


def _lost_besides(
    model: nn.Module, layout: Layout, layers: dict[str, DendriticLayer], stacks: dict[str, DendriticStack]
) -> int:
    """Parameters of embeddings, norms and other modules that are not targets, which go with the groups that are cut and
    with skipped blocks."""
    rest = costs_of_rest(model, {**layers, **stacks}, layout.groups, stacks=stacks, positions=None)
    masks = {name: gates.dendrite_mask.cpu() for name, gates in gates_in(model, layout, {**layers, **stacks}).items()}
    dense = {name: torch.ones_like(mask) for name, mask in masks.items()}
    return total_cost(dense, rest) - total_cost(masks, rest)


def _layer(name: str, module: nn.Module, dense: nn.Module, words: str) -> LayerDensity:
    if isinstance(module, RecurrentLayer):
        assert isinstance(dense, RecurrentLayer)
        read, made = _known(module.input_size, module.input_size), _units(module, dense.hidden_size)
    else:
        assert isinstance(module, WeightLayer)
        read, made = _sides(module, *widths(dense))
    sizes = {"parameters": _parameters(module), "dense_parameters": _own(dense)}
    return LayerDensity(name=name, words=words, inputs=read, outputs=made, **sizes)


def _sides(module: WeightLayer, inputs: int, outputs: int) -> tuple[Side, Side]:
    """Of a layer of one weight, given the widths of the dense layer."""
    if not isinstance(module, PackedLayer):
        present_inputs, present_outputs = widths(module)
        return _known(inputs, present_inputs), _known(outputs, present_outputs)
    form = module.form
    read, made = _known(inputs, form.kept), _known(outputs, sum(form.arbors))
    positions = module.reads()
    if positions is not None and form.inputs == inputs:
        counts = torch.bincount(positions.flatten().cpu(), minlength=inputs)
        read = replace(read, places=counts / len(form.arbors))
    if module.outputs is not None and form.outputs == outputs:
        made = replace(made, places=torch.bincount(module.outputs.cpu(), minlength=outputs).float())
    return read, made


def _units(module: RecurrentLayer, hidden: int) -> Side:
    if not isinstance(module, PackedRecurrent):
        return _known(hidden, module.hidden_size)
    counts = torch.bincount(module.outputs.flatten().cpu(), minlength=hidden)
    return Side(hidden, module.form.kept, counts / len(module.outputs))


def _known(size: int, kept: int) -> Side:
    """A side whose places are known only if all of them are left, or none."""
    return Side(size, kept, torch.full((size,), kept / size) if kept in (0, size) else None)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _own(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))
