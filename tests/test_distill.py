"""A teacher's term is added to the loss of a model in training, and to nothing else: not to scores, not to files."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import assert_same, every
from helpers.models import build, text
from helpers.trainers import CONFIG, STEPS, StopAt, make_model, make_trainer, tensors
from torch import nn
from transformers import BertForSequenceClassification, GPT2LMHeadModel, PretrainedConfig, PreTrainedModel

from optimum.dendritic import DendriticCallback, DendriticConfig, DendriticError, distill_, distillation_loss
from optimum.dendritic.distillation import distillation_of
from optimum.dendritic.functional.distillation_loss import divergence, relative_distance
from optimum.dendritic.state import layout_of

TAUGHT = DendriticConfig(**CONFIG.to_dict() | {"distillation": 2.0})


def pair(name: str) -> tuple[nn.Module, nn.Module, dict]:
    """A student in training mode, another model of its kind as teacher, and a batch with labels."""
    (student, inputs), (teacher, _) = build(name), build(name, seed=1)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    labels = inputs["input_ids"] if name == "gpt2" else torch.tensor([0, 2])
    return student.train(), teacher, inputs | {"labels": labels}


def test_the_divergence_is_that_of_softened_distributions():
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    p, q = F.softmax(teacher / 2, -1), F.softmax(student / 2, -1)
    torch.testing.assert_close(divergence(student, teacher), 4 * (p * (p / q).log()).sum(-1))
    torch.testing.assert_close(divergence(teacher, teacher), torch.zeros(5))


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "resnet_basic"])
def test_the_loss_is_the_tasks_plus_the_weighted_term(name):
    student, teacher, batch = pair(name)
    alone = student(**batch).loss
    distill_(student, teacher, weight=0.5)
    together = student(**batch)
    with distillation_of(student).paused():
        asked = {"output_hidden_states": True}
        expected = distillation_loss(student(**batch, **asked), teacher(**batch, **asked))
    assert expected > 0.01
    torch.testing.assert_close(together.loss, alone + 0.5 * expected)
    assert "hidden_states" not in together
    together.loss.backward()
    assert every(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not teacher.training


class Terse(PreTrainedModel):
    """Its `forward` cannot be asked for hidden states."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.linear = nn.Linear(6, 3)
        self.post_init()

    def forward(self, x, labels=None):
        logits = self.linear(x)
        return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}


def test_a_model_without_hidden_states_is_taught_by_logits_alone():
    student, teacher = Terse(PretrainedConfig()).train(), Terse(PretrainedConfig())
    batch = {"x": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 0])}
    alone = student(**batch)
    distill_(student, teacher)
    expected = alone["loss"] + divergence(alone["logits"], teacher(**batch)["logits"]).mean()
    torch.testing.assert_close(student(**batch)["loss"], expected)


