"""A verb that is interrupted at any of its tensor operations leaves the model, the optimizer and the process alone."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from helpers.compare import every

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "benchmarks"))

from harness.interruptions import CASES, Interrupted, everything, interrupt, interrupted, try_verb  # noqa: E402
from harness.subjects import SUBJECTS, inputs_of  # noqa: E402

from optimum.dendritic import mask_  # noqa: E402

INTERRUPTIONS = int(os.environ.get("INTERRUPTIONS", "30"))


@pytest.mark.slow
def test_at_random_operations_of_every_verb(tmp_path):
    assert {verb for verb, _ in CASES} == {"inject_", "score_", "update_", "prune_", "compress_", "loading"}
    counts, said = {}, []
    outcomes = [
        interrupt(0, tmp_path, counts, index, lambda verb, what: said.append(f"{verb} of {what}"))
        for index in range(INTERRUPTIONS)
    ]
    wrong = {what: found for what, found in zip(said, outcomes, strict=True) if found not in ("as it was", "went on")}
    assert not wrong
    assert outcomes.count("as it was") > INTERRUPTIONS / 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sprouts", "lstm"])
@pytest.mark.parametrize("verb", ["score_", "update_"])
def test_at_operations_all_over_the_steps_of_a_training(verb, kind):
    _, count = try_verb(verb, kind, None, Interrupted)
    points = [max(1, count * part // 6) for part in range(1, 7)]
    assert every(try_verb(verb, kind, at, Interrupted)[0] == "as it was" for at in points)


def test_masking_that_was_interrupted_is_done_by_the_next():
    """It overwrites only what is pruned, so nothing is lost, and a copy of all weights in every step is saved."""
    model, optimizer = SUBJECTS["bert"].trained()
    whole, part = copy.deepcopy(model), copy.deepcopy(model)
    for twin in (whole, part):
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.1)
    mask_(whole)
    with interrupted(12, Interrupted) as mode:
        mask_(part)
    assert mode.reached
    mask_(part)
    assert every(torch.equal(tensor, part.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_comparison_sees_a_bit_a_hook_and_a_moment():
    model, optimizer = SUBJECTS["bert"].trained()
    before = everything(model, optimizer)
    assert everything(model, optimizer) == before
    with torch.no_grad():
        model.classifier.weight.neg_()
    after = everything(model, optimizer)
    assert [key for key in before if before[key] != after[key]] == ["classifier.weight"]
    model.classifier.register_forward_hook(lambda *args: None)
    next(iter(optimizer.state.values()))["exp_avg"].zero_()
    changed = {key for key, value in everything(model, optimizer).items() if value != after[key]}
    assert changed == {"classifier hooks", "optimizer 0"}


def test_a_step_that_ends_is_what_it_was():
    """What is noted is not what is computed: a step without an interruption prunes as before."""
    model, optimizer = SUBJECTS["bert"].trained()
    optimizer.step()
    mask_(model)
    layer = model.bert.encoder.layer[0].output.dense
    assert 0 < layer.dendrite_mask.sum() < layer.dendrite_mask.numel()
    assert not layer.tiles.transpose(1, 2)[~layer.dendrite_mask].any()
    assert model(**inputs_of(model)).loss.isfinite()
