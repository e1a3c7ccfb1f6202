"""A file is believed in nothing: one edit, cut or flipped bit gives one clear error, or a model that is equal."""

import json
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cards import places
from helpers.checkpoints import saved
from helpers.compare import every
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from optimum.dendritic import CheckpointError

pytestmark = pytest.mark.xdist_group("hostile checkpoints")  # one worker, or each would make the fixture anew

Layout = dict[str, Any]
Tensors = dict[str, Tensor]
HUGE = 2**31 - 1
QUERY = "bert.encoder.layer.0.attention.self.query"
DENSE = "bert.encoder.layer.0.intermediate.dense"
OUTPUT = "bert.encoder.layer.0.output.dense"
STACK = "bert.encoder.layer"
STAGE = "resnet.encoder.stages.0.layers.0.layer"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PreTrainedModel]]:
    """`injected`, `gathered` (two arbors) and `scattered` Bert, `cut` ResNet with followers, `stream`, `thin` ViT,
    and a Bert that is `skipping` a block."""
    root = tmp_path_factory.mktemp("originals")
    models = {
        "injected": saved(root / "injected", "bert", "injected", arbors=2, importance="activation"),
        "gathered": saved(
            root / "gathered",
            "bert",
            "packed",
            arbors=2,
            segment_size=2,
            importance="random",
            target_modules=["query"],
        ),
        "scattered": saved(root / "scattered", "bert", "packed", cut=False),
        "native": saved(root / "native", "bert", "injected", native=True, sparsity=0.3),
        "cut": saved(root / "cut", "resnet_basic", "packed"),
        "stream": saved(root / "stream", "vit", "injected", units="structured"),
        "thin": saved(root / "thin", "vit", "packed", units="structured"),
        "skipping": saved(root / "skipping", "bert", "packed", units=["blocks"], sparsity=0.3),
    }
    return {key: (root / key, model) for key, (model, _) in models.items()}


