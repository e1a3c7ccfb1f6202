"""What a checkpoint must hold, whoever loads it: masks that agree with the weights, and every tensor of its class."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import pruned, saved
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertModel

from optimum.dendritic import CheckpointError
from optimum.dendritic.huggingface.checkpoint.tensors import check_mask
from optimum.dendritic.huggingface.trainer.resume import refuse_other_masks
from optimum.dendritic.layout.layout import LARGEST, Layout
from optimum.dendritic.state import dendritic_layers

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert") / "injected"
    saved(folder, "bert", "injected", arbors=2)
    return folder


def edited(original: Path, folder: Path, drop: str = "", **config) -> Path:
    """A copy without the tensors whose names begin with `drop`, and with other fields in its config."""
    shutil.copytree(original, folder)
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({name: v for name, v in content.items() if v is not None}))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not drop or not name.startswith(drop)}
    assert not drop or len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class TestPrunedMeansZero:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "shards", "fields"),
        [
            ("bert", "50GB", {}),
            ("bert", "6KB", {}),
            ("gpt2", "50GB", {}),
            ("resnet_basic", "50GB", {}),
            ("bert", "50GB", {"native": True, "sparsity": 0.3}),
        ],
    )
    def test_in_every_form(self, tmp_path, name, shards, fields):
        model, _ = saved(tmp_path / "sound", name, "injected", **fields)
        type(model).from_pretrained(tmp_path / "sound")
        for layer in dendritic_layers(model).values():
            mask = layer.dendrite_mask
            if mask.all():
                continue
            for parameter in layer.segmented().values():
                kept = parameter.detach().clone()
                with torch.no_grad():
                    parameter.add_(0.25)
                model.save_pretrained(tmp_path / "odd", max_shard_size=shards)
                with pytest.raises(CheckpointError, match="dendrite_mask.*must be zero"):
                    type(model).from_pretrained(tmp_path / "odd")
                parameter.data = kept
            break
        else:
            raise AssertionError("nothing was pruned")
        if shards == "6KB":
            assert len(list((tmp_path / "odd").glob("*.safetensors"))) > 1

    def test_of_recurrent_layers(self):
        model, _, _ = pruned("lstm")
        cut = {name: layer for name, layer in dendritic_layers(model).items() if not layer.dendrite_mask.all()}
        assert "rnn" in cut
        for name, layer in cut.items():
            check_mask(name, layer, layer.dendrite_mask, layer.segmented())
            odd = {key: parameter.detach() + 0.25 for key, parameter in layer.segmented().items()}
            with pytest.raises(CheckpointError, match="must be zero"):
                check_mask(name, layer, layer.dendrite_mask, odd)

    def test_a_trainer_that_resumes_refuses_them_too(self, bert):
        model = AutoModelForSequenceClassification.from_pretrained(bert)
        refuse_other_masks(model)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(state)
        state[f"{QUERY}.weight"] += 1
        before = model.get_parameter(f"{QUERY}.weight").clone()
        with pytest.raises(CheckpointError, match="must be zero"):
            model.load_state_dict(state)
        assert torch.equal(before, model.get_parameter(f"{QUERY}.weight"))


class TestNothingMayBeMissing:
    @pytest.mark.parametrize("architectures", [None, [], ["BertModel"], ["BertForTokenClassification"], ["Unknown"]])
    @pytest.mark.parametrize("drop", ["bert.embeddings", "bert.encoder.layer.0.output.LayerNorm.weight"])
    def test_whatever_the_config_calls_the_class(self, bert, tmp_path, architectures, drop):
        folder = edited(bert, tmp_path / "odd", drop, architectures=architectures)
        for kind in (AutoModelForSequenceClassification, BertModel):
            with pytest.raises(CheckpointError, match="missing|architectures"):
                kind.from_pretrained(folder)

    def test_the_body_alone(self, bert, tmp_path):
        BertModel.from_pretrained(bert)
        with pytest.raises(CheckpointError, match="word_embeddings.*missing"):
            AutoModel.from_pretrained(edited(bert, tmp_path / "odd", "bert.embeddings.word_embeddings"))

    @pytest.mark.parametrize("architectures", [None, ["Unknown"]])
    def test_half_a_head(self, bert, tmp_path, architectures):
        folder = edited(bert, tmp_path / "odd", "classifier.bias", architectures=architectures)
        with pytest.raises(CheckpointError, match="classifier.bias|architectures"):
            AutoModelForSequenceClassification.from_pretrained(folder)

    @pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModel])
    @pytest.mark.parametrize("layers", [0, 1])
    def test_a_block_that_the_config_does_without(self, bert, tmp_path, layers, kind):
        folder = edited(bert, tmp_path / "odd", num_hidden_layers=layers)
        with pytest.raises(CheckpointError, match="encoder.layer.*is not a module of"):
            kind.from_pretrained(folder)

    def test_a_new_head_on_a_saved_body_may_be_new(self, bert, tmp_path):
        body = BertModel.from_pretrained(bert)
        body.save_pretrained(tmp_path / "body")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "body")
        assert torch.equal(model.get_parameter(f"{QUERY}.weight"), body.get_parameter(QUERY[5:] + ".weight"))


class TestSizes:
    def test_a_layer_that_the_files_do_not_hold_costs_nothing(self, bert, tmp_path):
        """As wide as a few kilobytes of JSON can say."""
        layout = json.loads((bert / "config.json").read_text())["quantization_config"]
        layout["modules"][QUERY]["segments"] |= {"arbors": 16384, "segments": 16384}
        layout["positions"] = {}
        folder = edited(
            bert,
            tmp_path / "wide",
            hidden_size=16384,
            num_attention_heads=1,
            quantization_config=layout | {"groups": []},
        )
        start = time.process_time()
        with pytest.raises(CheckpointError):
            AutoModelForSequenceClassification.from_pretrained(folder)
        assert time.process_time() - start < 20, "it is some tenths of a second; masks of that size would be a minute"

    def test_a_layout_of_many_megabytes(self, bert):
        layout = json.loads((bert / "config.json").read_text())["quantization_config"]
        assert Layout.from_dict(layout)
        with pytest.raises(CheckpointError, match="at most"):
            Layout.from_dict(layout | {"positions": {f"{QUERY}.{i}": 1 for i in range(LARGEST // 40)}})

    def test_a_module_that_follows_twice(self, tmp_path):
        saved(tmp_path / "cut", "resnet_basic", "injected")
        config = json.loads((tmp_path / "cut/config.json").read_text())
        group = next(g for g in config["quantization_config"]["groups"] if g["passers"])
        group["passers"].append(group["passers"][0])
        folder = edited(tmp_path / "cut", tmp_path / "odd", quantization_config=config["quantization_config"])
        with pytest.raises(CheckpointError, match="passers in common"):
            AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("field", ["task_specific_params", "quantization_config"])
def test_a_config_of_thirty_megabytes_is_refused_by_its_size(bert, tmp_path, field):
    """As a whole, wherever in it they are."""
    config = json.loads((bert / "config.json").read_text())
    padded = (config.get(field) or {}) | {"padding": "x" * 30_000_000}
    with pytest.raises(CheckpointError, match=rf"= '300\d{{5}} characters': must be at most {LARGEST}"):
        AutoModel.from_pretrained(edited(bert, tmp_path / "large", **{field: padded}))


@pytest.mark.parametrize("field", [{"model_type": ["bert"]}, {"architectures": "Bert"}, {"architectures": [["Bert"]]}])
def test_what_the_config_calls_the_model_are_words(bert, tmp_path, field):
    with pytest.raises(CheckpointError, match=rf"{next(iter(field))} = .*must be a"):
        BertModel.from_pretrained(edited(bert, tmp_path / "words", **field))
