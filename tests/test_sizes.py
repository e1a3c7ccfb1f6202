"""Several sizes of one model: nested masks, steps of a smaller size, and trainings of both."""

import pytest
import torch
from helpers.compare import assert_same
from helpers.models import backward, build, outputs
from helpers.selection import masks_at
from helpers.trainers import STEPS, StopAt, make_trainer, tensors

from optimum.dendritic import DendriticCallback, DendriticConfig, inject_, score_, set_wake_rate, update_
from optimum.dendritic.nn.dormant import dormant_of
from optimum.dendritic.sizes import Narrowed, narrowed, size_due
from optimum.dendritic.state import gates_of, layout_of
from optimum.dendritic.train_steps import pruning_of, update_plan

CONFIG = DendriticConfig(sparsity=0.5, dormant=0.2, updates=5, regrow=0.5)


def injected(name):
    model, inputs = build(name)
    inject_(model, DendriticConfig(sparsity=0.6, dormant=0.2, segment_size=4), example_inputs=inputs)
    backward(model, inputs)
    score_(model)
    update_(model, 0.6)
    return model, inputs


@pytest.mark.parametrize("name", ["bert", "resnet_basic", "lstm"])
def test_sizes_are_nested_and_exact(name):
    model, _ = injected(name)
    assert pruning_of(model).sparsity == pytest.approx(0.2, abs=0.1)
    sizes = [masks_at(model, sparsity) for sparsity in (0.2, 0.35, 0.5, 0.6)]
    for larger, smaller in zip(sizes, sizes[1:], strict=False):
        assert all(bool((larger[each] | ~smaller[each]).all()) for each in larger)
    for sparsity, masks in zip((0.35, 0.5, 0.6), sizes[1:], strict=True):
        with narrowed(model, gates_of(model), masks):
            assert pruning_of(model).sparsity >= sparsity


@pytest.mark.parametrize("name", ["bert", "resnet_basic"])
def test_a_step_of_a_smaller_size_leaves_what_sleeps(name):
    model, inputs = injected(name)
    before, answer = tensors(model), outputs(model, inputs)
    made = Narrowed(model.train(), gates_of(model), masks_at(model, 0.6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for gate in made.gates.values():  # as if it had been moved before
        for parameter in gate.segmented().values():
            optimizer.state[parameter] = {
                "step": torch.tensor(1.0),
                "exp_avg": torch.ones_like(parameter),
                "exp_avg_sq": torch.ones_like(parameter),
            }
    backward(model, inputs)
    made.still_gradients_()
    sleeping = {name: made.asleep[name] for name in made.gates}
    for each, gate in made.gates.items():
        for part in gate.pieces({key: p.grad for key, p in gate.segmented().items()}):
            assert not part.take(sleeping[each]).any()
    optimizer.step()
    made.widen_()
    after = tensors(model)
    masks = {key for key in before if key.endswith("dendrite_mask")}
    assert masks and all(torch.equal(before[key], after[key]) for key in masks)
    assert not torch.allclose(outputs(model.eval(), inputs), answer)
    for each, gate in made.gates.items():
        old = {key: before[key if key in before else f"{each}.{key}"] for key in gate.segmented()}
        new = {key: p.detach() for key, p in gate.segmented().items()}
        pairs = zip(gate.pieces(old), gate.pieces(new), strict=True)
        assert all(torch.equal(a.take(sleeping[each]), b.take(sleeping[each])) for a, b in pairs)
    statistics = [key for key in before if key.endswith("running_mean")]
    assert all(torch.equal(before[key], after[key]) for key in statistics)


def test_which_size_a_step_has():
    plan = update_plan(DendriticConfig(sparsity=0.8, dormant=0.4, updates=4), 100)
    config = DendriticConfig(sparsity=0.8, dormant=0.4)
    sizes = {step: size_due(config, plan, step) for step in range(1, 101)}
    small = {step for step, size in sizes.items() if size is not None}
    assert small and all(step % 2 == 0 and step not in plan for step in small)
    first = min(step for step, due in plan.items() if due.sparsity > 0.4)
    assert min(small) > first and {sizes[step] for step in small if step > max(plan)} == {0.8}
    assert not any(size_due(DendriticConfig(sparsity=0.8), plan, step) for step in range(1, 101))


@pytest.mark.slow
def test_a_training_of_both_ends_packed_and_resumes(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = make_trainer(tmp_path / "whole", [DendriticCallback(CONFIG)], **saving)
    injected = layout_of(whole.model)
    whole.train()
    model = whole.model
    left = sum(p.numel() for name in injected.modules for p in model.get_submodule(name).parameters())
    assert layout_of(model).packed and left <= 0.5 * injected.dense_cost
    assert dormant_of(model).parameters() > 0
    for stop in (16,):
        folder = tmp_path / str(stop)
        make_trainer(folder, [DendriticCallback(CONFIG), StopAt(stop)], **saving).train()
        resumed = make_trainer(folder, [DendriticCallback(CONFIG)], **saving)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop}"))
        assert resumed.state.global_step == STEPS
        assert_same(tensors(model), tensors(resumed.model))
        assert_same(tensors(dormant_of(model).awake), tensors(dormant_of(resumed.model).awake))
    set_wake_rate(model, 1.0)
    assert whole.evaluate()["eval_loss"] > 0
