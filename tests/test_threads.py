"""What a process has once for all of its threads is afterwards as it was, however many threads change it at a time."""

import ast
import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from helpers.compare import every
from helpers.models import build
from transformers.utils import logging

import optimum.dendritic
from optimum.dendritic import DendriticConfig, inject_, measure
from optimum.dendritic.state import layout_of

THREADS = 8
HOUSE = Path(optimum.dendritic.__file__).parent
SETTERS = {"sdpa_kernel", "fork_rng", "set_fastpath_enabled", "redirect_stdout", "redirect_stderr", "simplefilter"}
SETTERS |= {"enable_flash_sdp", "enable_math_sdp", "enable_mem_efficient_sdp", "enable_cudnn_sdp", "set_rng_state"}
SETTERS |= {"set_default_dtype", "set_default_device", "use_deterministic_algorithms", "chdir"}
SETTERS |= {"set_float32_matmul_precision", "set_flush_denormal", "setrecursionlimit", "filterwarnings"}


def switches() -> dict[str, object]:
    """What belongs to the process."""
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "cudnn attention": cuda.cudnn_sdp_enabled(),
        "cudnn": torch.backends.cudnn.enabled,
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "random state": torch.get_rng_state().tolist(),
        "verbosity": logging.get_verbosity(),
        "threads": torch.get_num_threads(),
        "init": [torch.nn.init.normal_, torch.nn.init.zeros_, torch.nn.init.kaiming_uniform_],
    }


@pytest.fixture
def eager():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.parametrize("native", [False, True])
def test_injecting_in_eight_threads_at_once(eager, native):
    model, inputs = build("bert")
    config = DendriticConfig(sparsity=0.3, native=native)
    expected = layout_of(inject_(copy.deepcopy(model), config, example_inputs=inputs))
    copies, start = [copy.deepcopy(model) for _ in range(THREADS)], Barrier(THREADS)

    def inject(own):
        start.wait()
        return layout_of(inject_(own, config, example_inputs=inputs))

    before = switches()
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(inject, copies))
    assert switches() == before
    assert every(layout == expected for layout in found)


def test_a_forward_pass_that_raises_in_one_thread_ends_nothing_for_the_others(eager):
    model, inputs = build("bert")
    copies, start = [copy.deepcopy(model) for _ in range(THREADS)], Barrier(THREADS)

    def fail(*args):
        raise KeyboardInterrupt

    for own in copies[::2]:
        own.classifier.register_forward_pre_hook(fail)

    def inject(own):
        start.wait()
        try:
            inject_(own, DendriticConfig(sparsity=0.3), example_inputs=inputs)
        except KeyboardInterrupt:
            return None
        return layout_of(own)

    before = switches()
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(inject, copies))
    assert switches() == before
    assert found[::2] == [None] * (THREADS // 2) and None not in found[1::2]


def test_measuring_in_two_threads(eager):
    model, inputs = build("bert")
    before = switches()

    def look(own):
        return measure(own, inputs, large_batch=2, seconds=0.01, threads=1, memory=False).macs

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(look, [copy.deepcopy(model) for _ in range(2)]))
    assert switches() == before and found[0] == found[1] > 0


def called(file: Path) -> set[str]:
    """The last name of everything that a file calls."""
    functions = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return {
        f.attr if isinstance(f, ast.Attribute) else f.id for f in functions if isinstance(f, ast.Attribute | ast.Name)
    }


def test_only_one_place_changes_what_belongs_to_the_process():
    """Besides a command, which has its process for itself."""
    assert "sdpa_kernel" in called(HOUSE / "process_state.py") and "set_verbosity" in called(
        HOUSE / "stock_config/fields.py"
    )
    found = {str(file.relative_to(HOUSE)): sorted(called(file) & SETTERS) for file in sorted(HOUSE.rglob("*.py"))}
    assert {file for file, names in found.items() if names} == {"process_state.py", "cli/noise.py"}
