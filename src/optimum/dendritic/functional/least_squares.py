"""Least squares: the weights that make the best of the inputs that are left.

`least_squares` minimises `||Y - W X||² + λ ||W - W0||²`; the columns of `X` are samples of what a layer reads, those of
`Y` what it should answer:

    W = W0 + (Y Xᵀ - W0 X Xᵀ) (X Xᵀ + λ I)⁻¹

For a layer that keeps the inputs `S` and should answer what the whole layer did, λ -> 0 gives `W X X_Sᵀ (X_S X_Sᵀ)⁻¹`:
the pruning of many inputs at once in Optimal Brain Surgeon (Hassibi & Stork 1993; layer by layer: Frantar & Alistarh
2022, OBC; for channels: He et al. 2017, eq. 5). λ pulls to the weights as they were and not to zero, so that the fit on
the calibration samples is never worse than no fit; as in SparseGPT (Frantar & Alistarh 2023) it is a fraction of the
mean of the diagonal.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(kw_only=True)
class Moments:
    """Sums over samples of what a layer reads (`x`, `[samples, in]`) and of what it should answer (`y`).

    Attributes:
        count: The number of samples.
        x: The sum of `x` over the samples.
        y: The sum of `y` over the samples.
        xx: The sum of the products of each two entries of `x`.
        yx: The sum of the products of each entry of `y` with each entry of `x`.
    """

    count: int
    x: Float[Tensor, " in"]
    y: Float[Tensor, " out"]
    xx: Float[Tensor, "in in"]
    yx: Float[Tensor, "out in"]

    @classmethod
    def of(cls, x: Float[Tensor, "samples in"], y: Float[Tensor, "samples out"]) -> "Moments":
        return cls(count=len(x), x=x.sum(0), y=y.sum(0), xx=x.t() @ x, yx=y.t() @ x)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            count=self.count + other.count,
            x=self.x + other.x,
            y=self.y + other.y,
            xx=self.xx + other.xx,
            yx=self.yx + other.yx,
        )


def least_squares(
    xx: Float[Tensor, "in in"], yx: Float[Tensor, "out in"], start: Float[Tensor, "out in"], damping: float
) -> Float[Tensor, "out in"]:
    """The weights `W` that minimise `||Y - W X||² + λ ||W - start||²`, λ being `damping` times the mean of `diag(xx)`.

    Args:
        xx: `X Xᵀ`; singular is fine.
        yx: `Y Xᵀ`.
        start: the weights that damping pulls to.
    """
    if not len(xx):
        return start
    damped = xx + damping * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    factor, failed = torch.linalg.cholesky_ex(damped)
    missing = yx - start @ xx
    if failed:  # singular, where inputs depend on each other and damping is nought: the smallest change that fits
        return start + missing @ torch.linalg.pinv(damped, hermitian=True)
    return start + torch.cholesky_solve(missing.t(), factor).t()


def refit(
    moments: Moments, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, damping: float
) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """Weight and bias that answer `y` to `x` best, in float64. The bias is not damped; without one there is none."""
    xx, yx, start = moments.xx.double(), moments.yx.double(), weight.double()
    if bias is None:
        return least_squares(xx, yx, start, damping), None
    x, y = moments.x.double() / moments.count, moments.y.double() / moments.count
    xx, yx = xx - moments.count * x.outer(x), yx - moments.count * y.outer(x)
    fitted = least_squares(xx, yx, start, damping)
    return fitted, y - fitted @ x
