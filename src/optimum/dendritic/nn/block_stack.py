"""A stack of blocks that can be skipped whole: whole layers as units of pruning, exact for every kind of block.

Block `i` computes `y_i`; what leaves it is `x_i + g_i (y_i - x_i)` with a gate `g_i` in {0, 1}: at 1 the block as it
is, at 0 what came in, which is just what a model without the block computes, pre-LN or post-LN. (Zeroing the two
products that write to the residual stream would do for pre-LN blocks only.) The gate's gradient `<dL/dout, y - x>` is
that of a segment, `<W, dL/dW>`, for the block as a whole, so that the same scores rank blocks (Fan et al. 2020 drop
them at random, LayerDrop; Molchanov et al. 2019, eq. 8, for the score). The gate is a parameter, so that the engine
averages its gradient over ranks; `mask_` puts it back to 0 or 1 after every step of the optimizer, before the next
forward pass.

A skipped block still runs, so that its gate has a gradient and it can return; its weights stay what they were.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..distributed.dtensor import held, local, put_, summed
from ..functional.importance import Importance, square_norm
from ..functional.tiles import Piece, wide
from .base import DendriticLayer
from .surgery import shallow_copy

GATE = "dendrite_gate"


class DendriticStack(DendriticLayer, nn.ModuleList):
    """A `ModuleList` whose segments are its blocks; its mask has the shape `[1, blocks]`.

    Attributes:
        dendrite_gate: The gate of each block, `[blocks]`, 0 or 1 whenever the model runs.
    """

    dendrite_gate: nn.Parameter
    handles: list[RemovableHandle]

    def add_segments(self, arbors: int, segments: int, activity: bool, sprout: int) -> None:
        assert arbors == 1 and segments == len(self) and not activity and not sprout
        super().add_segments(arbors, segments, activity, sprout)
        first = next(parameter for parameter in self.parameters() if parameter.is_floating_point())
        self.register_parameter(GATE, nn.Parameter(first.new_ones(segments)))
        self.open_gates()

    def open_gates(self) -> None:
        """Let the gates act, before every other hook, those of transformers that collect hidden states too."""
        self.handles = [
            block.register_forward_hook(partial(_gate, self, index), prepend=True, with_kwargs=True)
            for index, block in enumerate(self)
        ]

    def close_gates(self) -> None:
        """Leave the blocks without gates, as a stock stack has them."""
        for handle in self.handles:
            handle.remove()

    def segmented(self) -> dict[str, nn.Parameter]:
        return {GATE: self.dendrite_gate}

    def gated(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        gates = tensors[GATE]
        return [Piece(local(gates)[None, None, :, None, None], segments=held(gates))]

    def pieces(self, tensors: Mapping[str, Tensor]) -> list[Piece]:
        return self.gated(tensors)

    def kept(self) -> list[Tensor]:
        return [self.dendrite_mask[0].cpu().nonzero().flatten()]

    def skipped(self) -> list[int]:
        """The ascending indices of the blocks that are skipped."""
        return (~self.dendrite_mask[0]).cpu().nonzero().flatten().tolist()

    @torch.no_grad()
    def reading(self, rule: Importance, gradients: Mapping[str, Tensor]) -> Float[Tensor, "arbors segments"]:
        """What `rule` makes of the gates as if all were open, so that a skipped block has a reading, too. For a rule of
        the norm, it is the norm of all weights of a block."""
        assert rule.measure is not None
        (gradient,), total = self.gated(gradients), torch.zeros_like(self.dendrite_score, dtype=torch.float32)
        if rule.measure is square_norm:
            tiles = [[local(p).flatten()[None, None, None, :, None] for p in block.parameters()] for block in self]
            norms = [torch.stack([square_norm(part, part) for part in block]).sum() for block in tiles]
            total.add_(torch.stack(norms)[None])
        else:
            gradient.add_to(total, rule.measure(torch.ones_like(gradient.tiles), gradient.tiles, None))
        return rule.score(summed(total, like=self.dendrite_gate))

    @torch.no_grad()
    def pruned_is_zero(self, mask: Bool[Tensor, "arbors segments"], tensors: Mapping[str, Tensor]) -> bool:
        """Whether the gates are the mask: 0 where a block is skipped, and 1 where it is not."""
        own = held(tensors[GATE])
        return torch.equal(local(tensors[GATE]).float(), (mask[0] if own is None else mask[0][own]).float())

    @torch.no_grad()
    def mask_(self) -> None:
        """Set each gate to 0 or 1, as the mask says."""
        put_(self.dendrite_gate, self.dendrite_mask[0])


def inject_stack(stack: nn.ModuleList) -> DendriticStack:
    """A dendritic stack of the *same* blocks, which are skipped from now on where their gate is 0."""
    injected = shallow_copy(stack, DendriticStack)
    injected.add_segments(1, len(stack), activity=False, sprout=0)
    return injected


class SkippedBlock(nn.Module):
    """What stands in the place of a block that is gone: it returns what it is given.

    It keeps the numbers, flags and words of the block, which the model may read.
    """

    def __init__(self, block: nn.Module, returns: int) -> None:
        """Args: `returns` is that of the record `Skipped`."""
        super().__init__()
        plain = {key: v for key, v in vars(block).items() if type(v) in (int, float, str, bool) and key[0] != "_"}
        vars(self).update(plain)
        self.returns = returns

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = block_input(args, kwargs)
        return (hidden, *[None] * (self.returns - 1)) if self.returns else hidden

    def extra_repr(self) -> str:
        return "returns what it is given"


def block_output(output: Any) -> Tensor:
    """The hidden states among what a block returns."""
    return output[0] if isinstance(output, tuple) else output


def block_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states among what a block is given."""
    return args[0] if args else kwargs["hidden_states"]


def with_output(output: Any, hidden: Tensor) -> Any:
    """What a block returns, with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _gate(stack: DendriticStack, index: int, block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    x, y = block_input(args, kwargs), block_output(output)
    return with_output(output, _Gate.apply(x, y, stack.dendrite_gate[index]))


class _Gate(torch.autograd.Function):
    """`x + g (y - x)` for a gate of 0 or 1, bit for bit `x` or `y`; with its derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, gate)
        return torch.where(gate > 0.5, y, x.to(y.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,), (x, y, gate) = gradients, ctx.saved_tensors
        opened, zero = gate > 0.5, torch.zeros_like(gradient)
        of_gate = (wide(gradient) * (wide(y) - wide(x))).sum().to(gate.dtype)
        return torch.where(opened, zero, gradient).to(x.dtype), torch.where(opened, gradient, zero), of_gate
