"""Saved by one process, loaded by another: the same tensors, the same outputs, the same bytes when saved again."""

import io
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from helpers.checkpoints import saved
from helpers.compare import every
from helpers.models import FACTORIES, build, images, outputs, roughen
from helpers.sizes import IMAGE, TEXT
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    BertForSequenceClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from optimum.dendritic import (
    CheckpointError,
    DendriticConfig,
    DendriticError,
    compress_,
    inject_,
    mask_,
    score_,
    update_,
)
from optimum.dendritic.layout.records import Follower, Form, Segments
from optimum.dendritic.nn import PackedLayer

pytestmark = pytest.mark.xdist_group("quantizer")  # one worker, or each would make the fixture anew

CASES: dict[str, dict[str, Any]] = {
    "bert": {"name": "bert"},
    "bert, several arbors": {"name": "bert", "arbors": 2, "target_modules": ["query", "output.dense"]},
    "bert, uncut": {"name": "bert", "cut": False},
    "gpt2": {"name": "gpt2"},
    "vit": {"name": "vit", "importance": "activation"},
    "resnet": {"name": "resnet_basic", "floor": 0.02, "sparsity": 0.8},
    "mobilenet": {"name": "mobilenet"},
    "convnext": {"name": "convnext"},
}
NAMES = list(CASES)
FORMS = ["injected", "packed"]

LOAD = """
import sys, json, torch, transformers
from pathlib import Path
from packaging.version import Version
from safetensors.torch import load_file, save_file
import optimum.dendritic
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder)
    model.save_pretrained(folder / "again")
    with torch.no_grad():
        logits = model(**load_file(folder / "inputs"))["logits"]
    save_file({"logits": logits.contiguous()}, folder / "logits")
    torch.save({k: v.clone() for k, v in model.state_dict().items()}, folder / "loaded")
"""
WITHOUT = """
import sys, json, transformers
from pathlib import Path
for folder in map(Path, sys.argv[1:]):
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    try:
        getattr(transformers, architecture).from_pretrained(folder)
    except RuntimeError as error:
        (folder / "refused").write_text(str(error))
assert "optimum.dendritic" not in sys.modules
"""