def write(folder: Path, original: Path, layout: Layout | None = None, weights: bytes | Tensors | None = None) -> None:
    """A copy of `original` with another layout, or with other weights."""
    folder.mkdir(exist_ok=True)
    config = json.loads((original / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": layout} if layout else {})))
    weights = (original / "model.safetensors").read_bytes() if weights is None else weights
    if isinstance(weights, bytes):
        (folder / "model.safetensors").write_bytes(weights)
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edited(edit: Callable[..., Any]) -> Callable[[Any], Any]:
    """An edit in place, as a function of the original."""

    def apply(original: Any) -> Any:
        copy = deepcopy(original)
        edit(copy)
        return copy

    return apply


def at(*path: Any, to: Any) -> Callable[[Layout], Layout]:
    """Set one place in a layout."""

    def edit(layout: Layout) -> None:
        for key in path[:-1]:
            layout = layout[key]
        assert not isinstance(layout, dict) or path[-1] in layout or path[-1] == "new"
        layout[path[-1]] = to

    return edited(edit)


def form(name: str, field: str, to: Any) -> Callable[[Layout], Layout]:
    return at("modules", name, "form", field, to=to)


def segments(name: str, field: str, to: Any) -> Callable[[Layout], Layout]:
    return at("modules", name, "segments", field, to=to)


LAYOUTS: list[tuple[str, Callable[[Layout], Layout], str]] = [
    ("gathered", at("version", to=2), "version = 2"),
    ("gathered", at("version", to=True), "version = True"),
    ("gathered", at("new", to=1), "exactly the fields"),
    ("gathered", edited(lambda d: d.pop("groups")), "groups"),
    ("gathered", edited(lambda d: d.pop("version")), "version = None"),
    ("gathered", at("config", "sparsity", to=7), "sparsity = 7"),
    ("gathered", at("config", "new", to=7), "new"),
    ("gathered", at("config", to=None), "config"),
    ("gathered", at("modules", to=[]), "modules"),
    ("gathered", at("modules", to={}), "modules"),
    ("gathered", at("modules", QUERY, to={"code": {"import": "os"}}), "query"),
    ("gathered", at("modules", QUERY, to={}), "query"),
    ("gathered", at("modules", "new", to={"follower": {"channels": 3}}), "new"),
    (
        "gathered",
        at("modules", "new", to={"segments": {"arbors": 1, "segments": 1, "activity": False, "sprout": 0}}),
        "new",
    ),
    (
        "gathered",
        at("modules", QUERY, to={"segments": {"arbors": 1, "segments": 4, "activity": False, "sprout": 0}}),
        "modules",
    ),
    ("gathered", at("modules", QUERY, to={"follower": {"channels": 4}}), "channels"),
    ("gathered", edited(lambda d: d["modules"].update({"bert.pooler": d["modules"][QUERY]})), "bert.pooler"),
    ("gathered", edited(lambda d: d["modules"].update({"": d["modules"][QUERY]})), "modules"),
    (
        "gathered",
        edited(lambda d: d["modules"].update({QUERY.removeprefix("bert."): d["modules"][QUERY]})),
        "twice",
    ),
    ("gathered", form(QUERY, "inputs", HUGE), "inputs"),
    ("gathered", form(QUERY, "inputs", 2**80), "inputs"),
    ("gathered", form(QUERY, "inputs", -1), "inputs"),
    ("gathered", form(QUERY, "inputs", 16.0), "inputs"),
    ("gathered", form(QUERY, "outputs", HUGE), "outputs"),
    ("gathered", form(QUERY, "kept", HUGE), "kept"),
    ("gathered", form(QUERY, "span", 3), "span"),
    ("gathered", form(QUERY, "span", 1), "shape"),
    ("gathered", form(QUERY, "kept", 8), "shape"),
    ("gathered", form(QUERY, "arbors", [HUGE, HUGE]), "arbors"),
    ("gathered", form(QUERY, "arbors", [16]), "shape"),
    ("gathered", form(QUERY, "arbors", []), "arbors"),
    ("gathered", form(QUERY, "arbors", [15, 1]), "arbors"),
    ("gathered", form(QUERY, "arbors", "88"), "arbors"),
    ("gathered", form(QUERY, "gather", False), "gather"),
    ("gathered", form(QUERY, "gather", 1), "gather"),
    ("gathered", form(QUERY, "scatter", True), "outputs.*exactly once"),
    ("scattered", form(DENSE, "scatter", False), "scatter"),
    ("scattered", form(DENSE, "outputs", 23), "scattered into all 24"),
    ("gathered", at("groups", to=[{"kind": "heads"}]), "groups"),
    ("gathered", at("positions", to={QUERY: 6}), "positions"),
    ("gathered", at("dense_cost", to=-1), "dense_cost"),
    ("cut", at("modules", f"{STAGE}.0.normalization", "follower", "channels", to=HUGE), "channels"),
    ("cut", at("modules", f"{STAGE}.0.normalization", "follower", "channels", to=0), "channels"),
    ("cut", at("modules", f"{STAGE}.0.normalization", "follower", "channels", to=1), "shape"),
    ("cut", form(f"{STAGE}.0.convolution", "inputs", 4), "form"),
    ("injected", segments(QUERY, "arbors", HUGE), "arbors"),
    ("injected", segments(QUERY, "arbors", 3), "arbors"),
    ("injected", segments(QUERY, "arbors", 0), "arbors"),
    ("injected", segments(QUERY, "segments", 0), "shape"),
    ("injected", segments(QUERY, "segments", 5), "segments"),
    ("injected", segments(QUERY, "segments", 16), "shape"),
    ("injected", segments(QUERY, "activity", False), "activity"),
    ("injected", at("config", "importance", to="magnitude"), "activity"),
    ("injected", at("config", "budget", to="macs"), "dense_cost"),
    ("injected", at("dense_cost", to=1), "dense_cost"),
    ("injected", edited(lambda d: d["positions"].update(new=1)), "positions"),
    ("injected", edited(lambda d: (d["positions"].pop(QUERY), d["config"].update(budget="macs"))), "positions"),
    ("injected", edited(lambda d: d["groups"].append(d["groups"][0])), "in common"),
    ("injected", at("groups", 0, "consumers", 0, "name", to="new"), "new"),
    ("injected", at("groups", 0, "consumers", 0, "name", to="bert.embeddings"), "one weight"),
    ("injected", at("groups", 0, "consumers", 0, "name", to=DENSE), "groups"),
    ("injected", at("groups", 0, "producers", to=[]), "fed by"),
    ("injected", at("groups", 0, "consumers", to=[]), "consumers"),
    ("injected", at("groups", 0, "kind", to="blocks"), "kind"),
    ("injected", at("groups", 0, "units", to=0), "units"),
    ("injected", at("groups", 0, "units", to=HUGE), "segments"),
    ("injected", at("groups", 0, "cut", to="yes"), "cut"),
    ("injected", at("groups", 0, "producers", 0, "runs", 0, "count", to=HUGE), "count"),
    ("injected", at("groups", 0, "producers", 0, "runs", 0, "size", to=HUGE), "size"),
    ("injected", at("groups", 0, "producers", 0, "runs", 0, "size", to=0), "size"),
    ("injected", at("groups", 0, "producers", 0, "runs", 0, "start", to=1), "start"),
    ("injected", at("groups", 0, "producers", 0, "runs", 0, "unit", to=HUGE), "unit"),
    ("injected", at("groups", 0, "passers", to=[{"name": DENSE, "runs": [], "axis": 0}]), "passer"),
    ("stream", at("groups", 0, "units", to=17), "segments"),
    ("stream", edited(lambda d: d["groups"][0]["consumers"].append(d["groups"][0]["consumers"][1])), "in common"),
    ("stream", edited(lambda d: d["groups"][0]["producers"].append(d["groups"][0]["producers"][0])), "twice"),
    ("stream", edited(lambda d: d["groups"][0]["passers"].append(d["groups"][0]["passers"][0])), "in common"),
    ("stream", edited(lambda d: d["groups"][0]["parameters"].append(d["groups"][0]["parameters"][0])), "in common"),
    ("stream", at("groups", 0, "cut", to=False), "must be cut"),
    ("stream", at("groups", 0, "consumers", 1, "runs", 0, "count", to=17), "ascend"),
    ("stream", at("groups", 0, "consumers", 1, "runs", to=[]), "no run"),
    ("stream", at("groups", 0, "passers", 0, "name", to="new"), "new|modules"),
    ("stream", at("groups", 0, "passers", 0, "name", to="vit.embeddings"), "each channel"),
    ("stream", at("groups", 0, "passers", 0, "axis", to=9), "axis"),
    ("stream", at("groups", 0, "parameters", 0, "name", to="vit.new"), "parameter"),
    ("stream", at("groups", 0, "parameters", 0, "axis", to=3), "axis"),
    ("stream", at("groups", 0, "parameters", 0, "axis", to=0), "ascend"),
    ("stream", at("groups", 0, "parameters", 0, "runs", 0, "size", to=HUGE), "ascend"),
    ("thin", at("parameters", "vit.embeddings.cls_token", to=[1, 1, HUGE]), "part of a parameter"),
    ("thin", at("parameters", "vit.embeddings.cls_token", to=[1, 16]), "part of a parameter"),
    ("thin", at("parameters", "vit.embeddings.cls_token", to=[1, 1, 1]), "shape"),
    ("thin", at("parameters", "new", to=[1]), "new"),
    (
        "injected",
        edited(lambda d: d.update(dials=[{"fields": ["a"], "members": [OUTPUT], "counts": [], "lists": []}])),
        "dials",
    ),
    ("native", edited(lambda d: d.pop("dials")), "dials"),
    ("native", edited(lambda d: d["dials"].pop()), "dials"),
    ("native", edited(lambda d: d["dials"].append(d["dials"][0])), "dials"),
    ("native", at("config", "native", to=False), "dials"),
    ("native", at("dials", 0, "fields", to=[]), "dials"),
    ("native", at("dials", 0, "fields", to=[1]), "fields"),
    ("native", at("dials", 0, "members", to=[]), "dials"),
    ("native", at("dials", 0, "members", 0, to=QUERY), "dials"),
    ("native", edited(lambda d: d["dials"][0]["members"].extend(d["dials"].pop()["members"])), "dials"),
    ("native", at("dials", 0, "members", 0, to="new"), "dials"),
    ("native", at("dials", 0, "counts", to=[2, 1]), "dials"),
    ("native", at("dials", 0, "counts", to=[0]), "dials"),
    ("native", at("dials", 0, "counts", to=[HUGE]), "dials"),
    ("native", at("modules", STACK, to={"stack": {"blocks": 3}}), "stack|blocks"),
    ("native", at("modules", STACK, to={"stack": {"blocks": 0}}), "blocks"),
    ("native", at("modules", QUERY, to={"stack": {"blocks": 1}}), "Linear"),
    ("native", edited(lambda d: d["positions"].update({STACK: 1})), "positions"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("which", "edit", "names"), LAYOUTS, ids=[f"{i}" for i in range(len(LAYOUTS))])
def test_layouts(originals, tmp_path, which, edit, names):
    original, model = originals[which]
    write(tmp_path, original, layout=edit(json.loads((original / "config.json").read_text())["quantization_config"]))
    with pytest.raises(CheckpointError, match=names):
        type(model).from_pretrained(tmp_path)


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return edited(lambda tensors: tensors.update({name: change(tensors[name]).contiguous()}))


def without(name: str) -> Callable[[Tensors], Tensors]:
    return edited(lambda tensors: tensors.pop(name))


def first(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


NORM = f"{STAGE}.0.normalization"
TENSORS: list[tuple[str, Callable[[Tensors], Tensors], str]] = [
    ("gathered", replaced(f"{QUERY}.inputs", lambda t: t + 1000), "inputs"),
    ("gathered", replaced(f"{QUERY}.inputs", first(-1)), "inputs"),
    ("gathered", replaced(f"{QUERY}.inputs", lambda t: t.flip(1)), "inputs"),
    ("gathered", replaced(f"{QUERY}.inputs", lambda t: torch.zeros_like(t)), "inputs"),
    ("gathered", replaced(f"{QUERY}.inputs", lambda t: t.to(torch.int32)), "inputs.*I32"),
    ("gathered", replaced(f"{QUERY}.inputs", lambda t: t.double()), "inputs.*F64"),
    ("gathered", replaced(f"{QUERY}.inputs", lambda t: t.flatten()), "inputs.*shape"),
    ("gathered", without(f"{QUERY}.inputs"), "inputs.*exactly once"),
    ("gathered", edited(lambda t: t.update({f"{QUERY}.outputs": torch.arange(16)})), "outputs.*is not a tensor"),
    ("scattered", replaced(f"{DENSE}.outputs", lambda t: t + 24), "outputs.*ascend"),
    ("scattered", replaced(f"{DENSE}.outputs", lambda t: t.flip(0)), "outputs.*ascend"),
    ("scattered", without(f"{DENSE}.outputs"), "outputs.*exactly once"),
    ("gathered", edited(lambda t: t.update({f"{QUERY}.dendrite_mask": torch.ones(2, 4, dtype=torch.bool)})), "mask"),
    ("gathered", replaced(f"{QUERY}.weight", lambda t: t[:, :-1]), "weight.*shape"),
    ("gathered", replaced(f"{QUERY}.weight", lambda t: t.to(torch.int64)), "weight.*I64"),
    ("gathered", replaced(f"{QUERY}.weight", lambda t: t.to(torch.float8_e4m3fn)), "weight.*F8"),
    ("gathered", replaced(f"{QUERY}.bias", lambda t: t.bool()), "bias.*BOOL"),
    ("gathered", without(f"{QUERY}.weight"), "weight.*exactly once"),
    ("gathered", without(f"{QUERY}.bias"), "bias.*exactly once"),
    ("gathered", without("bert.embeddings.word_embeddings.weight"), "word_embeddings.*missing"),
    ("gathered", without("classifier.bias"), "classifier.*missing"),
    (
        "gathered",
        edited(lambda t: t.update({f"{QUERY}.weight".removeprefix("bert."): t[f"{QUERY}.weight"].clone()})),
        "exactly once",
    ),
    ("cut", without(f"{NORM}.running_mean"), "running_mean.*exactly once"),
    ("cut", replaced(f"{NORM}.running_var", lambda t: t[:-1]), "running_var.*shape"),
    ("cut", replaced(f"{NORM}.num_batches_tracked", lambda t: t.float()), "num_batches_tracked.*F32"),
    ("cut", without("resnet.embedder.embedder.normalization.running_mean"), "running_mean.*missing"),
    ("injected", replaced(f"{QUERY}.dendrite_mask", lambda t: t.to(torch.uint8)), "mask.*U8"),
    ("injected", replaced(f"{QUERY}.dendrite_mask", lambda t: t.t()), "mask.*shape"),
    (
        "injected",
        replaced(f"{QUERY}.dendrite_mask", lambda t: torch.arange(8).view(2, 4) < 5),
        "mask.*equally many",
    ),
    ("injected", without(f"{QUERY}.dendrite_mask"), "mask.*exactly once"),
    ("injected", replaced(f"{QUERY}.dendrite_score", first(float("nan"))), "score.*finite"),
    ("injected", replaced(f"{QUERY}.dendrite_activity", first(float("inf"))), "activity.*finite"),
    ("injected", replaced(f"{QUERY}.dendrite_activity", first(-1.0)), "activity.*negative"),
    ("injected", without(f"{QUERY}.dendrite_activity"), "activity.*exactly once"),
]


@pytest.mark.parametrize(("which", "edit", "names"), TENSORS, ids=[f"{i}" for i in range(len(TENSORS))])
def test_tensors(originals, tmp_path, which, edit, names):
    original, model = originals[which]
    write(tmp_path, original, weights=edit(load_file(original / "model.safetensors")))
    with pytest.raises(CheckpointError, match=names):
        type(model).from_pretrained(tmp_path)


def test_a_packed_layer_without_its_record(originals, tmp_path):
    """A stock layer then: transformers itself (or the loader, for its older versions) finds the shape wrong."""
    original, model = originals["scattered"]
    layout = json.loads((original / "config.json").read_text())["quantization_config"]
    del layout["modules"][DENSE]
    write(tmp_path, original, layout=layout)
    with pytest.raises((CheckpointError, RuntimeError), match="shape|ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 8, 9, 500, -5000, -1])
def test_truncated(originals, tmp_path, length):
    original, model = originals["gathered"]
    write(tmp_path, original, weights=(original / "model.safetensors").read_bytes()[:length])
    with pytest.raises(CheckpointError, match="checkpoint file.*safetensors"):
        type(model).from_pretrained(tmp_path)


def test_appended(originals, tmp_path):
    original, model = originals["gathered"]
    write(tmp_path, original, weights=(original / "model.safetensors").read_bytes() + b"\0" * 8)
    with pytest.raises(CheckpointError, match="checkpoint file.*safetensors"):
        type(model).from_pretrained(tmp_path)


def test_a_tensor_in_two_shards(originals, tmp_path):
    original, model = originals["gathered"]
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    tensors = load_file(original / "model.safetensors")
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    save_file(load_file(last) | {f"{QUERY}.weight": tensors[f"{QUERY}.weight"]}, last, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="exactly once"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("which", ["scattered", "cut", "injected"])
def test_other_shapes_in_config(originals, tmp_path, which):
    """The stock model is built from config.json: it may disagree with the layout as well."""
    original, model = originals[which]
    write(tmp_path, original)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"hidden_sizes": [8, 8]} if which == "cut" else {"intermediate_size": 16, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        type(model).from_pretrained(tmp_path)


def test_an_error_names_field_value_rule_and_remedy(originals, tmp_path):
    original, model = originals["gathered"]
    tensors = load_file(original / "model.safetensors")
    write(tmp_path, original, weights=replaced(f"{QUERY}.inputs", lambda t: t + 1000)(tensors))
    with pytest.raises(CheckpointError) as error:
        type(model).from_pretrained(tmp_path)
    text = str(error.value)
    assert text.startswith(f"{QUERY}.inputs = [10") and "must ascend strictly within [0, 8)" in text
    assert "save the model again" in text


def load_or_refuse(folder: Path, model: PreTrainedModel) -> None:
    """A `CheckpointError`, or a model that is equal."""
    try:
        loaded = type(model).from_pretrained(folder)
    except CheckpointError:
        return
    assert every(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in model.state_dict().items())


@given(data=st.data())
def test_a_flipped_bit_in_the_header(originals, tmp_path_factory, data):
    original, model = originals[data.draw(st.sampled_from(sorted(originals)))]
    content = bytearray((original / "model.safetensors").read_bytes())
    (header,) = struct.unpack("<Q", content[:8])
    content[data.draw(st.integers(0, 8 + header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.getbasetemp() / "flipped"
    write(folder, original, weights=bytes(content))
    load_or_refuse(folder, model)


JSON = st.sampled_from([None, True, False, -1, 0, 1, 2, 3, 8, 16, 0.5, HUGE, 2**70, "", "bert", QUERY, [], [8], {}])


@given(data=st.data())
def test_anything_anywhere_in_the_layout(originals, tmp_path_factory, data):
    original, model = originals[data.draw(st.sampled_from(sorted(originals)))]
    layout = json.loads((original / "config.json").read_text())["quantization_config"]
    path = data.draw(st.sampled_from([path for path in places(layout) if path != ("quant_method",)]))
    folder = tmp_path_factory.getbasetemp() / "layout"
    write(folder, original, layout=at(*path, to=data.draw(JSON))(layout))
    load_or_refuse(folder, model)
