"""The tables of the peers: what needs no peer's package runs on tiny inputs, and a card follows from its runs."""

import ast
import doctest
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "benchmarks"))

import peer_tables  # noqa: E402
from peers import card, environments, registry  # noqa: E402

LEVEL = 0.8


@pytest.mark.parametrize("module", [card, environments])
def test_the_examples_in_the_docstrings_hold(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_every_method_says_how_it_compresses_saves_and_loads():
    for name in registry.ALL:
        functions = {
            node.name: [argument.arg for argument in node.args.args]
            for node in ast.parse((registry.METHODS / f"{name}.py").read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert functions["compress"] == ["model", "job"]
        assert functions["save"] == ["model", "folder"] and functions["load"] == ["folder", "base"]
    files = {path.stem for path in registry.METHODS.glob("*.py")} - {"__init__"}
    assert files == set(registry.ALL)


def test_lines_are_counted_without_words(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "METHODS", tmp_path)
    text = '"""Words\nof two lines."""\n\n# a comment\nimport torch\n\n\ndef act(x):\n    """Words."""\n    return x\n'
    (tmp_path / "short.py").write_text(text)
    assert card.lines_of("short") == 3


def test_an_environment_has_one_peer():
    for method in registry.ALL.values():
        if method.package:
            first, rest = environments.commands(method.package)
            assert first == [environments.TORCH] and method.package in rest
            assert sum("==" in word for word in rest if not word.startswith("torchprofile")) == 1
    with pytest.raises(ValueError, match="--environments is None"):
        environments.install(None, list(registry.ALL))


def run(task: str, level: float, seed: int, method: str, hits: str, **changes) -> dict:
    versions = {"torch": "2", "transformers": "5"}
    made = {
        "method": method,
        "level": level,
        "seed": seed,
        "recipe": {"epochs1": 1, "max_steps": None},
        "score": hits.count("1") / len(hits),
        "examples": hits,
        "parameters": 100,
        "macs": 1000,
        "nonzero": 50,
        "bytes": 40,
        "dense_bytes": 80,
        "train_cpu_seconds": 90,
        "environment": {"device": "a CPU", "threads": 1, "versions": versions},
    }
    return made | changes


def test_a_card_says_at_which_batch_a_peer_is_faster():
    def row(method: str, times: dict[str, float]) -> card.Row:
        costs = {"parameters": 1, "macs": 1, "nonzero": None, "bytes": 1.0, "bytes_ratio": 0.5, "cpu_minutes": 1.0}
        about = {"task": "resnet20", "method": method, "label": method, "level": 0.5, "scores": {0: 87.0}}
        return card.Row(**about, **costs, times=times, reloads={}, lines=None)

    ours = row(registry.OWN, {"latency_ms_batch_1": 0.8, "latency_ms_batch_64": 0.7})
    peer = row("torch_pruning_taylor", {"latency_ms_batch_1": 0.79, "latency_ms_batch_64": 0.5})
    (sentence,) = card.findings([ours, peer])
    assert "is faster than ours** at batch 64: 0.500 of dense's time, where ours takes 0.700." in sentence


def test_a_card_sets_ours_beside_the_peers_and_says_who_is_better(tmp_path):
    better, ours, worse = "1" * 190 + "0" * 10, "1" * 150 + "0" * 50, "1" * 60 + "0" * 140
    runs = {"dendritic": ours, "torch_pruning_taylor": better, "torch_pruning_magnitude": worse}
    runs |= {"torch_pruning_group_norm": ours, "magnitude": ours}
    folder = tmp_path / "resnet20"
    folder.mkdir()
    for method, hits in runs.items():
        for seed in (0, 1):
            made = run("resnet20", 0.5, seed, method, hits)
            (folder / f"{method}-0.5-seed{seed}.json").write_text(json.dumps(made))
    (folder / "dense-0-seed0.json").write_text(json.dumps(run("resnet20", 0.0, 0, "dense", ours)))
    where = {"method": "torch_pruning_taylor", "level": 0.5, "seed": 0}
    ways = {"own": "", "pickle": "", "from_pretrained": "RuntimeError: sizes | differ"}
    (folder / "torch_pruning_taylor-0.5-seed0.reload.json").write_text(json.dumps(where | {"ways": ways}))
    ratios = {"ratios": {"bytes": 0.5, "latency_ms_batch_1": 0.625}}
    (folder / "torch_pruning_taylor-0.5-seed0.time.json").write_text(json.dumps(where | ratios))
    path = tmp_path / "cards" / "peers.md"
    peer_tables.main(["render", "--runs", str(tmp_path), "--card", str(path)])
    text, rows = path.read_text(), json.loads(path.with_suffix(".json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["dense", "dendritic", "magnitude", *list(runs)[2:0:-1], *list(runs)[3:4]]
    assert "torch-pruning, Taylor **is better than ours** (+20.00 points" in text
    assert "torch-pruning, group magnitude is worse than ours (-45.00 points" in text
    assert "GroupNorm (shrinkage) is not separable from ours" in text
    assert "| yes | no: RuntimeError: sizes / differ | yes | not tried |" in text
    taylor = next(line for line in text.splitlines() if line.startswith("| torch-pruning, Taylor |"))
    for shown in ("95.00 ± 0.00", "0: 95.00, 1: 95.00", "-20.00 points", "40 (0.500)", "0.625", "1.5"):
        assert f"| {shown}" in taylor
    for name in registry.WORDS:
        assert f"**{name}**" in text


@pytest.fixture
def words(tmp_path) -> list[str]:
    """The options of a trial with the images of a table that is there."""
    data = tmp_path / "table" / "data"
    data.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 64), ("validation", 100)):
        np.save(data / f"{name}-images.npy", generator.integers(256, size=(count, 1, 28, 28), dtype=np.uint8))
        np.save(data / f"{name}-labels.npy", np.arange(count) % 10)
    options = ["--table", tmp_path / "table", "--runs", tmp_path / "runs", "--max_steps", 2, "--batch_size", 16]
    options += ["--seconds", 0.02, "--large_batch", 2, "--seeds", 0, "--methods", "dense", "dendritic"]
    return ["mnist", *map(str, options)]


@pytest.mark.slow
def test_a_peer_is_run_saved_reloaded_and_timed(tmp_path, words):
    folder = tmp_path / "runs" / "mnist"
    for name in ("torch_l1_unstructured", "torch_ln_structured", "dendritic"):
        peer_tables.main(["one", *words, "--peers", name, "--levels", str(LEVEL)])
    made = {path.stem.partition("-")[0]: json.loads(path.read_text()) for path in folder.glob("*.json")}
    dense = made["torch_l1_unstructured"]["parameters"]
    assert made["torch_l1_unstructured"]["nonzero"] == pytest.approx((1 - LEVEL) * dense, rel=0.01)
    assert made["torch_ln_structured"]["nonzero"] < dense and made["torch_ln_structured"]["macs"] > 0
    assert made["dendritic"]["parameters"] <= (1 - LEVEL) * dense + 0.001 * dense
    assert made["dendritic"]["bytes"] < 0.3 * made["dendritic"]["dense_bytes"]
    before = (folder / "dendritic-0.8-seed0.json").stat().st_mtime_ns
    peer_tables.main(["one", *words, "--peers", "dendritic", "--levels", str(LEVEL)])
    assert (folder / "dendritic-0.8-seed0.json").stat().st_mtime_ns == before
    for phase in ("own-way", "stock-ways", "timed"):
        peer_tables.main([phase, *words, "--peers", "torch_ln_structured"])
    ways = json.loads((folder / "torch_ln_structured-0.8-seed0.reload.json").read_text())["ways"]
    pickled = torch.load(folder / "torch_ln_structured-0.8-seed0/pickle.pt", weights_only=False)
    assert "forward" not in vars(pickled), "the autocast of the training is around the model"
    assert ways == dict.fromkeys(("own", "from_pretrained", "state dict", "pickle"), "")
    times = json.loads((folder / "torch_ln_structured-0.8-seed0.time.json").read_text())["ratios"]
    assert {"latency_ms_batch_1", "latency_ms_batch_2"} <= times.keys()
    with pytest.raises(ValueError, match="choose another"):
        peer_tables.main(["one", *words, "--peers", "dendritic", "--levels", str(LEVEL), "--epochs1", "9"])


@pytest.mark.slow
def test_our_own_runs_are_taken_from_their_table(tmp_path, words):
    from harness import training
    from harness.runs import Run
    from mnist import Mnist

    args = peer_tables.parsed(["take", *words])
    args.output_dir = args.table
    task = Mnist(args)
    for found in (Run("base", 0.0, 0), Run("dendritic", LEVEL, 0)):
        training.ensure(task, found, args.table)
    peer_tables.main(["take", *words])
    folder = tmp_path / "runs" / "mnist"
    assert sorted(path.stem for path in folder.glob("*.json")) == ["base-0-seed0", "dendritic-0.8-seed0"]
    for phase in ("stock-ways", "timed"):
        peer_tables.main([phase, *words, "--peers", "dendritic"])
    ways = json.loads((folder / "dendritic-0.8-seed0.reload.json").read_text())["ways"]
    assert ways["from_pretrained"] == "" and "RuntimeError" in ways["state dict"]
