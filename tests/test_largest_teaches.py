"""Of several sizes the largest teaches the smaller ones: on the same batch, without a gradient, leaving no trace."""

import pytest
import torch
from helpers.compare import assert_same, every
from helpers.models import build
from helpers.selection import masks_at
from helpers.trainers import STEPS, StopAt, make_model, make_trainer, tensors
from torch import nn
from transformers import TrainerCallback

from optimum.dendritic import (
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    distill_,
    distillation_loss,
    inject_,
    update_,
    update_plan,
)
from optimum.dendritic.distillation import distill_itself_, distillation_of
from optimum.dendritic.sizes import Narrowed, size_due
from optimum.dendritic.state import gates_of

CONFIG = DendriticConfig(sparsity=(0.3, 0.5), updates=5, units="structured", floor=0.0)


def narrow(name: str, *, dropout: float = 0.0) -> tuple[nn.Module, dict, Narrowed]:
    """A model in training mode as its smaller size, which is taught by its largest, and a batch with labels."""
    model, inputs = build(name)
    inject_(model.eval(), DendriticConfig(sparsity=(0.2, 0.6), importance="random"), example_inputs=inputs)
    update_(model, 0.6)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    distillation = distill_itself_(model.train())
    made = Narrowed(model, gates_of(model), masks_at(model, 0.6))
    distillation.active, distillation.around = True, made.whole
    return model, inputs | {"labels": torch.tensor([0, 2])}, made


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def answer_of_the_largest(model: nn.Module, batch: dict, made: Narrowed) -> dict:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad(), made.whole():
        return model(**inputs, output_hidden_states=True)


@pytest.mark.parametrize("name", ["bert", "vit", "resnet_basic"])
def test_the_term_is_that_of_the_largest_without_a_gradient(name):
    model, batch, made = narrow(name)
    taught = answer_of_the_largest(model, batch, made)
    before = tensors(model)
    model(**batch).loss.backward()
    found = gradients(model)
    with distillation_of(model).paused():
        own = model(**batch, output_hidden_states=True)
    assert distillation_loss(own, taught) > 1e-3
    (own.loss + distillation_loss(own, taught)).backward()
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)
    after = tensors(model)
    weights = {key: value for key, value in before.items() if "running" not in key and "num_batches" not in key}
    assert_same(weights, {key: after[key] for key in weights})


def test_the_largest_draws_no_random_numbers_and_counts_no_batches():
    for name in ("bert", "resnet_basic"):
        seen = []
        for teaches in (True, False):
            model, batch, made = narrow(name, dropout=0.5)
            distillation_of(model).active = teaches
            torch.manual_seed(3)
            logits = model(**batch).logits.detach()
            made.widen_()
            seen.append(tensors(model) | {"logits": logits, "random": torch.rand(4)})
        assert_same(*seen)


def test_a_failure_of_the_largest_leaves_the_smaller_size_and_then_the_whole_model():
    model, batch, made = narrow("bert")
    frozen = model.bert.embeddings.eval()  # by its user
    before, flags = tensors(model), [module.training for module in model.modules()]

    def fail(module, args):
        if not module.training:
            raise MemoryError("no room for another pass")

    handle = model.classifier.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        model(**batch)
    assert_same(tensors(model), before)
    assert [module.training for module in model.modules()] == flags and not frozen.training
    handle.remove()
    made.widen_()
    whole, again = tensors(model), narrow("bert")
    again[2].widen_()
    assert_same(whole, tensors(again[0]))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in whole.items())


def test_two_passes_before_one_backward_are_those_of_the_smaller_size():
    model, batch, _ = narrow("bert")
    model(**batch).loss.backward()
    once = gradients(model)
    (model(**batch).loss + model(**batch).loss).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 2 * once[name], rtol=1e-4, atol=1e-6)


def test_autocast_keeps_no_copy_of_a_weight_of_the_other_size():
    """Such a copy would have other values, and no gradient."""
    found = []
    for lower in (False, True):
        model, batch, _ = narrow("bert")
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            loss = model(**batch).loss + model(**batch).loss
        loss.backward()
        found.append(gradients(model))
    assert len(found[0]) > 10 and found[0].keys() == found[1].keys()
    both = [torch.cat([gradient.flatten() for gradient in each.values()]) for each in found]
    assert torch.cosine_similarity(*both, 0) > 0.99


@pytest.mark.slow
def test_activation_checkpointing_and_compilation_change_nothing():
    found = []
    for change in (lambda m: m, checkpointed, lambda m: torch.compile(m, backend="eager")):
        model, batch, _ = narrow("bert")
        change(model)(**batch).loss.backward()
        found.append(gradients(model))
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert every(torch.allclose(gradient, other[name], atol=1e-6) for name, gradient in found[0].items())


