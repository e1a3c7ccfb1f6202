"""Packed LSTM and GRU: gather (of an initial state) -> the stock layer with fewer hidden units -> scatter.

The parameters keep their stock names and hold only what is left of each unit. From the outside the layer is as wide as
it was (`hidden_size`, outputs and states), so that whatever is computed from its width stays right.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..distributed.dtensor import whole
from ..functional.channels import scatter_channels
from ..layout.records import Recurrent
from ..unofficial import relist_weights_
from .base import drop_own_buffers
from .injected import stock_type
from .recurrent import (
    RecurrentLayer,
    SequenceInput,
    State,
    check_state,
    directions,
    gates,
    map_state,
    states,
    weight_names,
)
from .surgery import shallow_copy


class PackedRecurrent(nn.RNNBase):
    """What the packed recurrent layers share. Units that are gone are zero in outputs and states, and ignored in an
    initial state.

    Attributes:
        outputs: The hidden units that each direction of each layer still has, `[layers * directions, kept]`, an
            ascending, persistent buffer of int64.
        form: The shape of the layer, as its layout records it.
    """

    outputs: Tensor
    form: Recurrent

    def forward(self, input: SequenceInput, hx: State | None = None) -> tuple:
        state = self._zeros(input) if hx is None else map_state(hx, self._gather)
        if self.form.kept:
            output, state = super().forward(input, state)
        else:  # torch refuses hidden states of no units
            output = _with_data(input, lambda data: data[..., :0])
        return _with_data(output, self._scatter_output), map_state(state, self._scatter_state)

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> Any:  # sizes may be symbols
        return (*super().get_expected_hidden_size(input, batch_sizes)[:2], self.form.kept)

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> Any:
        return self.get_expected_hidden_size(input, batch_sizes)

    def flatten_parameters(self) -> None:
        """The stock method, with the width of the hidden state that cuDNN computes with."""
        outside, self.hidden_size = self.hidden_size, self.form.kept
        try:
            if self.form.kept:
                super().flatten_parameters()
        finally:
            self.hidden_size = outside

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kept={self.form.kept}"

    def _zeros(self, input: SequenceInput) -> State:
        """The initial state that the stock forward would make, with the units that are left."""
        if isinstance(input, PackedSequence):
            data, batch = input.data, [int(input.batch_sizes[0])]
        else:
            data, batch = input, [input.shape[0 if self.batch_first else 1]] if input.dim() == 3 else []
        zeros = data.new_zeros(states(self), *batch, self.form.kept)
        return (zeros, zeros) if isinstance(self, nn.LSTM) else zeros

    def _gather(self, state: Tensor) -> Tensor:
        return check_state(state, states(self), self.form.hidden).gather(-1, self._positions(state))

    def _scatter_state(self, state: Tensor) -> Tensor:
        wide = state.new_zeros(*state.shape[:-1], self.form.hidden)
        return wide.scatter(-1, self._positions(state), state)

    def _positions(self, state: Tensor) -> Tensor:
        """The index that gathers from a state or scatters to it, `[layers * directions, (batch,) kept]`."""
        if state.dim() == 2:
            return self.outputs
        return self.outputs[:, None].expand(-1, state.shape[1], -1)

    def _scatter_output(self, data: Tensor) -> Tensor:
        """`[..., directions * kept] -> [..., directions * hidden]`."""
        hidden, ways = self.form.hidden, directions(self)
        last = torch.cat([self.outputs[way - ways] + way * hidden for way in range(ways)])
        return scatter_channels(data, last, ways * hidden, -1)


class PackedLSTM(PackedRecurrent, nn.LSTM):
    pass


class PackedGRU(PackedRecurrent, nn.GRU):
    pass


PACKED: dict[type[nn.Module], type[PackedRecurrent]] = {nn.LSTM: PackedLSTM, nn.GRU: PackedGRU}


def pack_recurrent(layer: RecurrentLayer, keep: list[Tensor]) -> nn.Module:
    """The small layer that computes what `layer` computes when every other unit is pruned.

    Args:
        layer: stock or injected; left as it was.
        keep: for each direction of each layer its ascending hidden units, the same number for all.
    """
    hidden = layer.hidden_size
    ways, device = directions(layer), next(layer.parameters()).device
    tensors = {}
    for arbor, names in enumerate(weight_names(layer)):
        rows = (torch.arange(gates(layer))[:, None] * hidden + keep[arbor]).flatten().to(device)
        first = arbor // ways * ways  # of its layer; before it are the arbors that this one reads
        arrive = [way * hidden + units for way, units in enumerate(keep[max(0, first - ways) : first])]
        columns = [torch.cat(arrive) if arrive else None, keep[arbor], None, None]
        for name, column in zip(names, columns, strict=False):
            part = whole(layer.get_parameter(name)).index_select(0, rows)
            tensors[name] = part if column is None else part.index_select(1, column.to(device))
    return _build(layer, Recurrent(hidden=hidden, kept=len(keep[0])), tensors, torch.stack(keep).to(device))


def recurrent_skeleton(layer: RecurrentLayer, form: Recurrent) -> nn.Module:
    """`layer` in the shape that `form` records, with tensors of undefined content on the layer's device."""
    ways, rows = directions(layer), gates(layer) * form.kept
    tensors = {}
    for arbor, names in enumerate(weight_names(layer)):
        arrive = layer.input_size if arbor < ways else ways * form.kept
        shapes = [(rows, arrive), (rows, form.kept), (rows,), (rows,)]
        for name, shape in zip(names, shapes, strict=False):
            tensors[name] = layer.get_parameter(name).new_empty(shape)
    index = torch.zeros(0, dtype=torch.int64, device=next(layer.parameters()).device)
    return _build(layer, form, tensors, index.new_empty(states(layer), form.kept))


def _build(layer: RecurrentLayer, form: Recurrent, tensors: Mapping[str, Tensor], outputs: Tensor) -> nn.Module:
    stock = stock_type(layer)
    packed = shallow_copy(layer, stock if form.plain else PACKED[stock])
    assert isinstance(packed, RecurrentLayer)
    drop_own_buffers(packed)
    if isinstance(packed, PackedRecurrent):
        packed.form = form
        packed.register_buffer("outputs", outputs)
    for name, tensor in tensors.items():
        packed.register_parameter(name, nn.Parameter(tensor, layer.get_parameter(name).requires_grad))
    relist_weights_(packed)
    return packed


def _with_data(sequence: SequenceInput, function: Callable[[Tensor], Tensor]) -> SequenceInput:
    """`function` of a tensor, or of the data of a packed sequence."""
    if isinstance(sequence, PackedSequence):
        return PackedSequence(function(sequence.data), *sequence[1:])
    return function(sequence)