def test_a_model_that_learns_by_distillation_alone_becomes_its_teacher():
    student, teacher, batch = pair("bert")
    distill_(student, teacher, weight=100.0)
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    first = distillation_loss(student(**batch), teacher(**batch)).item()
    for _ in range(60):
        student(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert distillation_loss(student(**batch), teacher(**batch)).item() < 0.05 * first


def test_evaluation_pauses_and_removal_leave_the_stock_model():
    student, teacher, batch = pair("bert")
    names, stock = list(student.state_dict()), student(**batch).loss
    distillation = distill_(student, teacher)
    assert list(student.state_dict()) == names
    with distillation.paused():
        assert torch.equal(student(**batch).loss, stock)
    with torch.no_grad():
        assert torch.equal(student(**batch).loss, stock)
    assert not torch.equal(student(**batch).loss, stock)
    distillation.remove()
    assert torch.equal(student(**batch).loss, stock)
    assert distillation_of(student) is None
    assert not student._forward_hooks and not student._forward_pre_hooks


def test_a_model_that_decodes_may_make_the_inputs_of_its_decoder_out_of_the_labels():
    student, teacher, batch = pair("t5")
    batch = {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}
    torch.manual_seed(5)  # T5 drops what it attends to
    alone = student(**batch)
    distill_(student, teacher)
    expected = alone.loss + distillation_loss(alone, teacher(**batch), labelled=batch["labels"] != -100)
    torch.manual_seed(5)
    torch.testing.assert_close(student(**batch).loss, expected)
    assert not torch.allclose(expected, alone.loss)


def test_padding_counts_neither_in_logits_nor_in_hidden_states():
    states, teacher = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    attended = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    other = states + (~attended[..., None]) * 100
    assert torch.equal(relative_distance(states, teacher, attended), relative_distance(other, teacher, attended))
    losses = [distillation_loss({"logits": s}, {"logits": teacher}, attended=attended) for s in (states, other)]
    assert torch.equal(*losses)


def test_a_loss_normalised_over_accumulated_batches_gets_its_share_of_the_term():
    student, teacher, batch = pair("gpt2")
    assert isinstance(student, GPT2LMHeadModel)
    items = (batch["labels"][:, 1:] != -100).sum()
    alone = student(**batch, num_items_in_batch=items).loss
    distillation = distill_(student, teacher)
    whole = student(**batch, num_items_in_batch=items).loss - alone
    distillation.shares = 2
    half = student(**batch, num_items_in_batch=items).loss - alone
    torch.testing.assert_close(half, whole / 2)


def test_regression_compares_values_since_one_class_has_no_distribution():
    student, teacher = {"logits": torch.tensor([[1.0], [2.0]])}, {"logits": torch.tensor([[0.0], [0.0]])}
    torch.testing.assert_close(distillation_loss(student, teacher), torch.tensor(2.5))


class TestRefusals:
    def test_a_teacher_of_other_classes(self):
        student, _, batch = pair("bert")
        config = copy.deepcopy(student.config)
        config.num_labels = 5
        distill_(student, BertForSequenceClassification(config))
        with pytest.raises(DendriticError, match="teacher.logits = "):
            student(**batch)

    def test_itself_and_a_second_one(self):
        student, teacher, _ = pair("bert")
        with pytest.raises(DendriticError, match="the model itself"):
            distill_(student, student)
        distill_(student, teacher)
        with pytest.raises(DendriticError, match="has a teacher already"):
            distill_(student, teacher)

    def test_a_model_without_a_loss(self):
        student, teacher, _ = pair("bert")
        distill_(student, teacher)
        with pytest.raises(DendriticError, match="distillation_loss"):
            student(**text())

    def test_label_smoothing(self, tmp_path):
        trainer = make_trainer(tmp_path, [DendriticCallback(TAUGHT)], label_smoothing_factor=0.1)
        with pytest.raises(DendriticError, match="label_smoothing_factor = 0.1"):
            trainer.train()

    def test_compute_loss_func(self, tmp_path):
        trainer = make_trainer(tmp_path, [DendriticCallback(TAUGHT)])
        trainer.compute_loss_func = lambda outputs, labels, **kwargs: F.cross_entropy(outputs["logits"], labels)
        with pytest.raises(DendriticError, match="compute_loss_func"):
            trainer.train()

    def test_a_teacher_without_weight(self):
        with pytest.raises(DendriticError, match="teacher = "):
            DendriticCallback(CONFIG, teacher=make_model())

    def test_an_injected_model_without_its_dense_self(self, tmp_path):
        make_trainer(tmp_path, [DendriticCallback(CONFIG)], model=(model := make_model()))
        with pytest.raises(DendriticError, match="no dense model to learn from"):
            make_trainer(tmp_path, [DendriticCallback(TAUGHT)], model=model)


class TestInTheTrainer:
    @pytest.mark.slow
    def test_it_ends_packed_and_alone_and_the_teacher_mattered(self, tmp_path):
        trainer, plain = make_trainer(tmp_path, [DendriticCallback(TAUGHT)]), make_trainer(tmp_path)
        names = {name for name, _ in trainer.model.named_modules()}
        assert not any("teacher" in name for name in names)
        for one in (trainer, plain):
            one.train()
            assert layout_of(one.model).packed
        assert distillation_of(trainer.model) is None
        assert not torch.equal(trainer.model.classifier[1].weight, plain.model.classifier[1].weight)

    @pytest.mark.slow
    def test_the_teacher_may_be_an_object_or_a_folder(self, tmp_path):
        other = make_model()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
        other.save_pretrained(tmp_path / "teacher")
        packed = []
        for teacher in (other, tmp_path / "teacher", str(tmp_path / "teacher")):
            trainer = make_trainer(tmp_path, [DendriticCallback(TAUGHT, teacher=teacher)])
            trainer.train()
            packed.append(tensors(trainer.model))
        assert_same(packed[0], packed[1])
        assert_same(packed[0], packed[2])
        itself = make_trainer(tmp_path, [DendriticCallback(TAUGHT)])
        itself.train()
        assert any(t.shape != packed[0][n].shape or not torch.equal(t, packed[0][n]) for n, t in
                   tensors(itself.model).items())  # fmt: skip

    @pytest.mark.slow
    def test_importance_is_read_off_the_tasks_loss_alone(self, tmp_path):
        """One step scores the same beside a teacher that shouts as without one; the second step is not scored."""
        scores = []
        for config, stop in ((CONFIG, 1), (TAUGHT, 1), (TAUGHT, 2)):
            shouting = make_model() if config.distillation else None
            if shouting is not None:
                with torch.no_grad():
                    shouting.classifier[1].weight.mul_(1e3)
            trainer = make_trainer(tmp_path, [DendriticCallback(config, teacher=shouting), StopAt(stop)])
            trainer.train()
            scores.append({n: t for n, t in tensors(trainer.model).items() if n.endswith("dendrite_score")})
        assert scores[0] and any(score.any() for score in scores[0].values())
        assert_same(scores[0], scores[1])
        assert_same(scores[1], scores[2])

    @pytest.mark.slow
    def test_a_resumed_run_ends_as_the_uninterrupted_one(self, tmp_path):
        whole = make_trainer(tmp_path / "whole", [DendriticCallback(TAUGHT)])
        whole.train()
        first = make_trainer(tmp_path / "cut", [DendriticCallback(TAUGHT), StopAt(7)], save_steps=7,
                             save_strategy="steps")  # fmt: skip
        first.train()
        second = make_trainer(tmp_path / "cut", [DendriticCallback(TAUGHT)])
        second.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-7"))
        assert second.state.global_step == STEPS
        assert_same(tensors(whole.model), tensors(second.model))
