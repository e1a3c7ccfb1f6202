"""The low-rank branch of a sprout: how many numbers it has, and the factors that it starts from."""

import torch
from jaxtyping import Float
from torch import Tensor

OVERSAMPLING = 8  # directions beyond the rank, and
POWERS = 4  # rounds of power iteration of the range finder


def sprout_parameters(rank: int, inputs: int, rows: int) -> int:
    """How many numbers a sprout has.

    >>> sprout_parameters(rank=4, inputs=10, rows=5)
    65
    """
    return rank * (inputs + rows) + rows


def factorise(
    matrix: Float[Tensor, "rows inputs"], norms: Float[Tensor, " inputs"], rank: int
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank inputs"]]:
    """`up` and `down` whose product is the nearest to `matrix` of that rank, in `||(matrix - up down) diag(norms)||`.

    With the leading left singular vectors `Q` and values `s` of `matrix diag(norms)` that is `Q Q^T matrix`, shared out
    as `up = Q sqrt(s)` and `down = Q^T matrix / sqrt(s)`: nothing is divided by norms. `Q` is found by randomised
    subspace iteration (Halko et al. 2011, algorithms 4.4 and 5.1) from a fixed start, exactly where the matrix has no
    more than `rank + OVERSAMPLING` rows or columns. Entries that are not finite count as 0, and norms of 0 all as 1.
    """
    matrix = torch.where(matrix.isfinite(), matrix, 0)
    seen = matrix * norms if bool(norms.any()) else matrix
    width = min(rank + OVERSAMPLING, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0)).to(matrix)
    basis = torch.linalg.qr(seen @ start)[0]
    for _ in range(POWERS):
        basis = torch.linalg.qr(seen @ torch.linalg.qr(seen.t() @ basis)[0])[0]
    left, values, _ = torch.linalg.svd(basis.t() @ seen, full_matrices=False)
    leading, roots = basis @ left[:, :rank], values[:rank].sqrt()
    shares = torch.where(values[:rank] > values[0] * torch.finfo(values.dtype).eps, 1 / roots, 0)
    return leading * roots, shares[:, None] * (leading.t() @ matrix)
