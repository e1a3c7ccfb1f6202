"""Schedules, and the numeric examples in the docstrings of every module."""

import doctest
import importlib
import pkgutil

import pytest
from helpers.compare import every
from hypothesis import assume, given
from hypothesis import strategies as st

import optimum.dendritic
from optimum.dendritic import DendriticConfig, DendriticError
from optimum.dendritic.schedules import SCHEDULES, cosine_decay, update_steps
from optimum.dendritic.train_steps import update_plan

MODULES = [m.name for m in pkgutil.walk_packages(optimum.dendritic.__path__, "optimum.dendritic.")]
fractions = st.floats(0, 1)
ramps = st.tuples(fractions, fractions).filter(lambda pair: pair[1] - pair[0] > 1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_doctests_are_found_behind_the_type_checker():
    assert doctest.testmod(optimum.dendritic.schedules).attempted >= 8


@given(st.sampled_from(sorted(SCHEDULES)), fractions, ramps, st.lists(fractions, min_size=2))
def test_sparsity_climbs_from_zero_to_final(kind, final, ramp, progress):
    start, end = ramp
    sparsity = SCHEDULES[kind](final, start, end)
    values = [sparsity(p) for p in sorted(progress)]
    assert every(low <= high + 1e-12 for low, high in zip(values, values[1:], strict=False))
    assert sparsity(start) == 0.0 and sparsity(0.0) == 0.0
    assert sparsity(end) == final and sparsity(1.0) == final


def test_the_cubic_schedule_is_its_formula():
    sparsity = SCHEDULES["cubic"](0.8, 0.1, 0.6)
    for progress in (0.2, 0.35, 0.5):
        assert sparsity(progress) == pytest.approx(0.8 * (1 - (1 - (progress - 0.1) / 0.5) ** 3))


@given(fractions, ramps, st.lists(fractions, min_size=2))
def test_the_regrown_fraction_falls_to_zero(initial, ramp, progress):
    regrow = cosine_decay(initial, *ramp)
    values = [regrow(p) for p in sorted(progress)]
    assert every(high + 1e-12 >= low for high, low in zip(values, values[1:], strict=False))
    assert regrow(0.0) == pytest.approx(initial) and regrow(1.0) == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 10_000), ramps, st.integers(1, 100))
def test_update_steps_ascend_inside_the_ramp_and_end_with_it(max_steps, ramp, updates):
    start, end = ramp
    steps = update_steps(max_steps, start, end, updates)
    assert list(steps) == sorted(set(steps)) and len(steps) <= updates
    assert all(start * max_steps - 1 < step <= end * max_steps and step >= 1 for step in steps)
    if int(end * max_steps) > int(start * max_steps):
        assert steps[-1] == int(end * max_steps)


@given(st.integers(1, 500), ramps, st.integers(1, 60), st.sampled_from(sorted(SCHEDULES)), st.floats(0, 0.99))
def test_a_plan_ends_exactly_at_the_sparsity_that_was_asked_for(max_steps, ramp, updates, schedule, sparsity):
    start, end = ramp
    assume(start < 1 and int(end * max_steps) > int(start * max_steps))
    config = DendriticConfig(sparsity=sparsity, start=start, end=end, updates=updates, schedule=schedule)
    *_, last = update_plan(config, max_steps).values()
    assert last.sparsity == sparsity and last.regrow == pytest.approx(0, abs=1e-12)


def test_a_training_without_room_for_an_update_is_refused():
    with pytest.raises(DendriticError, match="max_steps = 1"):
        update_plan(DendriticConfig(), 1)
