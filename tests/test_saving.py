"""What is saved for the Hub loads: fused tensors are taken apart, and a stub is added only where it can work."""

import json

import pytest
import torch
from helpers.checkpoints import saved
from helpers.models import FACTORIES, build, images, outputs
from transformers import Dinov2Config, Dinov2ForImageClassification, PreTrainedModel

from optimum.dendritic import CheckpointError, DendriticError
from optimum.dendritic.huggingface.checkpoint.auto_class import load
from optimum.dendritic.huggingface.checkpoint.rebuild import check_saved
from optimum.dendritic.huggingface.checkpoint.save import STUB, check_remote_code, save


@pytest.mark.parametrize("form", ["injected", "packed"])
def test_tensors_that_the_old_format_fuses(form, tmp_path, monkeypatch):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    config = Dinov2Config(use_swiglu_ffn=True, **size)
    monkeypatch.setitem(FACTORIES, "dinov2", lambda: (Dinov2ForImageClassification(config), images(28)))
    model, inputs = saved(tmp_path / "stock", "dinov2", form)
    if form == "packed":
        with pytest.raises(CheckpointError, match="fuses it"):
            check_saved(model, tmp_path / "stock")
    save(model, tmp_path / "ours")
    assert torch.equal(outputs(load(str(tmp_path / "ours")), inputs), outputs(model, inputs))


def test_a_folder_that_would_not_load_is_told(tmp_path):
    model, _ = saved(tmp_path, "bert", "packed")
    check_saved(model, tmp_path)
    saved(tmp_path, "bert", "packed", sparsity=0.2)
    with pytest.raises(CheckpointError, match="bert.encoder"):
        check_saved(model, tmp_path)


def test_the_stub_names_the_class_and_the_body(tmp_path):
    model, inputs = saved(tmp_path / "plain", "bert", "packed")
    save(model, tmp_path / "ours", remote_code=True)
    names = json.loads((tmp_path / "ours" / "config.json").read_text())["auto_map"]
    module = STUB.removesuffix(".py")
    assert names["AutoModelForSequenceClassification"] == f"{module}.BertForSequenceClassification"
    assert names["AutoModel"] == f"{module}.BertModel"
    defined: dict = {}
    exec((tmp_path / "ours" / STUB).read_text(), defined)
    assert issubclass(defined["BertForSequenceClassification"], type(model))
    assert "auto_map" not in model.config.to_dict(), "the model itself is left as it is"
    assert torch.equal(outputs(load(str(tmp_path / "ours")), inputs), outputs(model, inputs)), "and no trust is needed"


def test_a_stub_cannot_import_what_is_not_in_transformers():
    class Own(PreTrainedModel):
        def __init__(self) -> None:
            """Nothing of it is needed."""

    with pytest.raises(DendriticError, match="remote_code = True.*Own"):
        check_remote_code(Own())
    check_remote_code(build("bert")[0])


def test_the_native_form_is_saved_as_the_stock_model_that_it_is(tmp_path):
    model, inputs = saved(tmp_path / "stock", "bert", "packed", native=True, sparsity=0.4, floor=0.0)
    save(model, tmp_path / "ours")
    assert "quantization_config" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    assert torch.equal(outputs(load(str(tmp_path / "ours")), inputs), outputs(model, inputs))
    with pytest.raises(DendriticError, match="remote_code = True: the native form"):
        check_remote_code(model)
