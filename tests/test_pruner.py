"""`Pruner`: the same as the plain functions in their order, and no other order."""

import copy

import pytest
import torch
from helpers.compare import assert_same
from helpers.families_training import train
from helpers.models import build, outputs
from helpers.trainers import tensors
from torch import nn

from optimum.dendritic import DendriticConfig, DendriticError, Pruner, compress_, inject_, update_plan
from optimum.dendritic.state import layout_of

CONFIG = DendriticConfig(sparsity=0.5, segment_size=4, updates=3)
STEPS = 10


def made(steps: int = STEPS, config: DendriticConfig = CONFIG):
    model, inputs = build("bert")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = Pruner(model, config, steps=steps, optimizer=optimizer, example_inputs=inputs)
    return pruner, model, optimizer, inputs | {"labels": torch.tensor([0, 1])}


def steps(pruner: Pruner, optimizer: torch.optim.Optimizer, batch, count: int) -> None:
    for _ in range(count):
        pruner.model(**batch).loss.backward()
        pruner.before_step()
        optimizer.step()
        pruner.after_step()
        optimizer.zero_grad()


def batches(batch):
    while True:
        yield batch


def test_is_the_loop_of_plain_functions():
    pruner, model, optimizer, batch = made()
    plain, inputs = build("bert")
    inject_(plain, CONFIG, example_inputs=inputs)
    torch.manual_seed(0)
    steps(pruner, optimizer, batch, STEPS)
    torch.manual_seed(0)
    train(plain, batches(batch), STEPS, CONFIG)
    assert pruner.is_final and pruner.pruning.sparsity >= 0.5
    scores = {name for name in tensors(plain) if name.endswith("dendrite_score")}  # the loop scores after the end, too
    both = [{n: t for n, t in tensors(m).items() if n not in scores} for m in (model, plain)]
    assert_same(*both)
    expected = outputs(model.eval(), inputs)
    assert pruner.pack() is model and layout_of(model).packed
    assert torch.allclose(outputs(model, inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one():
    whole, parts = made(), made()
    torch.manual_seed(0)
    steps(whole[0], whole[2], whole[3], STEPS)
    torch.manual_seed(0)
    steps(parts[0], parts[2], parts[3], 5)
    state = parts[0].state_dict(), copy.deepcopy(parts[1].state_dict()), copy.deepcopy(parts[2].state_dict())
    pruner, model, optimizer, batch = made()
    pruner.load_state_dict(state[0]), model.load_state_dict(state[1]), optimizer.load_state_dict(state[2])
    steps(pruner, optimizer, batch, STEPS - 5)
    assert_same(tensors(whole[1]), tensors(model))


class TestAnotherOrder:
    def test_after_without_before(self):
        pruner, *_ = made()
        with pytest.raises(DendriticError, match=r"after_step\(\) at step 0.*before_step\(\) before optimizer"):
            pruner.after_step()

    def test_before_twice(self):
        pruner, model, _, batch = made()
        model(**batch).loss.backward()
        pruner.before_step()
        for call in (pruner.before_step, pruner.pack, pruner.state_dict):
            with pytest.raises(DendriticError, match=r"Call after_step\(\)"):
                call()

    def test_before_without_gradients(self):
        pruner, *_ = made()
        with pytest.raises(DendriticError, match="no parameter has a gradient.*loss.backward"):
            pruner.before_step()

    def test_packed_too_early(self):
        pruner, model, optimizer, batch = made()
        steps(pruner, optimizer, batch, 3)
        with pytest.raises(DendriticError, match="final after step 6, and 3 steps are done.*unfinished=True"):
            pruner.pack()
        assert not layout_of(model).packed
        assert layout_of(pruner.pack(unfinished=True)).packed

    def test_anything_after_packing(self):
        pruner, model, optimizer, batch = made()
        steps(pruner, optimizer, batch, STEPS)
        pruner.pack()
        model(**batch).loss.backward()
        for call in (pruner.before_step, pruner.pack):
            with pytest.raises(DendriticError, match="packed"):
                call()


def test_an_optimizer_without_the_sprouts_is_refused():
    with pytest.raises(DendriticError, match="had its sprout"):
        made(config=DendriticConfig(sparsity=0.5, segment_size=4, updates=3, sprout_rank=1))


def test_too_short_a_training_leaves_the_model_as_it_was():
    model, inputs = build("bert")
    with pytest.raises(DendriticError, match="max_steps = 1"):
        Pruner(model, CONFIG, steps=1, optimizer=torch.optim.SGD(model.parameters()), example_inputs=inputs)
    assert layout_of(model) is None


def test_packing_an_unpruned_model_says_so(caplog):
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), {"input": torch.randn(2, 4)}
    inject_(model, DendriticConfig(sparsity=0.2, segment_size=2), example_inputs=inputs)
    caplog.set_level("WARNING", logger="optimum.dendritic")
    compress_(model, inputs)
    assert "Nothing of Sequential was pruned" in caplog.text


def test_a_plan_that_takes_everything_at_once_says_so(caplog):
    caplog.set_level("WARNING", logger="optimum.dendritic")
    assert len(update_plan(CONFIG, max_steps=20)) == 3 and not caplog.text
    assert len(update_plan(CONFIG, max_steps=2)) == 1
    assert "leaves room for one of 3 mask updates" in caplog.text
