"""Regular expressions and values of a hostile config end in one short error of the package's own, and soon."""

import time

import pytest
from helpers.models import build

from optimum.dendritic import DendriticConfig, DendriticError, inject_
from optimum.dendritic.errors import LONGEST, invalid
from optimum.dendritic.layout.strict_json import bad
from optimum.dendritic.structure import targets


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 450 + ")" * 450, "(" * 5000, "a" * 10**6, "(?P<a>"])
def test_expressions_that_are_none(field, pattern):
    with pytest.raises(DendriticError, match=f"{field} = ") as error:
        inject_(build("bert")[0], DendriticConfig(**{field: pattern}))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "pattern", [r"(.*)*(.*)*(.*)*(.*)*(.*)*x", r"((\w+\.?)+)+!", r"(.*.*.*.*.*.*.*.*.*)=", r"(\w|\w\w|.)+\d!"]
)
def test_expressions_that_take_for_ever(monkeypatch, pattern):
    monkeypatch.setattr(targets, "SECONDS", 0.3)
    start = time.process_time()
    with pytest.raises(DendriticError, match="target_modules = .*(cannot be matched in|matches no)"):
        inject_(build("bert")[0], DendriticConfig(target_modules=pattern))
    assert time.process_time() - start < 10


def test_values_are_cut():
    for error in (invalid("a" * 10**6, "b" * 10**6, "rule", "remedy"), bad("a" * 10**6, ["b"] * 10**6, "rule")):
        assert len(str(error)) < 2 * LONGEST + 200 and "…" in str(error)
