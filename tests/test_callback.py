"""The callback in a stock Trainer: it ends packed, resumes bit for bit, logs, and refuses what would break it."""

import pytest
import torch
from helpers.compare import assert_same
from helpers.trainers import CONFIG, FREEZE, STEPS, StopAt, make_model, make_trainer, tensors
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    EarlyStoppingCallback,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from optimum.dendritic import (
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    compress_,
    inject_,
    mask_,
    score_,
    update_,
    update_plan,
)
from optimum.dendritic.state import layout_of


class TestTraining:
    @pytest.mark.slow
    def test_ends_packed_within_the_budget(self, tmp_path):
        trainer = make_trainer(tmp_path)
        injected = layout_of(trainer.model)
        trainer.train()
        layout = layout_of(trainer.model)
        assert layout.packed
        left = sum(p.numel() for name in injected.modules for p in trainer.model.get_submodule(name).parameters())
        assert left <= (1 - CONFIG.sparsity) * injected.dense_cost
        assert trainer.evaluate()["eval_loss"] > 0

    @pytest.mark.slow
    def test_without_sparsity_it_is_the_stock_training(self, tmp_path):
        nothing = DendriticConfig(sparsity=0.0, updates=5)
        plain, idle = make_trainer(tmp_path, []), make_trainer(tmp_path, [DendriticCallback(nothing)])
        plain.train()
        idle.train()
        assert_same(tensors(plain.model), tensors(idle.model))

    @pytest.mark.slow
    def test_equals_the_plain_functions(self, tmp_path):
        trainer = make_trainer(tmp_path, lr_scheduler_type="constant", max_grad_norm=0.0, optim="sgd")
        batches = []
        trainer.model.register_forward_pre_hook(
            lambda m, args, kwargs: batches.append(kwargs) if m.training else None, with_kwargs=True
        )
        model = inject_(make_model(), CONFIG).train()
        trainer.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        plan = update_plan(CONFIG, STEPS)
        for step, batch in enumerate(batches, start=1):
            model(**batch).loss.backward()
            if step <= max(plan):
                score_(model)
            if step in plan:
                update_(model, plan[step].sparsity, regrow=plan[step].regrow, optimizer=optimizer)
            optimizer.step()
            mask_(model)
            optimizer.zero_grad()
        assert len(batches) == STEPS
        assert_same(tensors(compress_(model)), tensors(trainer.model))

    @pytest.mark.slow
    def test_trains_again_when_packed(self, tmp_path):
        trainer = make_trainer(tmp_path)
        trainer.train()
        before = tensors(trainer.model)
        plain = make_trainer(tmp_path, [], model=trainer.model)
        plain.train()
        assert not torch.equal(before["classifier.1.weight"], plain.model.state_dict()["classifier.1.weight"])


class TestResume:
    @pytest.mark.slow
    @pytest.mark.parametrize("restore_callbacks", [False, True])
    @pytest.mark.parametrize("stop", [4, 8, 16])
    def test_resumed_equals_uninterrupted(self, tmp_path, stop, restore_callbacks):
        saving = {"save_strategy": "steps", "save_steps": 4}
        saving["restore_callback_states_from_checkpoint"] = restore_callbacks
        whole = make_trainer(tmp_path / "whole", **saving)
        whole.train()
        first = make_trainer(tmp_path / "parts", [DendriticCallback(CONFIG), StopAt(stop)], **saving)
        first.train()
        resumed = make_trainer(tmp_path / "parts", **saving)
        resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
        assert layout_of(resumed.model).packed
        assert_same(tensors(whole.model), tensors(resumed.model))

    @pytest.mark.slow
    def test_a_model_whose_files_use_other_names_resumes_too(self, tmp_path):
        def vit() -> ViTForImageClassification:
            torch.manual_seed(0)
            width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
            return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=4, **width))

        saving = {"save_strategy": "steps", "save_steps": 4}
        whole = make_trainer(tmp_path / "whole", model=vit(), **saving)
        whole.train()
        make_trainer(tmp_path / "parts", [DendriticCallback(CONFIG), StopAt(8)], model=vit(), **saving).train()
        resumed = make_trainer(tmp_path / "parts", model=vit(), **saving)
        resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-8"))
        assert_same(tensors(whole.model), tensors(resumed.model))

    @pytest.mark.slow
    def test_a_checkpoint_in_mid_training_loads(self, tmp_path):
        trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=8)
        trainer.train()
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-8")
        layout = layout_of(loaded)
        assert not layout.packed
        masks = [m for name, m in loaded.state_dict().items() if name.endswith("dendrite_mask")]
        assert masks and not all(mask.all() for mask in masks)
        assert layout_of(compress_(loaded)).packed


class TestLogging:
    @pytest.mark.slow
    def test_everything_is_logged(self, tmp_path):
        trainer = make_trainer(tmp_path)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        sparsity = [log["sparsity"] for log in logs]
        assert sparsity == sorted(sparsity) and sparsity[0] == 0 and sparsity[-1] >= 0.5
        assert [log["phase"] for log in logs] == [0] + [1] * 4 + [2] * 5
        assert any(log["regrown"] for log in logs)
        densities = [name for name in logs[-1] if name.startswith("density/")]
        assert {name.removeprefix("density/") for name in densities} <= dict(trainer.model.named_modules()).keys()
        assert len(densities) == 6

    @pytest.mark.slow
    def test_tensorboard_shows_it(self, tmp_path, monkeypatch):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
        make_trainer(tmp_path, report_to=["tensorboard"]).train()
        folder = next(path.parent for path in tmp_path.rglob("events.out.tfevents*"))
        scalars = EventAccumulator(str(folder)).Reload().Tags()["scalars"]
        assert {"train/sparsity", "train/phase", "train/regrown"} <= set(scalars)
        assert any(name.startswith("train/density/") for name in scalars)

    @pytest.mark.slow
    def test_the_progress_bar_shows_sparsity_and_phase(self, tmp_path, capfd):
        make_trainer(tmp_path, disable_tqdm=False).train()
        assert "phase=recovery" in capfd.readouterr().err


