"""Recurrent models are saved, loaded and trained by a Trainer; records and indices in files are believed in nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import backward, outputs, roughen
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from optimum.dendritic import (
    CheckpointError,
    DendriticCallback,
    DendriticConfig,
    compress_,
    inject_,
    score_,
    update_,
)
from optimum.dendritic.layout.records import Recurrent
from optimum.dendritic.nn import (
    DendriticGRU,
    DendriticLSTM,
    PackedRecurrent,
)
from optimum.dendritic.state import layout_of

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))
from recurrent import RecurrentConfig, RecurrentForSequenceClassification  # noqa: E402


def classifier(cell: str = "lstm", **fields: Any) -> RecurrentForSequenceClassification:
    sizes = {"vocab_size": 50, "embedding_size": 6, "hidden_size": 8, "num_labels": 3, "num_hidden_layers": 2}
    with torch.random.fork_rng([]):
        return roughen(RecurrentForSequenceClassification(RecurrentConfig(cell=cell, **(sizes | fields))))


def texts() -> dict[str, Tensor]:
    ids = torch.randint(3, 50, (4, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 3, 5, 1])
    mask = (torch.arange(7) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def pruned(folder: Path, form: str, **fields: Any) -> RecurrentForSequenceClassification:
    model = inject_(classifier(**fields), DendriticConfig(sparsity=0.6, importance="magnitude"))
    score_(model)
    update_(model, 0.6)
    if form == "packed":
        compress_(model)
    model.save_pretrained(folder)
    return model


LOAD = """
import sys, torch
from safetensors.torch import load_file, save_file
import optimum.dendritic, recurrent
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[1] + "/again")
with torch.no_grad():
    save_file({"logits": model(**load_file(sys.argv[1] + "/inputs")).logits}, sys.argv[1] + "/logits")
