"""Packed at the freeze: the small model goes on as the masked one would have, and a killed run goes on as it was."""

import pytest
import torch
from helpers.compare import every
from helpers.trainers import CONFIG, FREEZE, STEPS, StopAt, make_model, make_trainer, tensors

from optimum.dendritic import DendriticCallback, DendriticConfig
from optimum.dendritic.state import layout_of

OPTIMIZERS = ["adamw_torch_fused", "sgd", "rmsprop"]


def trained(folder, early, callbacks=(), resume=False, config=CONFIG, **changes):
    """A Trainer after its training. Gradients are not clipped: a masked model has some for what is pruned."""
    settings = {"max_grad_norm": 0.0, "logging_steps": 1, "weight_decay": 0.01} | changes
    callback = DendriticCallback(config, pack_at_freeze=early)
    trainer = make_trainer(folder, [callback, *callbacks], **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def in_channels_last():
    return make_model().to(memory_format=torch.channels_last)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_small_model_learns_what_the_masked_one_does(tmp_path, optim):
    late, early = (trained(tmp_path / str(flag), flag, optim=optim) for flag in (False, True))
    assert len(losses(early)) == STEPS
    assert losses(early)[:FREEZE] == losses(late)[:FREEZE]
    assert losses(early) == pytest.approx(losses(late), rel=1e-4)
    expected, found = tensors(late.model), tensors(early.model)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-4), name


def test_the_optimizer_holds_the_small_parameters_and_states(tmp_path):
    trainer = trained(tmp_path, True, optim="adamw_torch")
    held = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in trainer.model.parameters()}
    for parameter in held:
        assert trainer.optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    dense = sum(parameter.numel() for parameter in make_model().parameters())
    assert sum(parameter.numel() for parameter in held) < 0.8 * dense


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "rmsprop"])
def test_all_that_is_left_keeps_the_memory_format(tmp_path, optim):
    trainer = trained(tmp_path, True, optim=optim, model=in_channels_last())
    kernels = [parameter for parameter in trainer.model.parameters() if parameter.dim() == 4]
    wide = [kernel for kernel in kernels if not kernel.is_contiguous()]
    assert len(wide) > 2 and every(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in wide)
    for kernel in wide:
        states = [state for state in trainer.optimizer.state[kernel].values() if getattr(state, "dim", int)() == 4]
        assert states and every(state.stride() == kernel.stride() for state in states)


FORMS = {
    "fine": ("fine", make_model),
    "streams and blocks": (("channels", "streams", "blocks"), make_model),
    "channels last": (("channels", "streams"), in_channels_last),
}


@pytest.mark.slow
@pytest.mark.parametrize(("units", "make"), FORMS.values(), ids=FORMS)
def test_a_run_that_is_killed_after_the_freeze_ends_as_the_undisturbed_one(tmp_path, units, make):
    config = DendriticConfig(sparsity=0.5, updates=5, units=units)
    whole = trained(tmp_path / "whole", True, config=config, model=make())
    saving = {"save_strategy": "steps", "save_steps": FREEZE + 2, "config": config}
    trained(tmp_path / "killed", True, [StopAt(FREEZE + 2)], **saving, model=make())
    again = trained(tmp_path / "killed", True, resume=True, **saving, model=make())
    expected, found = tensors(whole.model), tensors(again.model)
    assert expected.keys() == found.keys() and layout_of(again.model).packed
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_where_it_cannot_work_it_is_packed_at_the_end_and_told(tmp_path, caplog):
    trainer = trained(tmp_path, True, optim="adafactor")
    assert "Adafactor may not treat each entry of a parameter on its own" in caplog.text
    assert layout_of(trainer.model).packed
