"""DeepSpeed ZeRO 1 and 2: on two processes, training makes the masks and the model that DDP makes."""

from typing import Any

import pytest
import torch
from helpers.compare import every
from helpers.pairs import on_two
from helpers.zero import CASES, SAVED, STEPS

from optimum.dendritic import DendriticConfig, update_plan

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed, and ZeRO is NOT TESTED: pip install deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("zero")]


@pytest.fixture(scope="module", params=[1, 2], ids="stage {}".format)
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    return on_two("helpers.zero", tmp_path_factory.mktemp("zero"), str(request.param))


@pytest.fixture(scope="module")
def ddp(tmp_path_factory) -> dict[str, Any]:
    return on_two("helpers.zero", tmp_path_factory.mktemp("ddp"), "0")[0]


def assert_same_masks(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> None:
    assert len(left) == len(right) > 0
    for step, (one, other) in enumerate(zip(left, right, strict=True), 1):
        assert one.keys() == other.keys()
        assert every(torch.equal(mask, other[name]) for name, mask in one.items()), f"step {step}"


def test_it_is_deepspeed_that_trains(ranks, request):
    stage = request.node.callspec.params["ranks"]
    for found in ranks:
        assert found["engine"] == ("DeepSpeedEngine", "DeepSpeedZeroOptimizer") and found["stage"] == stage


@pytest.mark.parametrize("case", CASES)
def test_masks_and_packed_model_are_those_of_ddp(ranks, ddp, case):
    for found in (rank[case] for rank in ranks):
        assert_same_masks(found["masks"], ddp[case]["masks"])
        assert found["packed"] and found["zero"]
        assert found["tensors"].keys() == ddp[case]["tensors"].keys()
        for name, tensor in ddp[case]["tensors"].items():
            torch.testing.assert_close(found["tensors"][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_case_prunes_and_has_what_its_name_says(ddp, case):
    masks = ddp[case]["masks"]
    assert len(masks) == STEPS and any(not mask.all() for mask in masks[-1].values())
    back = any((b & ~a[name]).any() for a, b in zip(masks, masks[1:], strict=False) for name, b in b.items())
    assert back or case != "regrown and clipped"
    assert any("sprout" in name for name in ddp[case]["tensors"]) == (case == "sprouts")


def test_gradients_are_gathered_only_in_steps_that_score_or_update(ranks):
    """The mask is final at 60 % of the steps; beside a teacher every second step before it scores, and 5 update."""
    last = int(0.6 * STEPS)
    for found in ranks:
        layers = len(found["plain"]["masks"][0])
        assert found["plain"]["gathered"] == [layers] * last + [0] * (STEPS - last)
        updates = update_plan(DendriticConfig(updates=5), STEPS)
        taught = [layers * (step % 2 == 1 and step <= last or step in updates) for step in range(1, STEPS + 1)]
        assert found["taught"]["gathered"] == taught


def test_a_resumed_training_ends_with_the_same_bits(ranks):
    for found in ranks:
        through, resumed = found["regrown and clipped"], found["resumed"]
        assert_same_masks(through["masks"][SAVED:], resumed["masks"])
        assert every(torch.equal(tensor, resumed["tensors"][name]) for name, tensor in through["tensors"].items())


def test_under_bf16_pruned_is_zero_in_the_weights_that_the_model_computes_with_and_ranks_agree(ranks):
    first, second = (found["bf16"] for found in ranks)
    assert first["zero"] and second["zero"] and first["packed"]
    assert_same_masks(first["masks"], second["masks"])
    assert first["tensors"]["classifier.weight"].dtype == torch.bfloat16


def test_what_is_saved_answers_as_what_was_trained(ranks):
    for found in ranks:
        torch.testing.assert_close(*found["answers"])
