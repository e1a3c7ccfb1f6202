"""Scores: the gate's gradient is exact, every control is its formula, and one bad batch spoils nothing."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from optimum.dendritic.config import IMPORTANCES
from optimum.dendritic.functional import importance as formulas
from optimum.dendritic.functional.importance import (
    gate_gradient,
    gate_information,
    per_cost,
    random_scores,
    running_mean,
    square_sums,
    times_cost,
    with_dying_rows,
)
from optimum.dendritic.functional.tiles import over_tiles, tiles
from optimum.dendritic.nn import inject_layer

LAYERS = {"linear": lambda: nn.Linear(12, 8), "conv": lambda: nn.Conv2d(12, 8, 3), "conv1d": lambda: Conv1D(8, 12)}


def inputs_of(kind: str) -> torch.Tensor:
    return torch.randn(5, 12, 6, 6) if kind == "conv" else torch.randn(5, 7, 12)


def injected(kind: str, arbors: int, segments: int, activity: bool = False) -> nn.Module:
    layer = LAYERS[kind]()
    nn.init.normal_(layer.weight)
    return inject_layer(layer, arbors, segments, activity)


def forward(kind: str, layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if kind == "conv":
        return F.conv2d(x, weight, layer.bias)
    return F.linear(x, weight.t() if kind == "conv1d" else weight, layer.bias)


@given(st.sampled_from(sorted(LAYERS)), st.sampled_from([1, 2, 8]), st.sampled_from([1, 3, 12]), st.integers(0, 99))
def test_the_product_of_weight_and_gradient_is_the_gradient_of_the_gate(kind, arbors, segments, seed):
    torch.manual_seed(seed)
    layer, x = injected(kind, arbors, segments), inputs_of(kind)
    weight = layer.weight.detach()
    gate = torch.ones(arbors, segments, requires_grad=True)
    gated = torch.empty_like(weight)
    gates = tiles(torch.ones_like(weight), arbors, segments, kind == "conv1d") * over_tiles(torch.ones_like(gate) > 0)
    gates = gates * gate[:, None, :, None, None]
    gated = (tiles(weight, arbors, segments, kind == "conv1d") * gates).flatten(2, 3).flatten(0, 1)
    gated = gated.squeeze(-1).t() if kind == "conv1d" else gated.reshape(weight.shape)
    forward(kind, layer, gated, x).sin().sum().backward()
    layer(x).sin().sum().backward()
    found = gate_gradient(layer.tiles.detach(), layer.as_tiles(layer.weight.grad))
    assert torch.allclose(found, gate.grad, rtol=1e-4, atol=1e-3)


def by_loops(layer: nn.Module, kind: str, measure) -> torch.Tensor:
    """`measure(weight, gradient, inputs)` of every tile, cut out by plain indexing."""
    weight, grad = layer.weight.detach(), layer.weight.grad
    weight, grad = (weight.t(), grad.t()) if kind == "conv1d" else (weight, grad)
    arbors, segments = layer.dendrite_mask.shape
    rows, size = weight.shape[0] // arbors, weight.shape[1] // segments
    scores = torch.zeros(arbors, segments)
    for a in range(arbors):
        for s in range(segments):
            cut = (slice(a * rows, (a + 1) * rows), slice(s * size, (s + 1) * size))
            scores[a, s] = measure(weight[cut], grad[cut], cut[1])
    return scores


RUNNING = {
    "dendritic": lambda w, g, i: (w * g).sum() ** 2,
    "taylor": lambda w, g, i: (w * g).sum().abs(),
    "movement": lambda w, g, i: -(w * g).sum(),
}


def test_every_importance_that_a_config_names_has_its_formula():
    assert formulas.IMPORTANCE.keys() == set(IMPORTANCES)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("importance", RUNNING)
def test_a_running_score_is_the_moving_average_of_its_formula(importance, kind):
    torch.manual_seed(0)
    layer, expected = injected(kind, 2, 3), torch.zeros(2, 3)
    for _ in range(3):
        layer.weight.grad = None
        layer(inputs_of(kind)).sin().sum().backward()
        layer.score_(importance, 0.7)
        expected = 0.7 * expected + 0.3 * by_loops(layer, kind, RUNNING[importance])
    assert torch.allclose(layer.dendrite_score, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", LAYERS)
def test_magnitude_is_the_present_sum_of_squares_and_needs_no_gradient(kind):
    layer = injected(kind, 2, 3)
    layer.dendrite_score.fill_(7)
    layer.score_("magnitude", 0.99)
    layer.weight.grad = torch.zeros_like(layer.weight)
    assert torch.allclose(layer.dendrite_score, by_loops(layer, kind, lambda w, g, i: (w**2).sum()), rtol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_activation_is_weight_times_the_norm_of_its_input(kind):
    torch.manual_seed(0)
    layer, seen = injected(kind, 2, 3, activity=True).train(), torch.zeros(12)
    for _ in range(3):  # steps of two micro-batches, of 5 samples and of 2
        x = inputs_of(kind)
        layer(x)
        layer(x[:2])
        layer.note_activity_(layer.seen)
        x = torch.cat([x, x[:2]])
        squares = x.square().mean((0, 2, 3)) if kind == "conv" else x.square().mean((0, 1))
        seen = 0.9 * seen + 0.1 * squares
    layer(inputs_of(kind))
    layer.mask_()
    layer.note_activity_(layer.seen)  # of a step that was not scored nothing is left
    assert torch.allclose(layer.dendrite_activity, seen, rtol=1e-5)
    layer.eval()(inputs_of(kind))
    layer.note_activity_(layer.seen)
    assert torch.allclose(layer.dendrite_activity, seen, rtol=1e-5), "evaluation is not observed"
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.score_("activation", 0.5)

    def wanda(weight, gradient, columns):
        norms = seen[columns].sqrt().reshape(1, -1, *[1] * (weight.dim() - 2))
        return (weight.abs() * norms).sum()

    assert torch.allclose(layer.dendrite_score, by_loops(layer, kind, wanda), rtol=1e-4)


def test_a_batch_of_nan_spoils_neither_the_activity_nor_the_score():
    layer = injected("linear", 2, 3, activity=True).train()
    layer(torch.randn(4, 12))
    layer.note_activity_(layer.seen)
    before = layer.dendrite_activity.clone()
    layer(torch.full((4, 12), torch.nan))
    layer.note_activity_(layer.seen)
    assert not layer.seen.any() and torch.equal(layer.dendrite_activity, before)
    layer.score_("activation", 0.5)
    assert layer.dendrite_score.isfinite().all() and (layer.dendrite_score > 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("importance", RUNNING)
def test_a_gradient_that_is_not_finite_leaves_its_tile_alone_and_no_other(importance, bad):
    layer = injected("linear", 2, 3)
    layer.weight.grad = torch.randn_like(layer.weight)
    layer.score_(importance, 0.5)
    before = layer.dendrite_score.clone()
    layer.weight.grad[0, 0] = bad
    layer.score_(importance, 0.5)
    changed = layer.dendrite_score != before
    assert not changed[0, 0] and int(changed.sum()) == 5
    assert layer.growth()[0, 0] == 0 and layer.growth().isfinite().all()


@pytest.mark.parametrize("importance", [*RUNNING, "magnitude", "activation"])
def test_scores_are_read_after_the_layer_was_cast_to_half_precision(importance):
    layer = injected("linear", 2, 3, activity=True).train().to(torch.bfloat16)
    layer(torch.randn(4, 12, dtype=torch.bfloat16)).sum().backward()
    layer.note_activity_(layer.seen)
    layer.score_(importance, 0.5)
    assert (layer.dendrite_score != 0).all()


def test_tiny_half_precision_gradients_do_not_vanish_from_the_score():
    layer = injected("linear", 1, 1).to(torch.float16)
    layer.weight.data.fill_(1e-2)
    layer.weight.grad = torch.full_like(layer.weight, 1e-6)
    assert gate_gradient(layer.tiles.detach(), layer.as_tiles(layer.weight.grad)).item() == pytest.approx(
        96e-8, rel=0.1
    )
    assert layer.growth().item() == pytest.approx(96e-12, rel=0.2)


def test_a_layer_without_gradient_keeps_its_score():
    layer = injected("linear", 2, 3)
    layer.dendrite_score.fill_(3)
    layer.score_("dendritic", 0.5)
    assert (layer.dendrite_score == 3).all() and (layer.growth() == 0).all()


def test_random_scores_depend_on_the_seed_and_the_name_alone():
    torch.manual_seed(1)
    first = random_scores(2, 8, 0, "a")
    torch.manual_seed(2)
    assert torch.equal(first, random_scores(2, 8, 0, "a"))
    assert not torch.equal(first, random_scores(2, 8, 1, "a"))
    assert not torch.equal(first, random_scores(2, 8, 0, "b"))


def test_what_was_seen_finds_a_layer_that_was_made_on_the_meta_device():
    with torch.device("meta"):
        layer = injected("linear", 2, 3, activity=True)
    layer = layer.to_empty(device="cpu").train()
    layer.dendrite_activity.zero_()
    assert not layer.seen_here().any()
    layer(torch.ones(4, 12))
    assert layer.seen_here().tolist() == [4.0] * 13


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 12), st.integers(0, 99))
def test_a_segment_bears_the_norms_of_the_rows_that_die_with_it(arbors, segments, rows, seed):
    score, norms = drawn(seed, arbors, segments), drawn(seed + 1, rows).square()
    reached = torch.randint(-1, segments, (rows,), generator=torch.Generator().manual_seed(seed))
    expected = score.clone()
    for norm, segment in zip(norms, reached.tolist(), strict=True):
        if segment >= 0:
            expected[:, segment] += norm / arbors
    found = with_dying_rows(score, norms, reached)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose((found - score).sum(), norms[reached >= 0].sum(), atol=1e-4), "nothing is lost among arbors"


@given(st.floats(0, 1), st.integers(0, 99))
def test_a_running_mean_lies_between_what_it_was_and_what_it_reads(decay, seed):
    mean, reading = drawn(seed, 5), drawn(seed + 1, 5)
    found = running_mean(mean, reading, decay)
    assert torch.allclose(found, decay * mean + (1 - decay) * reading, atol=1e-6)
    reading[2], mean_before = torch.nan, mean.clone()
    assert running_mean(mean, reading, decay)[2] == mean[2] and torch.equal(mean, mean_before)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_square_sums_leave_the_axis_of_the_inputs_alone(axis):
    x = drawn(0, 3, 4, 5)
    expected = torch.stack([part.square().sum() for part in x.movedim(axis, 0)])
    assert torch.allclose(square_sums(x, axis), expected)


def test_a_score_times_its_cost_is_ranked_by_its_mean_over_the_arbors():
    score = drawn(0, 3, 6)
    ranked = per_cost(times_cost(score, 7.0).sum(0), 7.0)
    assert torch.allclose(ranked, score.mean(0))


def test_the_information_of_a_gate_is_that_of_its_sum_and_not_the_sum_of_its_parts():
    weight, gradient = drawn(0, 1, 1, 1, 6, 1), drawn(1, 1, 1, 1, 6, 1)
    whole = gate_information(gate_gradient(weight, gradient))
    parts = [gate_gradient(w, g) for w, g in zip(weight.split(2, 3), gradient.split(2, 3), strict=True)]
    assert torch.allclose(gate_information(torch.stack(parts).sum(0)), whole)
    assert not torch.allclose(torch.stack([gate_information(part) for part in parts]).sum(0), whole)


def test_every_formula_has_a_numeric_example():
    functions = [f for _, f in inspect.getmembers(formulas, inspect.isfunction) if f.__module__ == formulas.__name__]
    assert len(functions) >= 12 and all(">>> " in str(function.__doc__) for function in functions)