def checkpointed(model):
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model


class Asked(TrainerCallback):
    """In which steps a model was asked in evaluation mode, as a teacher is, and how often."""

    def __init__(self, model: nn.Module) -> None:
        self.step, self.steps = 0, []
        model.register_forward_pre_hook(self.note)

    def note(self, module, args):
        if self.step and not module.training:
            self.steps.append(self.step)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step + 1

    def on_step_end(self, args, state, control, **kwargs):
        self.step = 0


def trained(folder, config, teacher=None, **changes):
    """In which steps of a training the model itself and a teacher taught, and which of them are of a smaller size."""
    model = make_model()
    trainer = make_trainer(folder, [DendriticCallback(config, teacher=teacher)], model, **changes)
    asked = [Asked(each.resnet) for each in (model, *([teacher] if teacher else []))]
    for each in asked:
        trainer.add_callback(each)
    trainer.train()
    return [each.steps for each in asked], size_steps(config)


def size_steps(config):
    """The steps of a training that are those of a smaller size."""
    plan = update_plan(config, STEPS, max(config.smaller))
    small = [step for step in range(1, STEPS + 1) if size_due(config, plan, step) is not None]
    assert len(small) > 3
    return small


class Failing(TrainerCallback):
    """Lets one step fail, in the forward pass or in the backward pass, and knows what the model was before."""

    def __init__(self, model: nn.Module, step: int, where: str) -> None:
        self.due, self.where, self.before = step, where, {}
        model.classifier.register_forward_hook(self.fail)

    def on_step_end(self, args, state, control, model, **kwargs):
        self.before = tensors(model) if state.global_step == self.due - 1 else {}

    def fail(self, module, args, output):
        if self.before and module.training:
            if self.where == "forward":
                raise MemoryError
            output.register_hook(self.fail_backward)

    def fail_backward(self, gradient):
        raise MemoryError


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_largest_is_asked_once_for_every_batch_of_a_smaller_size(accumulated, tmp_path):
    (itself,), small = trained(tmp_path, CONFIG, gradient_accumulation_steps=accumulated)
    assert itself == [step for step in small for _ in range(accumulated)]


@pytest.mark.slow
def test_a_teacher_teaches_all_sizes_in_the_place_of_the_largest(tmp_path):
    config = DendriticConfig(**CONFIG.to_dict() | {"distillation": 1.0})
    (itself, other), small = trained(tmp_path, config, make_model())
    assert not itself and set(small) < set(other)


@pytest.mark.slow
def test_nobody_teaches_with_a_weight_of_0(tmp_path):
    (itself,), _ = trained(tmp_path, DendriticConfig(**CONFIG.to_dict() | {"distillation": 0}))
    assert not itself


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_where_a_step_of_a_smaller_size_fails_the_model_is_whole_again(where, tmp_path):
    model = make_model()
    trainer = make_trainer(tmp_path, [DendriticCallback(CONFIG)], model)
    trainer.add_callback(failing := Failing(model, size_steps(CONFIG)[0], where))
    with pytest.raises(MemoryError):
        trainer.train()
    assert_same(failing.before, tensors(model))


def test_only_of_several_sizes_is_there_a_largest():
    assert CONFIG.largest_teaches and CONFIG.distillation is None
    assert DendriticConfig.from_dict(CONFIG.to_dict()) == CONFIG
    one = DendriticConfig(sparsity=0.5, distillation=None)
    assert one.distillation == 0.0 and not one.largest_teaches and one == DendriticConfig(sparsity=0.5)
    assert not DendriticConfig(sparsity=0.5, dormant=0.2).largest_teaches
    assert not DendriticConfig(sparsity=(0.5, 0.8), distillation=0).largest_teaches


@pytest.mark.slow
def test_a_model_whose_loss_is_computed_elsewhere_says_so_in_its_first_step(tmp_path):
    trainer = make_trainer(tmp_path, [DendriticCallback(CONFIG), StopAt(1)], label_smoothing_factor=0.1)
    with pytest.raises(DendriticError, match="or distillation=0"):
        trainer.train()
    trainer = make_trainer(tmp_path, [DendriticCallback(CONFIG), StopAt(1)])
    trainer.compute_loss_func = lambda outputs, labels, **kwargs: outputs["logits"].mean()
    with pytest.raises(DendriticError, match="set distillation=0"):
        trainer.train()
    with pytest.raises(DendriticError, match="nothing to teach while distillation = None"):
        DendriticCallback(CONFIG, teacher=make_model())
    with pytest.raises(DendriticError, match="has a teacher already"):
        distill_(narrow("bert")[0], make_model())