def run(program: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def same(expected: nn.Module, actual: nn.Module) -> bool:
    old, new = expected.state_dict(), actual.state_dict()
    return old.keys() == new.keys() and every(torch.equal(old[k], new[k]) and old[k].dtype == new[k].dtype for k in old)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Every model in both forms, saved."""
    root, found = tmp_path_factory.mktemp("checkpoints"), {}
    for name in NAMES:
        for form in FORMS:
            folder = root / f"{name}-{form}".replace(", ", "-").replace(" ", "-")
            model, inputs = saved(folder, form=form, **CASES[name])
            save_file(inputs, folder / "inputs")
            found[name, form] = folder, model, inputs
    return found


@pytest.fixture(scope="module")
def loaded(checkpoints):
    """Those that one fresh process has loaded, run and saved again, beside what it has found."""
    run(LOAD, *(folder for folder, _, _ in checkpoints.values()))
    return checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_fresh_process(loaded, name, form):
    folder, model, inputs = loaded[name, form]
    tensors = torch.load(folder / "loaded")
    assert tensors.keys() == model.state_dict().keys()
    assert every(torch.equal(tensors[key], tensor) for key, tensor in model.state_dict().items())
    torch.testing.assert_close(load_file(folder / "logits")["logits"], outputs(model, inputs), rtol=1e-5, atol=1e-5)
    assert (folder / "again" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    if not (name.startswith("bert") and transformers.__version__.startswith("5.0.")):
        # that version saves the LayerNorm of any Bert that it loaded, stock or not, under names of the past
        assert (folder / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_without_the_plugin_packed_models_are_refused(checkpoints):
    folders = [checkpoints[name, "packed"][0] for name in NAMES]
    run(WITHOUT, *folders)
    assert every("ignore_mismatched_sizes" in (folder / "refused").read_text() for folder in folders)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_an_ordinary_model_afterwards(checkpoints, name, form):
    folder, model, _ = checkpoints[name, form]
    again = type(model).from_pretrained(folder)
    assert again.dendritic_layout == model.dendritic_layout
    assert again.config.quantization_config == model.config.quantization_config
    assert isinstance(again.config.quantization_config, dict) and again.is_quantized is False
    assert not {"hf_quantizer", "quantization_method"} & again.__dict__.keys()
    assert every("_is_quantized" not in m.config.__dict__ for m in again.modules() if isinstance(m, PreTrainedModel))
    assert same(again, model) and not again.training
    again.half().float()


def test_the_checkpoints_cover_every_record(checkpoints):
    records = [record for _, model, _ in checkpoints.values() for record in model.dendritic_layout.modules.values()]
    assert {type(record) for record in records} == {Segments, Form, Follower}
    forms = {(r.gather, r.scatter) for r in records if isinstance(r, Form)}
    assert {(False, False), (True, False)} <= forms
    assert any(len(r.arbors) > 1 for r in records if isinstance(r, Form))
    assert Follower(1) in records  # looks like any other layer, if its record does not say so


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(checkpoints, dtype, form, tmp_path):
    folder, model, inputs = checkpoints["bert, several arbors", form]
    again = type(model).from_pretrained(folder, dtype=dtype)
    for key, tensor in again.state_dict().items():
        old = model.state_dict()[key]
        wanted = dtype if old.is_floating_point() and not key.endswith("dendrite_score") else old.dtype
        assert tensor.dtype == wanted and torch.equal(tensor, old.to(wanted))
    torch.testing.assert_close(outputs(again, inputs).float(), outputs(model, inputs), rtol=0.1, atol=0.1)
    again.save_pretrained(tmp_path)
    assert same(again, type(model).from_pretrained(tmp_path, dtype="auto"))


@pytest.mark.parametrize("options", [{"device_map": "cpu"}, {"device_map": "auto"}, {"dtype": "auto"}])
@pytest.mark.parametrize("form", FORMS)
def test_options(checkpoints, form, options):
    for name in ("bert, several arbors", "resnet"):
        folder, model, _ = checkpoints[name, form]
        assert same(type(model).from_pretrained(folder, **options), model)


@pytest.mark.parametrize("form", FORMS)
def test_sharded(checkpoints, form, tmp_path):
    _, model, _ = checkpoints["bert", form]
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert same(type(model).from_pretrained(tmp_path), model)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["bert, several arbors", "gpt2", "vit", "resnet"])
def test_the_bare_model_of_a_head_checkpoint_and_back(checkpoints, name, form, tmp_path):
    folder, model, _ = checkpoints[name, form]
    bare = AutoModel.from_pretrained(folder)
    old, new = model.base_model.state_dict(), bare.state_dict()
    assert every(torch.equal(new[key], tensor) for key, tensor in old.items())
    assert len(bare.dendritic_layout.modules) == len(model.dendritic_layout.modules)
    bare.save_pretrained(tmp_path)
    back = type(model).from_pretrained(tmp_path)
    assert back.dendritic_layout == model.dendritic_layout
    assert every(torch.equal(back.base_model.state_dict()[key], tensor) for key, tensor in old.items())


@pytest.mark.parametrize("form", FORMS)
def test_a_compressed_head_is_left_out_of_the_bare_model(form, tmp_path):
    model, _ = saved(tmp_path, "bert", form, target_modules=["query", "classifier"], floor=0.1)
    bare = AutoModel.from_pretrained(tmp_path)
    names = [name.removeprefix("bert.") for name in model.dendritic_layout.modules if name != "classifier"]
    assert list(bare.dendritic_layout.modules) == names
    if form == "injected":
        head = model.get_submodule("classifier")
        assert bare.dendritic_layout.dense_cost == model.dendritic_layout.dense_cost - 16 * 3 - 3
        assert head.dendrite_mask.numel() and update_(bare, 0.6).sparsity > 0.5


def test_only_the_head_was_compressed(tmp_path):
    saved(tmp_path, "bert", "packed", target_modules=["classifier"])
    bare = AutoModel.from_pretrained(tmp_path)
    assert "dendritic_layout" not in bare.__dict__ and "quantization_config" not in bare.config.to_dict()


@pytest.mark.parametrize("form", FORMS)
def test_names_of_another_version(form, tmp_path):
    """transformers 5.23 renamed the modules of ViT; files, and layouts written before, keep the old names."""
    model, inputs = saved(tmp_path, "vit", form)
    config = (tmp_path / "config.json").read_text()
    old_names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    old_names |= {"o_proj": "output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for new, old in {"vit.layers.": "vit.encoder.layer.", **old_names}.items():
        config = config.replace(new, old)
    (tmp_path / "config.json").write_text(config)
    again = type(model).from_pretrained(tmp_path)
    assert same(again, model) and again.dendritic_layout == model.dendritic_layout
    if form == "injected":
        compress_(again, inputs)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_are_fused_in_the_file(form, tmp_path, monkeypatch):
    """The gate and up projections of a SwiGLU DINOv2 are saved as one tensor, which packed ones cannot be."""
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    config = Dinov2Config(use_swiglu_ffn=True, **size)
    monkeypatch.setitem(FACTORIES, "dinov2", lambda: (Dinov2ForImageClassification(config), images(28)))
    model, _ = saved(tmp_path, "dinov2", form)
    try:
        assert same(type(model).from_pretrained(tmp_path), model)
    except CheckpointError as error:
        assert form == "packed" and "save_original_format=False" in str(error)
        model.save_pretrained(tmp_path, save_original_format=False)
        assert same(type(model).from_pretrained(tmp_path), model)


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet"])
def test_an_injected_model_goes_on(checkpoints, name):
    folder, model, inputs = checkpoints[name, "injected"]
    again = type(model).from_pretrained(folder)
    again.train()
    again(**inputs)["logits"].square().mean().backward()
    score_(again)
    update_(again, 0.5, regrow=0.2)
    mask_(again)
    again.eval()
    expected = outputs(again, inputs)
    compress_(again, inputs)
    torch.testing.assert_close(outputs(again, inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_model_trains(checkpoints, name, tmp_path):
    folder, model, inputs = checkpoints[name, "packed"]
    again = type(model).from_pretrained(folder)
    again.train()
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    again(**inputs)["logits"].square().mean().backward()
    named = dict(again.named_parameters())
    weights = [named[f"{n}.weight"] for n, r in again.dendritic_layout.modules.items() if isinstance(r, Form)]
    assert weights and every(weight.grad is not None for weight in weights)
    optimizer.step()
    again.save_pretrained(tmp_path)
    assert not same(again, model) and same(type(model).from_pretrained(tmp_path), again)


def test_a_loaded_model_with_emptied_layers_can_be_pickled(tmp_path):
    fields = {"sparsity": 0.95, "segment_size": 4096, "floor": 0.0, "exclude_modules": ["pooler.dense"]}
    saved(tmp_path, "bert", "packed", **fields)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    assert any(parameter.numel() == 0 for parameter in model.parameters())
    torch.save(model, io.BytesIO())


def test_trainer_takes_a_loaded_model(checkpoints, tmp_path):
    folder, model, inputs = checkpoints["bert", "packed"]
    again = type(model).from_pretrained(folder)
    samples = [{"input_ids": ids.tolist(), "labels": 1} for ids in inputs["input_ids"]]
    arguments = TrainingArguments(tmp_path, max_steps=1, report_to=[], use_cpu=True, dataloader_pin_memory=False)
    trainer = Trainer(again, arguments, train_dataset=samples)
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    assert same(type(model).from_pretrained(tmp_path / "trained"), again) and not same(model, again)


@pytest.mark.parametrize("form", FORMS)
def test_state_dict_instead_of_files(checkpoints, form):
    _, model, _ = checkpoints["bert", form]
    assert same(type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict()), model)


@pytest.mark.parametrize(
    ("form", "suffix", "edit"),
    [
        ("packed", ".inputs", lambda t: t + 1000),
        ("packed", ".inputs", lambda t: t.flip(-1)),
        ("packed", ".inputs", lambda t: t.to(torch.int32)),
        ("packed", ".inputs", lambda t: t.float()),
        ("packed", ".inputs", lambda t: t[:, :-1].contiguous()),
        ("packed", ".inputs", None),
        ("packed", "query.weight", lambda t: t[:, :-1].contiguous()),
        ("packed", "query.weight", None),
        ("injected", ".dendrite_mask", lambda t: t.logical_and(torch.arange(t.numel()).view_as(t) > 0)),
        ("injected", ".dendrite_mask", lambda t: t.float()),
        ("injected", ".dendrite_mask", None),
    ],
)
def test_a_bad_state_dict(checkpoints, form, suffix, edit):
    _, model, _ = checkpoints["bert, several arbors", form]
    state = dict(model.state_dict())
    name = next(key for key in state if key.endswith(suffix))
    tensor = state.pop(name)
    if edit is not None:
        state[name] = edit(tensor)
    try:
        loaded = type(model).from_pretrained(None, config=model.config, state_dict=state)
    except (CheckpointError, RuntimeError):  # transformers itself raises RuntimeError for a wrong shape
        return
    assert same(loaded, model)  # older versions of transformers cast, here without loss


def test_on_the_fly_is_refused(checkpoints, tmp_path):
    model, _ = build("bert")
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(tmp_path)
    layout = checkpoints["bert", "injected"][1].dendritic_layout.to_dict()
    with pytest.raises(DendriticError, match=r"quantization_config.*call inject_"):
        type(model).from_pretrained(tmp_path, quantization_config=layout)


def test_unpickling_is_refused(checkpoints, tmp_path):
    folder, model, _ = checkpoints["bert", "packed"]
    with pytest.raises(DendriticError, match="weights_only"):
        type(model).from_pretrained(folder, weights_only=False)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        type(model).from_pretrained(tmp_path)


def test_the_layout_is_plain_json(checkpoints):
    for folder, model, _ in checkpoints.values():
        written = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert written["quant_method"] == "optimum-dendritic" and transformers.AutoConfig.from_pretrained(folder)
        assert type(model.dendritic_layout).from_dict(written) == model.dendritic_layout


def test_a_transformers_that_cannot_sort_gates_is_named(monkeypatch, tmp_path):
    """A stand-in for the sorting of transformers 5.0, which `.ci/transformers-5.0` runs for real."""
    saved(tmp_path, "bert", "injected", native=True, sparsity=0.3)
    by_parts = lambda key: [int(part) if part.isdigit() else part for part in key.split(".")]  # noqa: E731
    monkeypatch.setattr("optimum.dendritic.huggingface.checkpoint.rebuild.dot_natural_key", by_parts)
    with pytest.raises(CheckpointError, match="transformers = .* cannot load .* native"):
        BertForSequenceClassification.from_pretrained(tmp_path)


BERTS = [transformers.BertModel, BertForSequenceClassification, transformers.BertForMaskedLM]
VITS = [transformers.ViTModel, transformers.ViTForImageClassification]
HEADS = {
    "bert": (lambda kind: kind(transformers.BertConfig(**TEXT)), BERTS),
    "vit": (lambda kind: kind(transformers.ViTConfig(**IMAGE)), VITS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_a_packed_checkpoint_loads_into_every_other_head_as_a_dense_one_does(name, tmp_path):
    """With a pooler or without one, and with heads compressed, too: the body is the saved one, and a head is new."""
    make, kinds = HEADS[name]
    for saved_kind in kinds:
        model, folder = roughen(make(saved_kind)), tmp_path / saved_kind.__name__
        inject_(model, DendriticConfig(sparsity=0.4, segment_size=4, importance="magnitude", target_modules=".*"))
        score_(model)
        update_(model, 0.4)
        compress_(model).save_pretrained(folder)
        expected = model.base_model.state_dict()
        for kind in kinds:
            loaded = kind.from_pretrained(folder)
            found = loaded.base_model.state_dict()
            shared = found.keys() & expected.keys()
            assert len(shared) > 20 and every(torch.equal(found[key], expected[key]) for key in shared)
            body = set(loaded.base_model.modules())
            new = [] if kind is saved_kind else [module for module in loaded.modules() if module not in body]
            assert not any(isinstance(module, PackedLayer) for module in new)


def test_a_new_head_reads_what_a_narrower_body_leaves(tmp_path):
    model, inputs = saved(tmp_path, "bert", "packed", units="structured")
    width = model.get_input_embeddings().weight.shape[1]
    answering = transformers.BertForQuestionAnswering.from_pretrained(tmp_path, num_labels=2)
    assert answering.qa_outputs.weight.shape == (2, width) and width < 16
    assert torch.equal(answering(**inputs, output_hidden_states=True)[-1][-1], model.bert(**inputs).last_hidden_state)
    answering.save_pretrained(tmp_path / "again")
    again = transformers.BertForQuestionAnswering.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**inputs).start_logits, answering(**inputs).start_logits)
    with pytest.raises(CheckpointError, match=r"decoder.weight has the shape .* Load the body alone"):
        transformers.BertForMaskedLM.from_pretrained(tmp_path)  # whose decoder is as wide as an embedding that shrank


@pytest.mark.slow
@pytest.mark.parametrize("labels", [2, 5])
def test_a_head_for_other_labels_is_new_where_mismatches_are_ignored(labels, tmp_path):
    model, inputs = saved(tmp_path, "vit", "packed", units="structured")
    assert isinstance(model.dendritic_layout.modules["classifier"], Form)
    kind = transformers.ViTForImageClassification
    if Version(transformers.__version__) < Version("5.1"):  # which hands tensors of other shapes on as they are
        with pytest.raises(CheckpointError, match="must have the shape"):
            kind.from_pretrained(tmp_path, num_labels=labels, ignore_mismatched_sizes=True)
        return
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        kind.from_pretrained(tmp_path, num_labels=labels)
    loaded = kind.from_pretrained(tmp_path, num_labels=labels, ignore_mismatched_sizes=True)
    assert outputs(loaded, inputs).shape == (2, labels)
    assert torch.equal(loaded.vit(**inputs).last_hidden_state, model.vit(**inputs).last_hidden_state)
    model, _ = saved(tmp_path / "gathers", "vit", "packed", target_modules=".*")
    with pytest.raises(CheckpointError, match="classifier gathers, and was packed for another number of labels"):
        kind.from_pretrained(tmp_path / "gathers", num_labels=labels)


STRANGER = """
import sys, transformers
assert not any(name.startswith("optimum.dendritic") for name in sys.modules)
transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1], ignore_mismatched_sizes=sys.argv[2] == "1")
"""


@pytest.mark.slow
@pytest.mark.parametrize("ignoring", [False, True])
def test_who_loads_without_the_package_reads_its_name(ignoring, tmp_path):
    """And is stopped by the shapes, unless they asked transformers to go on with random weights."""
    saved(tmp_path, "bert", "packed")
    command = [sys.executable, "-c", STRANGER, str(tmp_path), str(int(ignoring))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Unknown quantization type, got optimum-dendritic" in done.stderr
    assert (done.returncode == 0) == ignoring and "mismatch" in done.stderr.lower()


def test_the_former_name_of_the_method_is_read(tmp_path):
    model, inputs = saved(tmp_path, "bert", "packed")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "optimum-dendritic"
    config["quantization_config"]["quant_method"] = "dendritic"
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = BertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded, inputs), outputs(model, inputs))
