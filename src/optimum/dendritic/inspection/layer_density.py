"""What is left of one layer, and which of its places, if that is known.

A layer `y = W x + b` has places on two sides: the inputs that it reads and the outputs that it makes. Along a wire
that packing has cut, the tensor itself is narrower: the number of places is known, and no longer which they were.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..nn import PackedLayer, PackedRecurrent, RecurrentLayer, WeightLayer, widths


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


def layer_density(name: str, module: nn.Module, dense: nn.Module, words: str) -> LayerDensity:
    """What is left of `module`, which was `dense` before; `words` are those of `describe`."""
    if isinstance(module, RecurrentLayer):
        assert isinstance(dense, RecurrentLayer)
        read, made = _known(module.input_size, module.input_size), _units(module, dense.hidden_size)
    else:
        assert isinstance(module, WeightLayer)
        read, made = _sides(module, *widths(dense))
    sizes = {"parameters": all_size(module), "dense_parameters": own_size(dense)}
    return LayerDensity(name=name, words=words, inputs=read, outputs=made, **sizes)


def _sides(module: WeightLayer, inputs: int, outputs: int) -> tuple[Side, Side]:
    """Of a layer of one weight, given the widths of the dense layer."""
    if not isinstance(module, PackedLayer):
        present_inputs, present_outputs = widths(module)
        return _known(inputs, present_inputs), _known(outputs, present_outputs)
    form = module.form
    read, made = _known(inputs, form.kept), _known(outputs, sum(form.arbors))
    if module.inputs is not None and form.inputs == inputs:
        counts = torch.bincount(module.inputs.flatten().cpu(), minlength=inputs)
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


def all_size(module: nn.Module) -> int:
    """The number of parameters of a module and of all within it."""
    return sum(parameter.numel() for parameter in module.parameters())


def own_size(layer: nn.Module) -> int:
    """The number of parameters of a module without those within it."""
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))
