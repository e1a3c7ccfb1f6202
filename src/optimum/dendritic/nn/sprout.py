"""Sprouts: `y += t * gelu(D U x)`, a low-rank nonlinear branch that grows back a little of what was pruned.

`D U` starts as the activation-weighted low-rank approximation of the pruned weights, the one that is nearest on the
inputs that the layer really sees (as in ASVD, Yuan et al. 2023), and `t` starts at 0 (as in ReZero, Bachlechner et al.
2021), so that a sprout changes nothing until it learns. The GELU is the exact one.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..distributed.collectives import from_first_rank_
from ..distributed.dtensor import put_, whole
from ..functional.low_rank import factorise


class Sprout(nn.Module):
    """A low-rank nonlinear branch: `[..., inputs] -> [..., rows]`.

    A row has one gate where it has `inputs` weights. The factor in `t = sqrt(inputs) gate` lets both change by the same
    order under one learning rate; without it, `t` would stay near 0 for all of a fine-tuning at 5e-5.

    Attributes:
        down: The factor `U`, `[rank, inputs]`.
        up: The factor `D`, `[rows, rank]`.
        gate: The gate of each row before the factor, `[rows]`.
    """

    def __init__(
        self, down: Float[Tensor, "rank inputs"], up: Float[Tensor, "rows rank"], gate: Float[Tensor, " rows"]
    ):
        super().__init__()
        self.down, self.up, self.gate = nn.Parameter(down), nn.Parameter(up), nn.Parameter(gate)

    def forward(self, x: Tensor) -> Tensor:
        grown = F.gelu(F.linear(F.linear(x, self.down), self.up))
        return grown * (self.gate * self.down.shape[1] ** 0.5).to(grown.dtype)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def rows(self, keep: Tensor) -> "Sprout":
        """A sprout of the outputs `keep` (ascending indices) alone."""
        keep = keep.to(self.up.device)
        up, gate = whole(self.up).index_select(0, keep), whole(self.gate).index_select(0, keep)
        return Sprout(whole(self.down).clone(), up, gate)

    @torch.no_grad()
    def absorb_(self, lost: Float[Tensor, "rows inputs"], norms: Float[Tensor, " inputs"]) -> None:
        """`D U <- D U + lost`, cut back to the rank.

        Args:
            lost: weights that are being pruned.
            norms: root mean square of each input.
        """
        up, down = whole(self.up), whole(self.down)
        if bool(lost.any()):
            up, down = factorise(up.float() @ down.float() + lost, norms, self.rank)
        from_first_rank_((up, down))  # linear algebra may turn out otherwise on another device
        put_(self.up, up)
        put_(self.down, down)


def empty_sprout(rank: int, inputs: int, rows: int, like: Tensor) -> Sprout:
    """A sprout of zeros, in the dtype and on the device of `like`."""
    return Sprout(like.new_zeros(rank, inputs), like.new_zeros(rows, rank), like.new_zeros(rows))
