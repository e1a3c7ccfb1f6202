"""Comparisons that fail where there is nothing to compare."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def every(found: Tensor | Iterable[object]) -> bool:
    """`all` of at least one."""
    values = found.flatten() if isinstance(found, Tensor) else list(found)
    assert len(values), "there is nothing to compare"
    return bool(values.all()) if isinstance(values, Tensor) else all(values)


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """The same tensors under the same names, bit for bit, and not nothing but zeros."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
    assert any(tensor.any() for tensor in left.values()), "there is nothing to compare"
