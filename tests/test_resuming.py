"""Resuming: torn checkpoints are passed over and named, what does not fit is refused, what fits goes on."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.compare import assert_same, every
from helpers.trainers import CONFIG, FREEZE, STEPS, StopAt, make_model, make_trainer, tensors
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from optimum.dendritic import (
    CheckpointError,
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    compress_,
    last_checkpoint,
)
from optimum.dendritic.state import layout_of

pytestmark = pytest.mark.xdist_group("resuming")  # one worker, or each would make the fixture anew

FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
SAVING = {"save_strategy": "steps", "save_steps": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The folder of an undisturbed run and the model that it ended with."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder, **SAVING)
    trainer.train()
    return folder, tensors(trainer.model)


@pytest.fixture
def killed(whole, tmp_path) -> Path:
    """The folder as it was after step 8."""
    for step in (4, 8):
        shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    return tmp_path


@pytest.fixture
def told(caplog):
    """What the library has logged."""
    logging.enable_propagation()
    yield lambda: caplog.text
    logging.disable_propagation()


def cut(path: Path, share: float = 0.5) -> None:
    os.truncate(path, int(path.stat().st_size * share))


class TestLastCheckpoint:
    @pytest.mark.slow
    def test_the_newest_complete_one(self, whole):
        assert last_checkpoint(whole[0]) == str(whole[0] / f"checkpoint-{STEPS}")

    @pytest.mark.parametrize("folder", ["", "nowhere"])
    def test_none_where_there_is_none(self, tmp_path, folder):
        (tmp_path / "checkpoint-best").mkdir()
        (tmp_path / "checkpoint-9").touch()
        assert last_checkpoint(tmp_path / folder) is None

    @pytest.mark.parametrize("share", [0, 0.5, 0.999])
    @pytest.mark.parametrize("name", FILES)
    def test_a_file_that_is_cut_short(self, killed, name, share, told):
        cut(killed / "checkpoint-8" / name, share)
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")
        assert f"checkpoint-8 was cut short and is passed over: {name}" in told()
        cut(killed / "checkpoint-4" / name, share)
        assert last_checkpoint(killed) is None

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_that_is_missing(self, killed, name):
        (killed / "checkpoint-8" / name).unlink()
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")

    def test_every_prefix_of_what_is_written_is_incomplete(self, killed):
        newest = killed / "checkpoint-8"
        files = sorted(newest.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        assert [file.name for file in files[-2:]] == ["trainer_state.json", "checksums.json"]
        files.pop().unlink()
        assert last_checkpoint(killed) == str(newest), "a process that died before its checksums has lost nothing"
        for file in reversed(files):
            file.unlink()
            assert last_checkpoint(killed) == str(killed / "checkpoint-4")

    def test_the_random_state_of_every_process_is_needed(self, killed, told):
        newest = killed / "checkpoint-8"
        state = json.loads((newest / "trainer_state.json").read_text())
        state["stateful_callbacks"]["DendriticCallback"]["attributes"]["random_states"] = [
            "rng_state_0.pth",
            "rng_state_1.pth",
        ]
        (newest / "trainer_state.json").write_text(json.dumps(state))
        (newest / "rng_state.pth").rename(newest / "rng_state_0.pth")
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")
        assert "rng_state_1.pth is missing" in told()
        shutil.copy(newest / "rng_state_0.pth", newest / "rng_state_1.pth")
        assert last_checkpoint(killed) == str(newest)

    def test_all_shards_of_the_weights_are_needed(self, killed):
        newest = killed / "checkpoint-8"
        (newest / "checksums.json").unlink()
        make_model().save_pretrained(newest, max_shard_size=5_000)
        (newest / "model.safetensors").unlink()
        assert len(shards := sorted(newest.glob("model-*"))) > 1
        assert last_checkpoint(killed) == str(newest)
        shards[-1].unlink()
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")

    @pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process is what is wanted
    def test_shards_of_a_distributed_checkpoint_have_a_directory(self, killed):
        import torch.distributed.checkpoint as distributed

        newest = killed / "checkpoint-8"
        (newest / "checksums.json").unlink()
        (newest / "optimizer.pt").unlink()
        distributed.save({"a": torch.zeros(2)}, checkpoint_id=newest / "optimizer_0", no_dist=True)
        assert last_checkpoint(killed) == str(newest)
        (newest / "optimizer_0" / ".metadata").unlink()
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")

    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
    @pytest.mark.parametrize("damage", [b"\0", b"\x55"])
    def test_a_flipped_bit_and_a_tail_of_zeros(self, killed, name, damage, told):
        file = killed / "checkpoint-8" / name
        content = file.read_bytes()
        tail = len(content) // 4 if damage == b"\0" else 1
        file.write_bytes(content[: -len(content) // 3] + damage * tail + content[-len(content) // 3 + tail :])
        assert len(file.read_bytes()) == len(content) and file.read_bytes() != content
        with pytest.raises(CheckpointError, match=f"is damaged: {name} is not what was written"):
            make_trainer(killed, **SAVING).train(resume_from_checkpoint=str(file.parent))
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")

    @pytest.mark.parametrize("name", [*FILES, "config.json", "checksums.json"])
    def test_a_folder_in_a_files_place_and_an_empty_file(self, killed, name):
        file = killed / "checkpoint-8" / name
        file.unlink()
        file.touch()
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")
        file.unlink()
        file.mkdir()
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")

    @pytest.mark.parametrize(
        "stub",
        ["{}", "[]", '{"global_step": 8}', '{"global_step": 8, "max_steps": 12, "log_history": 1}', '"global_step"'],
    )
    def test_a_stub_of_a_state(self, killed, stub):
        (killed / "checkpoint-8" / "trainer_state.json").write_text(stub)
        assert last_checkpoint(killed) == str(killed / "checkpoint-4")

    def test_strange_notes_in_a_state(self, killed):
        file = killed / "checkpoint-8" / "trainer_state.json"
        state = json.loads(file.read_text())
        for notes in ({"a": 1}, {"a": {"attributes": 1}}, {"a": {"attributes": {"random_states": [1]}}}, {"a": "b"}):
            file.write_text(json.dumps(state | {"stateful_callbacks": notes}))
            assert last_checkpoint(killed) == str(killed / "checkpoint-4")

    def test_nothing_is_deleted_or_loaded(self, killed):
        (killed / "checkpoint-8" / "trainer_state.json").unlink()
        before = sorted(killed.rglob("*"))
        last_checkpoint(killed)
        assert sorted(killed.rglob("*")) == before

    @pytest.mark.slow
    def test_a_torn_run_resumed_from_it_ends_as_the_undisturbed_one(self, whole, killed):
        cut(killed / "checkpoint-8" / "optimizer.pt")
        trainer = make_trainer(killed, **SAVING)
        trainer.train(resume_from_checkpoint=last_checkpoint(killed))
        assert_same(whole[1], tensors(trainer.model))
        assert last_checkpoint(killed) == str(killed / f"checkpoint-{STEPS}"), "the torn one was written anew"


class TestWhatARunHasInCommon:
    def test_two_callbacks_are_refused(self, tmp_path):
        callbacks = [DendriticCallback(CONFIG), DendriticCallback(CONFIG)]
        with pytest.raises(DendriticError, match="2 of DendriticCallback"):
            make_trainer(tmp_path, callbacks)
        trainer = make_trainer(tmp_path, callbacks[:1])
        trainer.add_callback(callbacks[1])
        with pytest.raises(DendriticError, match="2 of DendriticCallback"):
            trainer.train()

    @pytest.mark.parametrize("restore", [False, True])
    @pytest.mark.parametrize("fields", [{"sparsity": 0.4}, {"end": 0.8, "importance": "taylor"}])
    def test_another_config_is_refused(self, killed, fields, restore):
        config = replace(CONFIG, **fields)
        saving = SAVING | {"restore_callback_states_from_checkpoint": restore}
        trainer = make_trainer(killed, [DendriticCallback(config)], **saving)
        with pytest.raises(DendriticError, match="config = .*(Resume with|Use) the same config"):
            trainer.train(resume_from_checkpoint=last_checkpoint(killed))

    def test_a_config_of_other_masks_is_refused_when_they_load(self, killed):
        trainer = make_trainer(killed, [DendriticCallback(replace(CONFIG, segment_size=9))], **SAVING)
        before = tensors(trainer.model)
        with pytest.raises(DendriticError, match="dendrite_mask = .*another config.*Resume with the same config"):
            trainer.train(resume_from_checkpoint=last_checkpoint(killed))
        assert_same(before, tensors(trainer.model))

    def test_a_run_without_the_callback_is_refused(self, tmp_path):
        make_trainer(tmp_path, [StopAt(4)], **SAVING).train()
        trainer = make_trainer(tmp_path, **SAVING)
        with pytest.raises(DendriticError, match="without DendriticCallback.*start a new run"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))

    def test_a_packed_model_is_refused(self, killed):
        trainer = make_trainer(killed, **SAVING)
        trainer.train(resume_from_checkpoint=last_checkpoint(killed))
        with pytest.raises(DendriticError, match="before packing.*Build the Trainer anew"):
            trainer.train(resume_from_checkpoint=str(killed / "checkpoint-8"))

    def test_a_run_that_died_before_it_was_packed_takes_no_further_step(self, whole):
        """The Trainer takes one too many when it resumes from the last step, unless that ended an epoch."""
        trainer = make_trainer(whole[0], **SAVING)
        checkpoints = sorted(whole[0].iterdir())
        trainer.train(resume_from_checkpoint=last_checkpoint(whole[0]))
        assert_same(whole[1], tensors(trainer.model))
        assert trainer.state.global_step == STEPS
        assert sorted(whole[0].iterdir()) == checkpoints

    @pytest.mark.slow
    def test_its_last_checkpoint_is_not_written_again(self, tmp_path):
        saving = {"max_steps": -1, "num_train_epochs": 2.5, "save_strategy": "epoch"}
        undisturbed = make_trainer(tmp_path, **saving)
        undisturbed.train()
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        trainer = make_trainer(tmp_path, **saving)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS}"))
        assert_same(tensors(undisturbed.model), tensors(trainer.model))
        configs = []
        for name, run in (("undisturbed", undisturbed), ("resumed", trainer)):
            run.save_model(str(tmp_path / name))
            configs.append(json.loads((tmp_path / name / "config.json").read_text()))
            shutil.rmtree(tmp_path / name)
        assert configs[0] == configs[1] and configs[0]["problem_type"] == "single_label_classification"
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    @pytest.mark.slow
    @pytest.mark.parametrize("more", [2 * STEPS, FREEZE + 2])
    def test_other_max_steps_change_the_recovery_alone(self, killed, more, told):
        masks = {}

        class Watch(TrainerCallback):
            def on_step_end(self, args, state, control, model, **kwargs):
                masks[state.global_step] = [m.clone() for n, m in model.named_buffers() if n.endswith("dendrite_mask")]

        trainer = make_trainer(killed, [DendriticCallback(CONFIG), Watch()], max_steps=more, **SAVING)
        trainer.train(resume_from_checkpoint=last_checkpoint(killed))
        assert "the masks keep their schedule" in told()
        assert layout_of(trainer.model).packed and trainer.state.global_step == more
        final = masks[FREEZE]
        assert any(not torch.equal(a, b) for a, b in zip(masks[FREEZE - 1], final, strict=True))
        assert every(
            torch.equal(a, b) for step in range(FREEZE, more + 1) for a, b in zip(masks[step], final, strict=True)
        )

    def test_too_few_max_steps_are_refused(self, killed):
        trainer = make_trainer(killed, max_steps=FREEZE - 2, **SAVING)
        with pytest.raises(DendriticError, match=f"max_steps = {FREEZE - 2}: .*final, at step {FREEZE}.*Train longer"):
            trainer.train(resume_from_checkpoint=last_checkpoint(killed))

    def test_a_second_run_makes_a_plan_of_its_own(self, tmp_path):
        trainer = make_trainer(tmp_path, [callback := DendriticCallback(CONFIG), StopAt(6)])
        trainer.train()
        trainer.args.max_steps = 2 * STEPS
        trainer.train()
        assert max(callback.plan) == 2 * FREEZE

    def test_the_log_goes_on_too(self, whole, killed):
        trainer = make_trainer(killed, **SAVING)
        trainer.train(resume_from_checkpoint=last_checkpoint(killed))
        kept = ("step", "loss", "sparsity", "regrown", "phase", "learning_rate")
        logs = [{name: log.get(name) for name in kept} for log in trainer.state.log_history if "loss" in log]
        state = json.loads((whole[0] / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        assert logs == [{name: log.get(name) for name in kept} for log in state["log_history"] if "loss" in log]


class TestBestModel:
    @pytest.mark.slow
    def test_a_best_model_whose_files_use_other_names_is_restored(self, tmp_path):
        torch.manual_seed(0)
        width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=4, **width))
        worse = iter(range(100))
        best = {"load_best_model_at_end": True, "metric_for_best_model": "worsening", "greater_is_better": False}
        trainer = make_trainer(tmp_path, model=model, eval_strategy="steps", eval_steps=4, **SAVING, **best)
        trainer.compute_metrics = lambda prediction: {"worsening": next(worse)}
        trainer.train()
        assert trainer.state.best_global_step == FREEZE < STEPS
        stored = compress_(AutoModelForImageClassification.from_pretrained(tmp_path / f"checkpoint-{FREEZE}"))
        assert_same(tensors(stored), tensors(trainer.model))


class TestSampling:
    @pytest.mark.slow
    @pytest.mark.parametrize("epoch", [1, 3])
    def test_lengths_are_grouped_the_same_after_the_end_of_an_epoch(self, tmp_path, epoch):
        def run(folder: Path, *callbacks: TrainerCallback) -> Trainer:
            torch.manual_seed(0)
            shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
            draw = torch.Generator().manual_seed(1)
            rows = [
                {"input_ids": torch.randint(3, 50, (2 + i % 5,), generator=draw).tolist(), "labels": i % 2}
                for i in range(24)
            ]
            args = TrainingArguments(
                str(folder), num_train_epochs=4, per_device_train_batch_size=4, save_strategy="epoch", use_cpu=True,
                train_sampling_strategy="group_by_length", report_to="none", disable_tqdm=True, learning_rate=1e-2,
                dataloader_pin_memory=False,
            )  # fmt: skip
            return Trainer(
                model=BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **shape)),
                args=args,
                train_dataset=rows,
                data_collator=padded,
                callbacks=[DendriticCallback(DendriticConfig(sparsity=0.5, segment_size=4, updates=5)), *callbacks],
            )

        undisturbed = run(tmp_path / "whole")
        undisturbed.train()
        run(tmp_path / "parts", StopAt(6 * epoch)).train()
        resumed = run(tmp_path / "parts")
        resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "parts"))
        assert_same(tensors(undisturbed.model), tensors(resumed.model))


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": ids.ne(0).long(),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
