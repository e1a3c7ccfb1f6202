"""Low-rank factors: those that a sprout starts from, and those of an embedding."""

import torch
from jaxtyping import Float
from torch import Tensor

OVERSAMPLING = 8  # directions beyond the rank, and
POWERS = 4  # rounds of power iteration of the range finder
ROWS = 8192  # that are in double precision at a time
LEAST = 1e-7  # of the largest singular value: below it they are rounding


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


def factorise_rows(
    rows: Float[Tensor, "tokens columns"], weights: Float[Tensor, " tokens"], rank: int
) -> tuple[Float[Tensor, "tokens rank"], Float[Tensor, "columns rank"]]:
    """`table` and `up` whose product `table @ up.T` is the nearest to `rows` of that rank, where the squared error of
    row `t` counts `weights[t]` times.

    With the leading eigenvectors `Q` of `sum_t weights[t] rows[t] rows[t]^T` and the roots `s` of their eigenvalues
    that is `rows Q Q^T`, shared out as `table = rows Q / sqrt(s)` and `up = Q sqrt(s)`, so that both learn alike. It
    depends on the ratios of the weights alone. At full rank the product is `rows`, whatever the weights.

    >>> table, up = factorise_rows(torch.tensor([[3.0, 4.0], [6.0, 8.0]]), torch.ones(2), rank=1)
    >>> (table @ up.t()).round(decimals=4)
    tensor([[3., 4.],
            [6., 8.]])
    """
    weights = weights.to("cpu", torch.float64) / weights.double().mean().item()
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part, counts in zip(rows.split(ROWS), weights.split(ROWS), strict=True):
        part = part.to("cpu", torch.float64)
        gram += part.t() @ (part * counts[:, None])
    values, directions = torch.linalg.eigh(gram)
    values, up = values.flip(0)[:rank].clamp(min=0).sqrt(), directions.flip(1)[:, :rank]
    roots = values.clamp(min=float(values[0]) * LEAST).sqrt() if bool(values[0]) else torch.ones_like(values)
    parts = [(part.to("cpu", torch.float64) @ up / roots).to(rows.device, rows.dtype) for part in rows.split(ROWS)]
    return torch.cat(parts), (up * roots).to(rows.device, rows.dtype)
