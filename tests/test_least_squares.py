"""Least squares by the normal equations: the optimum, singular or damped, with a bias or without."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimum.dendritic.functional.least_squares import Moments, least_squares, refit


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 6), st.integers(1, 5), st.floats(0, 100), st.integers(0, 99))
def test_damping_is_a_ridge_around_the_start(inputs, outputs, damping, seed):
    x, y, start = drawn(20, inputs, seed=seed), drawn(20, outputs, seed=seed + 1), drawn(outputs, inputs, seed=seed + 2)
    moments = Moments.of(x, y)
    fitted = least_squares(moments.xx, moments.yx, start, damping)
    ridge = damping * x.square().sum(0).mean() if inputs else 0
    slope = (fitted @ x.t() - y.t()) @ x + ridge * (fitted - start)
    assert fitted.shape == start.shape and torch.allclose(slope, torch.zeros_like(slope), atol=1e-6)


def test_moments_of_parts_add_up():
    x, y = drawn(9, 3), drawn(9, 2, seed=1)
    whole, parts = Moments.of(x, y), Moments.of(x[:4], y[:4]) + Moments.of(x[4:], y[4:])
    assert whole.count == parts.count == 9
    for name in ("x", "y", "xx", "yx"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_bias_is_an_intercept(offset):
    x, weight, bias = drawn(50, 4) + offset, drawn(3, 4, seed=1), drawn(3, seed=2)
    moments = Moments.of(x, x @ weight.t() + bias)
    fitted, intercept = refit(moments, torch.zeros_like(weight), torch.zeros_like(bias), damping=0.0)
    assert intercept is not None
    assert torch.allclose(fitted, weight, atol=1e-5) and torch.allclose(
        x @ fitted.t() + intercept, x @ weight.t() + bias
    )


def test_dependent_inputs_without_damping_get_the_smallest_change():
    x = drawn(20, 3)[:, [0, 1, 2, 2]]
    start, y = drawn(5, 4, seed=1), drawn(20, 5, seed=2)
    moments = Moments.of(x, y)
    fitted = least_squares(moments.xx, moments.yx, start, damping=0.0)
    best = torch.linalg.lstsq(x, y, driver="gelsd").solution.t()
    assert torch.allclose(fitted @ x.t(), best @ x.t(), atol=1e-6)
    assert torch.allclose((fitted - start)[:, 2], (fitted - start)[:, 3], atol=1e-6)


def test_strong_damping_leaves_the_weights_and_mends_the_bias():
    x, y, weight = drawn(30, 4) + 1, drawn(30, 2, seed=1), drawn(2, 4, seed=2)
    fitted, bias = refit(Moments.of(x, y), weight, torch.zeros(2, dtype=torch.float64), damping=1e12)
    assert bias is not None and torch.allclose(fitted, weight, atol=1e-6)
    assert torch.allclose(bias, (y - x @ weight.t()).mean(0), atol=1e-6)