"""


class TestCheckpoints:
    @pytest.mark.parametrize("pooling", ["mean", "last"])
    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_the_example_packs_and_loads(self, cell, pooling, tmp_path):
        for both in (False, True):
            model = inject_(
                classifier(cell, pooling=pooling, bidirectional=both),
                DendriticConfig(sparsity=0.6, importance="magnitude"),
            )
            assert list(layout_of(model).modules) == ["encoder"] and layout_of(model).positions == {"encoder": 4}
            score_(model)
            update_(model, 0.6)
            expected = outputs(model, texts())
            compress_(model)
            torch.testing.assert_close(outputs(model, texts()), expected, rtol=1e-4, atol=1e-5)
            model.save_pretrained(tmp_path)
            loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
            assert torch.equal(outputs(loaded, texts()), outputs(model, texts()))
            assert loaded.dendritic_layout == model.dendritic_layout and type(loaded.encoder) is type(model.encoder)
            assert loaded.encoder.outputs.dtype == torch.int64

    @pytest.mark.slow
    @pytest.mark.parametrize("form", ["injected", "packed"])
    def test_a_fresh_process_loads_the_same(self, form, tmp_path):
        model = pruned(tmp_path, form)
        save_file(texts(), tmp_path / "inputs")
        command = [sys.executable, "-c", LOAD, str(tmp_path)]
        done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        torch.testing.assert_close(load_file(tmp_path / "logits")["logits"], outputs(model, texts()))
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()

    def test_an_injected_checkpoint_goes_on(self, tmp_path):
        pruned(tmp_path, "injected")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        backward(model.train(), texts())
        score_(model)
        assert update_(model, 0.7, regrow=0.2).sparsity >= 0.7
        expected = outputs(model.eval(), texts())
        torch.testing.assert_close(outputs(compress_(model), texts()), expected, rtol=1e-4, atol=1e-5)

    def test_an_unpruned_layer_packs_to_the_stock_one(self, tmp_path):
        model = compress_(inject_(classifier(), DendriticConfig(sparsity=0.0)))
        assert type(model.encoder) is nn.LSTM and layout_of(model).modules == {"encoder": Recurrent(8, 8)}
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert type(loaded.encoder) is nn.LSTM and layout_of(loaded) == layout_of(model)

    @pytest.mark.parametrize(
        ("edit", "names"),
        [
            (lambda t: t + 100, "outputs.*ascend"),
            (lambda t: t - 100, "outputs.*ascend"),
            (lambda t: t.flip(1), "outputs.*ascend"),
            (lambda t: torch.zeros_like(t), "outputs.*ascend"),
            (lambda t: t.to(torch.int32), "outputs.*I32"),
            (lambda t: t.float(), "outputs.*F32"),
            (lambda t: t[:, 1:].contiguous(), "outputs.*shape"),
            (lambda t: t.flatten(), "outputs.*shape"),
            (None, "outputs.*exactly once"),
        ],
    )
    def test_hostile_indices(self, edit, names, tmp_path):
        model = pruned(tmp_path, "packed")
        tensors = load_file(tmp_path / "model.safetensors")
        index = tensors.pop("encoder.outputs")
        if edit is not None:
            tensors["encoder.outputs"] = edit(index)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=names):
            type(model).from_pretrained(tmp_path)
        with pytest.raises((CheckpointError, RuntimeError), match="outputs|ignore_mismatched_sizes"):
            type(model).from_pretrained(None, config=model.config, state_dict=tensors)

    @pytest.mark.parametrize(
        ("form", "record"),
        [
            ("packed", {"recurrent": {"hidden": 8, "kept": 7}}),
            ("packed", {"recurrent": {"hidden": 8, "kept": 9}}),
            ("packed", {"recurrent": {"hidden": 2**31 - 1, "kept": 4}}),
            ("packed", {"recurrent": {"hidden": 8, "kept": -1}}),
            ("packed", {"recurrent": {"hidden": 8}}),
            ("packed", {"follower": {"channels": 8}}),
            ("packed", {"form": dict(inputs=6, outputs=8, kept=6, arbors=[8], gather=False, scatter=False)}),
            ("injected", {"segments": {"arbors": 2, "segments": 8, "activity": False}}),
            ("injected", {"segments": {"arbors": 4, "segments": 4, "activity": False}}),
            ("injected", {"segments": {"arbors": 4, "segments": 8, "activity": True}}),
            ("injected", {"recurrent": {"hidden": 8, "kept": 8}}),
        ],
    )
    def test_hostile_records(self, form, record, tmp_path):
        model = pruned(tmp_path, form)
        config = json.loads((tmp_path / "config.json").read_text())
        config["quantization_config"]["modules"]["encoder"] = record
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError):
            type(model).from_pretrained(tmp_path)

    def test_records_that_name_a_module_of_another_kind(self, tmp_path):
        model = pruned(tmp_path, "packed")
        written = json.loads((tmp_path / "config.json").read_text())
        member = {"name": "encoder", "runs": [dict(start=0, size=1, unit=0, count=8)], "axis": 0}
        ends = {"producers": [member], "consumers": [member], "passers": [], "parameters": []}
        group = dict(kind="neurons", units=8, cut=True, **ends)
        for change in (
            {"modules": {"classifier": written["quantization_config"]["modules"]["encoder"]}},
            {"modules": {"embedding": written["quantization_config"]["modules"]["encoder"]}},
            {"groups": [group]},
            {"modules": {"encoder": {"segments": dict(arbors=4, segments=8, activity=False)}}, "groups": [group]},
        ):
            changed = written | {"quantization_config": written["quantization_config"] | change}
            (tmp_path / "config.json").write_text(json.dumps(changed))
            with pytest.raises(CheckpointError):
                type(model).from_pretrained(tmp_path)


class TestTheTrainer:
    @pytest.mark.slow
    @pytest.mark.parametrize(("cell", "pooling"), [("lstm", "mean"), ("gru", "last")])
    def test_twenty_steps_end_packed(self, cell, pooling, tmp_path):
        samples = [
            {"input_ids": ids, "attention_mask": mask, "labels": i % 3}
            for i, (ids, mask) in enumerate(zip(*texts().values(), strict=True))
        ] * 4
        arguments = TrainingArguments(
            str(tmp_path), max_steps=20, per_device_train_batch_size=4, learning_rate=1e-2, save_strategy="no",
            report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
        )  # fmt: skip
        config = DendriticConfig(sparsity=0.6, updates=5, regrow=0.5)
        model = classifier(cell, pooling=pooling)
        trainer = Trainer(model, arguments, train_dataset=samples, callbacks=[DendriticCallback(config)])
        assert type(model.encoder) in (DendriticLSTM, DendriticGRU)
        dense = sum(p.numel() for p in model.encoder.parameters())
        trainer.train()
        assert isinstance(model.encoder, PackedRecurrent) and layout_of(model).packed
        assert sum(p.numel() for p in model.encoder.parameters()) <= 0.4 * dense
        trainer.save_model(str(tmp_path / "small"))
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
        assert torch.equal(outputs(loaded, texts()), outputs(model.eval(), texts()))
