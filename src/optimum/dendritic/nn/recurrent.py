"""LSTM and GRU with dendritic segments: the stock forward on the stock parameters.

A segment is one hidden unit, an arbor one direction of one layer, in the order of `h_n`: masks and scores have the
shape `[layers * directions, hidden]`. The stock layers have one hidden size, which is the rule that every arbor keeps
equally many segments.

The gate `m_j` of a unit multiplies every weight of the module that touches it, in each of the `g` gates of its kind:

    m_j * (W_ih[g, j, :], W_hh[g, j, :], b_ih[g, j], b_hh[g, j], W_hh[g, :, j], U_ih[g, :, j])

with `U` the next layer's weights, in each of its directions. At 1 it changes nothing, at 0 the unit is gone, and the
chain rule gives `dL/dm_j` as the sum of `<W, dL/dW>` over them (`W_hh[g, j, j]` twice: it is multiplied by `m_j^2`).
Whoever reads the last layer's output is outside the module; the rows stand in for that reader. The rows alone would
miss units that saturate: their output is large, its derivative is not.

A pruned unit has rows of zeros, biases too. From a zero state it stays at exactly 0: an LSTM has `g = tanh(0) = 0`, so
`c = f * 0 + i * 0`; a GRU has `n = tanh(0) = 0`, so `h = (1 - z) * 0 + z * 0`. Its columns then multiply nothing and
are left alone: were they zero as well, a unit inside the stack would have no gradient by which it could grow back.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..distributed.dtensor import held, local
from ..errors import invalid
from ..functional.tiles import Piece
from ..unofficial import own_flat_weights_
from .base import DendriticLayer

RecurrentLayer = nn.LSTM | nn.GRU
SequenceInput = Tensor | PackedSequence
State = Tensor | tuple[Tensor, ...]


class DendriticRecurrent(DendriticLayer, nn.RNNBase):
    """What `DendriticLSTM` and `DendriticGRU` share."""

    def add_segments(self, arbors: int, segments: int, activity: bool, sprout: int) -> None:
        assert (arbors, segments) == (states(self), self.hidden_size) and not activity and not sprout
        own_flat_weights_(self)
        super().add_segments(arbors, segments, activity, sprout)

    def forward(self, input: SequenceInput, hx: State | None = None) -> tuple:
        """The stock forward; pruned units of an initial state count as zero, since nothing will be left of them."""
        if hx is not None:
            hx = map_state(hx, lambda part: self._masked(check_state(part, *self.dendrite_mask.shape)))
        return super().forward(input, hx)

    def _masked(self, state: Tensor) -> Tensor:
        mask = self.dendrite_mask if state.dim() == 2 else self.dendrite_mask[:, None]
        return state.masked_fill(~mask, 0)

    def segmented(self) -> dict[str, nn.Parameter]:
        return {name: self.get_parameter(name) for names in weight_names(self) for name in names}

    def gated(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        parts = [self._rows(tensors, arbor) + self._columns(tensors, arbor) for arbor in range(states(self))]
        return [piece for part in parts for piece in part]

    def pieces(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        return [piece for arbor in range(states(self)) for piece in self._rows(tensors, arbor)]

    def kept(self) -> list[Tensor]:
        """Ascending hidden units (int64) that each direction of each layer keeps, on the CPU."""
        return [arbor.nonzero().flatten() for arbor in self.dendrite_mask.cpu()]

    def _rows(self, tensors: Mapping[str, Tensor], arbor: int) -> list[Piece]:
        """The weights and biases that compute each unit of one arbor, as far as they are in `tensors`:
        `[1, 1, rows, width, 1]`, the rows of all gates one after another."""
        pieces = []
        for name in (name for name in weight_names(self)[arbor] if name in tensors):
            matrix = _matrix(tensors[name])
            own = held(tensors[name])
            rows = torch.arange(len(matrix), device=matrix.device) if own is None else own
            units = rows % self.hidden_size
            pieces.append(Piece(matrix[None, None, ..., None], arbors=rows.new_full((1,), arbor), segments=units))
        return pieces

    def _columns(self, tensors: Mapping[str, Tensor], arbor: int) -> list[Piece]:
        """The weights by which its own direction and the next layer read each unit: `[1, 1, hidden, rows, 1]`."""
        ways, width = directions(self), self.hidden_size
        layer, way = divmod(arbor, ways)
        names = weight_names(self)
        readers = [_matrix(tensors[names[arbor][1]])]
        for name, *_ in names[(layer + 1) * ways : (layer + 2) * ways]:
            readers.append(_matrix(tensors[name])[:, way * width : (way + 1) * width])
        own = torch.full((1,), arbor, device=readers[0].device)  # no transfer: it is made there
        return [Piece(reader.t()[None, None, ..., None], arbors=own) for reader in readers]


def _matrix(tensor: Tensor) -> Float[Tensor, "rows width"]:
    """View of what this process holds of a weight, or of a bias as one column."""
    part = local(tensor)
    return part if part.dim() == 2 else part[:, None]


class DendriticLSTM(DendriticRecurrent, nn.LSTM):
    pass


class DendriticGRU(DendriticRecurrent, nn.GRU):
    pass


def is_recurrent_layer(module: nn.Module) -> bool:
    """Whether a module is exactly an LSTM or a GRU, stock or injected, without a projection of its hidden state."""
    kind = isinstance(module, DendriticRecurrent) or type(module) in (nn.LSTM, nn.GRU)
    return kind and isinstance(module, RecurrentLayer) and module.proj_size == 0


def recurrent_layer(model: nn.Module, name: str) -> RecurrentLayer:
    """The recurrent layer at `name`."""
    layer = model.get_submodule(name)
    assert isinstance(layer, RecurrentLayer)
    return layer


def directions(layer: nn.RNNBase) -> int:
    """1, or 2 for a bidirectional layer."""
    return 2 if layer.bidirectional else 1


def gates(layer: nn.RNNBase) -> int:
    """4 of an LSTM, 3 of a GRU: rows of each weight for one hidden unit."""
    return 4 if isinstance(layer, nn.LSTM) else 3


def weight_names(layer: nn.RNNBase) -> list[list[str]]:
    """For each arbor, in the order of `h_n`, the names of its parameters, as PyTorch documents them: input weight,
    hidden weight and, where there are any, their biases."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if layer.bias else 2]
    ways = ("", "_reverse")[: directions(layer)]
    return [[f"{kind}_l{index}{way}" for kind in kinds] for index in range(layer.num_layers) for way in ways]


def states(layer: nn.RNNBase) -> int:
    """Arbors of a recurrent layer: layers times directions, the first axis of its hidden state."""
    return layer.num_layers * directions(layer)


def map_state(state: State, function: Callable[[Tensor], Tensor]) -> State:
    """`function` of `h` (GRU), or of `h` and `c` (LSTM)."""
    return function(state) if isinstance(state, Tensor) else tuple(function(part) for part in state)


def check_state(state: Tensor, arbors: int, hidden: int) -> Tensor:
    """`state` itself. Raises `DendriticError` where it is not `[arbors, (batch,) hidden]`."""
    if state.dim() not in (2, 3) or (state.shape[0], state.shape[-1]) != (arbors, hidden):
        rule = f"must be [{arbors}, batch, {hidden}], or [{arbors}, {hidden}] without a batch"
        raise invalid("hx", tuple(state.shape), rule, "Pass the state that the stock layer takes.")
    return state
