"""Every test runs with the annotations checked, shapes too; hypothesis draws the same examples every time, unless
`--hypothesis-profile=fuzz` asks for new ones, and many."""

import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterator

import pytest
from helpers import typechecker
from hub.client import Client, start
from hub.server import ALICE, BOB, READ_ONLY, Hub
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

BY_HAND = {
    "config",
    "config_checks",
    "config_forms",
    "layout",
}  # they check what users and files hand in and refuse it with our own error
COPIED = {"metrics"}  # evaluate copies methods and adds to their docstrings, which a checked method does not carry

package = importlib.util.find_spec("optimum.dendritic")  # found, not imported: the hook must come first
assert package is not None
names = [m.name for m in pkgutil.iter_modules(package.submodule_search_locations) if m.name not in BY_HAND | COPIED]
install_import_hook([f"optimum.dendritic.{name}" for name in names], f"{typechecker.__name__}.check")

os.environ.setdefault("MKL_CBWR", "COMPATIBLE")  # or products round by where in memory a loaded weight lies

import torch  # noqa: E402
from optimum.commands.optimum_cli import main  # noqa: E402

torch.set_num_threads(1)
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=30,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("fuzz", settings.get_profile("repeatable"), derandomize=False, max_examples=3000)
settings.load_profile("repeatable")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases the fuzzers tried."""
    passed = terminalreporter.getreports("passed")
    cases = sum(value for report in passed for name, value in report.user_properties if name == "cases")
    if cases:
        terminalreporter.write_line(f"{cases} fuzzed cases")


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run `optimum-cli` in this process, in a folder of its own: arguments -> (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            code = stop.code
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def session_hub() -> Iterator[Hub]:
    with Hub({ALICE: "alice", READ_ONLY: "alice", BOB: "bob"}, read_only=(READ_ONLY,)) as hub:
        yield hub


@pytest.fixture
def hub(session_hub: Hub) -> Hub:
    """The local Hub of alice and bob, empty and without faults."""
    session_hub.reset()
    return session_hub


@pytest.fixture(scope="session")
def client(session_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A process that may import everything and is not logged in; it sends large files by LFS."""
    with start(session_hub.url, tmp_path_factory.mktemp("home"), HF_HUB_DISABLE_XET="1") as process:
        yield process