class TestRefusals:
    def test_added_by_add_callback(self, tmp_path):
        trainer = make_trainer(tmp_path, [])
        trainer.add_callback(DendriticCallback(CONFIG))
        with pytest.raises(DendriticError, match=r"add_callback.*callbacks=\[DendriticCallback"):
            trainer.train()

    def test_model_init(self, tmp_path):
        trainer = make_trainer(tmp_path, model_init=make_model)
        with pytest.raises(DendriticError, match="model_init=lambda: inject_"):
            trainer.train()

    @pytest.mark.slow
    def test_model_init_that_injects_is_fine(self, tmp_path):
        trainer = make_trainer(tmp_path, model_init=lambda: inject_(make_model(), CONFIG))
        trainer.train()
        assert layout_of(trainer.model).packed

    def test_a_wrapped_model(self, tmp_path):
        with pytest.raises(DendriticError, match="wrapped or compiled"):
            make_trainer(tmp_path, model=nn.DataParallel(make_model()))

    def test_training_too_short_for_any_update(self, tmp_path):
        with pytest.raises(DendriticError, match="max_steps = 1: .*Train longer"):
            make_trainer(tmp_path, max_steps=1).train()

    def test_another_config_than_the_model_was_injected_with(self, tmp_path):
        with pytest.raises(DendriticError, match="injected with another config"):
            make_trainer(tmp_path, model=inject_(make_model(), DendriticConfig(sparsity=0.3)))


class TestAPackedModel:
    """What a script with the callback does with its own output."""

    @staticmethod
    def packed(folder) -> nn.Module:
        model = inject_(make_model(), CONFIG)
        update_(model, CONFIG.sparsity)
        compress_(model).save_pretrained(folder)
        return AutoModelForImageClassification.from_pretrained(folder)

    @pytest.mark.slow
    def test_is_evaluated_and_trained_as_it_is(self, tmp_path):
        model = self.packed(tmp_path / "small")
        trainer = make_trainer(tmp_path, model=model)
        layout, shapes = layout_of(model), {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert trainer.evaluate()["eval_loss"] > 0
        plain = make_trainer(tmp_path, [], model=self.packed(tmp_path / "small"))
        trainer.train()
        plain.train()
        assert_same(tensors(trainer.model), tensors(plain.model))
        assert layout_of(model) == layout and shapes == {n: t.shape for n, t in trainer.model.state_dict().items()}
        assert not any("sparsity" in log for log in trainer.state.log_history)
        trainer.save_model()
        assert layout_of(AutoModelForImageClassification.from_pretrained(tmp_path)) == layout

    def test_is_not_pruned_a_second_time(self, tmp_path):
        again = DendriticCallback(DendriticConfig(sparsity=0.8, updates=5, regrow=0.5))
        with pytest.raises(DendriticError, match=r"'sparsity': 0.8.*packed already, with {'sparsity': 0.5}.*dense"):
            make_trainer(tmp_path, [again], model=self.packed(tmp_path / "small"))

    def test_says_that_the_callback_has_nothing_to_do(self, tmp_path, caplog):
        caplog.set_level("INFO", logger="optimum.dendritic")
        logging.enable_propagation()
        try:
            make_trainer(tmp_path, model=self.packed(tmp_path / "small"))
        finally:
            logging.disable_propagation()
        assert "packed with this config already" in caplog.text


class TestTheEnd:
    @pytest.mark.slow
    def test_stopped_before_the_freeze_it_stays_injected(self, tmp_path):
        trainer = make_trainer(tmp_path, [DendriticCallback(CONFIG), StopAt(FREEZE - 2)])
        trainer.train()
        assert not layout_of(trainer.model).packed
        assert layout_of(compress_(trainer.model)).packed

    @pytest.mark.slow
    def test_early_stopping_can_be_kept_from_that(self, tmp_path):
        worsening = iter(range(100))
        stop = EarlyStoppingCallback(early_stopping_patience=1)
        settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
        trainer = make_trainer(
            tmp_path, [DendriticCallback(CONFIG, until_final=True), stop], load_best_model_at_end=True,
            metric_for_best_model="worsening", greater_is_better=False, **settings,
        )  # fmt: skip
        trainer.compute_metrics = lambda prediction: {"worsening": next(worsening)}
        trainer.train()
        assert FREEZE <= trainer.state.global_step < STEPS and layout_of(trainer.model).packed

    @pytest.mark.slow
    def test_a_best_checkpoint_from_before_the_freeze_does_not_come_back(self, tmp_path):
        best_first = iter(range(100))
        trainer = make_trainer(
            tmp_path,
            load_best_model_at_end=True,
            metric_for_best_model="worsening",
            greater_is_better=False,
            eval_strategy="steps",
            eval_steps=4,
            save_strategy="steps",
            save_steps=4,
        )
        trainer.compute_metrics = lambda prediction: {"worsening": next(best_first)}
        trainer.train()
        assert trainer.state.best_global_step == FREEZE
        assert layout_of(trainer.model).packed
        left = sum(p.numel() for name in layout_of(trainer.model).modules for p in _parameters(trainer.model, name))
        assert left <= (1 - CONFIG.sparsity) * layout_of(trainer.model).dense_cost


def _parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    module = model.get_submodule(name)
    return list(module.parameters()) if isinstance(module, nn.Conv2d | nn.Linear) else []
