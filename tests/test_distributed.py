"""Several processes: every rank has the same masks at every update, and the model is the one that one process makes."""

import json
from pathlib import Path

import pytest
import torch
from helpers.compare import every
from helpers.ranks import CASES, STEPS, Case, launch, run
from safetensors.torch import load_file
from torch import Tensor

GROUP = pytest.mark.xdist_group("distributed")  # one worker, or each would start the processes anew
pytestmark = [pytest.mark.slow, GROUP]
AGREEMENT = "agreement"
ON_TWO = list(CASES)
ON_FOUR = ["plain", "activation"]
Ranks = dict[str, list[dict[str, Tensor]]]


def ranks(processes: int, names: list[str], folder: Path) -> tuple[Ranks, str]:
    """What each rank wrote, case by case, and what they said."""
    said = launch(processes, "-m", "helpers.ranks", str(folder), *names, cwd=folder).stderr
    who = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    assert [one["rank"] for one in who] == list(range(processes))
    assert {one["world"] for one in who} == {processes} and len({one["pid"] for one in who}) == processes
    files = {name: [folder / f"{name} {rank}.safetensors" for rank in range(processes)] for name in [AGREEMENT, *names]}
    return {name: [load_file(file) for file in found] for name, found in files.items()}, said


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Ranks, str]:
    return ranks(2, ON_TWO, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> tuple[Ranks, str]:
    return ranks(4, ON_FOUR, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    names = [name for name in CASES if CASES[name].exact]
    return {name: run(CASES[name], str(tmp_path_factory.mktemp("alone")), world=1) for name in names}


def assert_every_rank_is_the_same(found: list[dict[str, Tensor]]) -> None:
    """Bit for bit, NaN included."""
    first, *others = found
    assert first and others
    for other in others:
        assert first.keys() == other.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor.flatten().view(torch.uint8), other[name].flatten().view(torch.uint8)), name


def assert_updates_are_sound(found: dict[str, Tensor]) -> None:
    masks = {name: tensor for name, tensor in found.items() if "/mask/" in name}
    scores = [tensor for name, tensor in found.items() if "/score/" in name]
    assert len({name.split("/")[0] for name in masks}) >= 4, "updates"
    assert every(score.isfinite().all() for score in scores)
    assert not all(mask.all() for mask in masks.values())


def assert_same_as_alone(found: dict[str, Tensor], alone: dict[str, Tensor], case: Case) -> None:
    """Masks and indices equal, everything else close."""
    assert found.keys() == alone.keys()
    for name, tensor in alone.items():
        if tensor.is_floating_point():
            close = {"rtol": case.relative, "atol": case.absolute}
            torch.testing.assert_close(found[name], tensor, **close, msg=lambda m, name=name: f"{name}: {m}")
        else:
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ON_TWO)
def test_two_ranks_have_the_same_masks_scores_and_model(two, name):
    assert_every_rank_is_the_same(two[0][name])
    assert_updates_are_sound(two[0][name][0])


@pytest.mark.parametrize("name", [name for name in ON_TWO if CASES[name].exact])
def test_two_ranks_make_the_model_that_one_process_makes(two, alone, name):
    assert_same_as_alone(two[0][name][0], alone[name], CASES[name])


@pytest.mark.parametrize("name", ON_FOUR)
def test_four_ranks_do_too(four, alone, name):
    assert_every_rank_is_the_same(four[0][name])
    assert_same_as_alone(four[0][name][0], alone[name], CASES[name])


def test_a_bad_sample_is_skipped_on_every_rank_and_every_rank_warns_once(two):
    skipped = {name for name in two[0]["a bad sample, skipped"][0] if name.endswith("/skipped")}
    assert 0 < len(skipped) < STEPS
    assert two[1].count("such a step is not scored") == 2


@pytest.mark.parametrize("processes", [2, 4])
def test_ranks_agree(processes, two, four):
    found = (two if processes == 2 else four)[0][AGREEMENT]
    mean = sum(range(processes)) / processes
    for rank, tensors in enumerate(found):
        assert (tensors["first"] == rank).all(), "left alone"
        assert (tensors["mean/first"] == mean).all() and tensors["mean/first"].shape == (2, 3)
        assert torch.equal(tensors["mean/second"], torch.arange(4.0) * mean) and not tensors["mean/empty"].numel()
        assert tensors["owned/0"].all() and tensors["owned/1"] == 0 and (tensors["owned/2"] == 0).all()
