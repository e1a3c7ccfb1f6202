"""The tests' own house: what they share is in `helpers`, and none of them imports another."""

import ast
import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def imported(file: Path) -> set[str]:
    """The top-level modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module is not None}
    return {name.split(".")[0] for name in whole | parts}


def test_no_test_imports_another():
    tests = {file.stem for file in TESTS.glob("test_*.py")}
    files = list(TESTS.rglob("*.py"))
    assert len(tests) > 50 and any("helpers" in imported(file) for file in files)
    found = {str(file.relative_to(TESTS)): sorted(imported(file) & (tests | {"conftest"})) for file in files}
    assert not {file: names for file, names in found.items() if names}


def test_beside_the_tests_there_are_only_folders():
    assert {file.name for file in TESTS.glob("*.py") if not file.name.startswith("test_")} == {"conftest.py"}


@pytest.mark.xdist_group("house")
def test_the_tests_of_a_group_go_to_one_worker(request):
    """pytest-xdist tells them by the ends of their names, which a pytest that is too new for it does not change."""
    assert request.node.nodeid.endswith("@house") or "PYTEST_XDIST_WORKER" not in os.environ
