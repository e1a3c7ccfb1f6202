"""What is dormant: the core asleep, the larger model awake, and in between what the dial says."""

import copy
import json

import pytest
import torch
from helpers.models import build, outputs
from helpers.selection import masks_at
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from optimum.dendritic import (
    CheckpointError,
    DendriticConfig,
    DendriticError,
    calibrate_dormant_,
    compress_,
    inject_,
    load_dormant_,
    measure,
    prune_,
    save_dormant,
    score_,
    set_wake_rate,
    update_,
    wake_rate,
)
from optimum.dendritic.functional.dormant import add_packs_, margins, pack_norms, quantiles, threshold
from optimum.dendritic.inspection.density import density
from optimum.dendritic.nn import DendriticGroup
from optimum.dendritic.nn.dormant import dormant_of
from optimum.dendritic.sizes import narrowed
from optimum.dendritic.state import gates_of

CONFIG = DendriticConfig(sparsity=0.6, dormant=0.3, importance="magnitude", segment_size=4)
FAMILIES = ["bert", "vit", "resnet_basic", "residual_mlp", "plain_cnn", "lstm"]
GATHERING = ["bert", "vit", "resnet_basic", "llama"]


def injected(name, **changes):
    model, inputs = build(name)
    inject_(model, DendriticConfig(**{**vars(CONFIG), **changes}), example_inputs=inputs)
    score_(model)
    update_(model, 0.6)
    return model, inputs


def packed(name, **changes):
    model, inputs = injected(name, **changes)
    return compress_(model, inputs), inputs


def close(found, expected):
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("units", ["fine", "structured"])
def test_asleep_it_is_the_core_and_awake_the_larger_model(name, units):
    model, inputs = injected(name, units=units)
    larger = outputs(model, inputs)
    with narrowed(model, gates_of(model), masks_at(model, 0.6)):
        core = outputs(model, inputs)
    assert torch.equal(outputs(model, inputs), larger) and not close(core, larger)
    compress_(model, inputs)
    asleep = outputs(model, inputs)
    assert close(asleep, core)
    assert close(outputs(set_wake_rate(model, 1.0), inputs), larger) and dormant_of(model).rate == 1
    assert torch.equal(outputs(set_wake_rate(model, 0.0), inputs), asleep)


@pytest.mark.slow
@pytest.mark.parametrize("name", GATHERING)
def test_rows_are_the_core_or_the_model_with_all_its_inputs(name):
    model, inputs = injected(name)
    core = masks_at(model, 0.6)
    gates = gates_of(model)
    masks = {n: core[n] if isinstance(gate, DendriticGroup) else gate.dendrite_mask.cpu() for n, gate in gates.items()}
    with narrowed(model, gates, masks):
        expected = outputs(model, inputs)
    compress_(model, inputs)
    asleep = outputs(model, inputs)
    set_wake_rate(model, 1.0, by="rows")
    assert dormant_of(model).packs and close(outputs(model, inputs), expected)
    assert not close(expected, asleep)
    assert torch.equal(outputs(set_wake_rate(model, 0.0, by="rows"), inputs), asleep)
    calibrate_dormant_(model, [inputs])
    asleep = outputs(model, inputs)
    found = outputs(set_wake_rate(model, 0.5, by="rows"), inputs)
    assert 0.2 < dormant_of(model).rate < 0.8
    assert not close(found, asleep)


def test_the_formula_of_rows():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((9, 6), (4, 6)))
    packs = [torch.tensor([0, 3]), torch.tensor([5])]
    thresholds = [float(pack_norms(x, pack).median()) for pack in packs]
    y = torch.zeros(9, 4)
    fired = add_packs_(y, x, packs, thresholds, lambda index, part: part @ weight[:, packs[index]].t())
    fires = [x[:, pack].norm(dim=1) > limit for pack, limit in zip(packs, thresholds, strict=True)]
    each = [(x[:, pack] @ weight[:, pack].t()) * fire[:, None] for pack, fire in zip(packs, fires, strict=True)]
    assert torch.allclose(y, sum(each)) and fired == sum(int(fire.sum()) for fire in fires) == 8


def test_a_threshold_is_the_quantile_of_what_was_seen():
    seen = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    for share in (0.05, 0.33, 0.9):
        assert (seen < threshold(quantiles(seen), share)).float().mean() == pytest.approx(share, abs=0.01)
    assert margins(torch.tensor([[3.0, 3.0]])).item() == 0


def test_only_the_inputs_in_doubt_run_again():
    model, inputs = packed("bert")
    many = {name: tensor.repeat(8, 1) for name, tensor in inputs.items()}
    many["input_ids"] = torch.randint(3, 50, many["input_ids"].shape, generator=torch.Generator().manual_seed(2))
    core = outputs(model, many)
    larger = outputs(set_wake_rate(model, 1.0), many)
    calibrate_dormant_(model, [many])
    found = outputs(set_wake_rate(model, 0.25), many)
    doubted = margins(core) < dormant_of(model).threshold
    assert dormant_of(model).rate == doubted.float().mean() == 0.25
    assert torch.equal(found[~doubted], core[~doubted]) and close(found[doubted], larger[doubted])
    labels = torch.zeros(16, dtype=torch.long)
    answer = model(**many, labels=labels)
    assert torch.equal(answer.logits, found)
    assert torch.isclose(answer.loss, torch.nn.functional.cross_entropy(found, labels))
    assert torch.equal(outputs(copy.deepcopy(model), many), found)
    model.train()
    assert not model(**many).logits.isnan().any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "resnet_basic", "llama"])
def test_it_is_saved_apart_and_loaded_where_it_is_wanted(name, tmp_path):
    model, inputs = packed(name)
    calibrate_dormant_(model, [inputs])
    by, core = "rows" if name == "llama" else "doubt", outputs(model, inputs)
    model.save_pretrained(tmp_path)
    alone = (tmp_path / "model.safetensors").stat().st_size
    file = save_dormant(model, tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(outputs(again, inputs), core)
    with pytest.raises(DendriticError, match="has nothing dormant"):
        set_wake_rate(again, 0.1)
    load_dormant_(again, tmp_path)
    for rate in (0.0, 0.3, 1.0):
        expected = outputs(set_wake_rate(model, rate, by=by), inputs)
        assert torch.equal(outputs(set_wake_rate(again, rate, by=by), inputs), expected)
    assert save_dormant(again, tmp_path / "again").read_bytes() == file.read_bytes()
    stored, held = load_file(file), model.state_dict()
    assert not any(torch.equal(tensor, held[key]) for key, tensor in stored.items() if key in held)
    assert alone == (tmp_path / "model.safetensors").stat().st_size
    half = load_dormant_(type(model).from_pretrained(tmp_path, dtype=torch.bfloat16), tmp_path)
    assert {tensor.dtype for tensor in dormant_of(half).own().values()} <= {torch.bfloat16, torch.int64}
    model.to(torch.float64)
    found = set_wake_rate(model, 1.0, by=by)(
        **{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    )
    assert found.logits.dtype == torch.float64


@pytest.mark.slow
def test_measured_with_what_is_dormant():
    model, inputs = packed("bert")
    calibrate_dormant_(model, [inputs])
    core = copy.deepcopy(model)
    vars(core).pop("dendritic_dormant")
    alone = measure(core, inputs, memory=False, seconds=0.01)
    asleep = measure(model, inputs, memory=False, seconds=0.01)
    awake = measure(set_wake_rate(model, 1.0), inputs, baseline=core, memory=False, seconds=0.01)
    half = measure(set_wake_rate(model, 0.5), inputs, memory=False, seconds=0.01)
    assert alone.wake_rate is None and (asleep.wake_rate, half.wake_rate, awake.wake_rate) == (0, 0.5, 1)
    assert asleep.macs == alone.macs < half.macs < awake.macs
    assert asleep.parameters == half.parameters > alone.parameters and asleep.bytes > alone.bytes
    assert "wake rate" in half.table() and half.to_dict()["wake_rate"] == 0.5
    assert "wake_rate" not in alone.to_dict()
    with pytest.raises(DendriticError, match="^compiled = True: cannot be compiled as a whole"):
        measure(core, inputs, baseline=model, memory=False, seconds=0.01, compiled=True)


@pytest.mark.slow
def test_its_memory_is_measured_in_a_fresh_process():
    model, inputs = packed("bert")
    calibrate_dormant_(model, [inputs])
    report = measure(set_wake_rate(model, 0.5, by="rows"), inputs, seconds=0.01)
    assert report.peak_memory_bytes is not None


def test_a_model_that_generates_wakes_by_rows_alone():
    model, inputs = packed("llama")
    with pytest.raises(DendriticError, match="generates text"):
        set_wake_rate(model, 0.1)
    calibrate_dormant_(model, [inputs])
    set_wake_rate(model, 0.5, by="rows")
    ids = inputs["input_ids"]
    cached = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0)
    plain = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False, pad_token_id=0)
    assert torch.equal(cached, plain)


def test_one_shot_and_what_it_refuses():
    model, inputs = build("bert")
    inject_(model, CONFIG, example_inputs=inputs)
    prune_(model, [inputs | {"labels": torch.tensor([0, 1])}], passes=2, rounds=2)
    compress_(model, inputs)
    with pytest.raises(DendriticError, match="^rate = 0.5: nobody has told"):
        set_wake_rate(model, 0.5)
    with pytest.raises(DendriticError, match="^rate = 2"):
        set_wake_rate(model, 2)
    with pytest.raises(DendriticError, match="^by = 'night'"):
        set_wake_rate(model, 0, by="night")
    heads, _ = packed("bert", units="structured")
    with pytest.raises(DendriticError, match="no layer of the core gathers"):
        set_wake_rate(heads, 1, by="rows")
    for wrong in ({"dormant": 0.7}, {"dormant": -0.1}, {"native": True}, {"sprout_rank": 2}):
        with pytest.raises(DendriticError):
            DendriticConfig(**{"sparsity": 0.6, "dormant": 0.3, **wrong})
    with pytest.raises(DendriticError, match="PreTrainedModel"):
        save_dormant(packed("residual_mlp")[0], ".")


def _with(file, change):
    """The file with its tensors and its header changed."""
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        fields = json.loads(opened.metadata()["dendritic_dormant"])
    change(tensors, fields)
    save_file(tensors, file, metadata={"dendritic_dormant": json.dumps(fields)})


GRID = "bert.encoder.layer.0.intermediate.dense.weight#0"
HOSTILE = {
    "index out of range": lambda t, f: t[GRID].__setitem__(-1, 10**6),
    "index twice": lambda t, f: t[GRID].__setitem__(0, t[GRID][1]),
    "rest too short": lambda t, f: t.update({GRID[:-2]: t[GRID[:-2]][1:].clone()}),
    "unknown tensor": lambda t, f: t.update(evil=torch.zeros(1)),
    "missing tensor": lambda t, f: t.pop("bert.encoder.layer.0.output.dense.weight"),
    "another core": lambda t, f: f.update(core="0" * 64),
    "another version": lambda t, f: f.update(version=2),
    "field": lambda t, f: f.update(code="import os"),
    "layout": lambda t, f: f["layout"]["modules"].update({"bert.nothing": next(iter(f["layout"]["modules"].values()))}),
    "margins": lambda t, f: t["#margins"].neg_(),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_file_is_refused(change, tmp_path):
    model, inputs = packed("bert")
    calibrate_dormant_(model, [inputs])
    model.save_pretrained(tmp_path)
    save_dormant(model, tmp_path)
    _with(tmp_path / "dormant.safetensors", change)
    again = type(model).from_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        load_dormant_(again, tmp_path)
    with pytest.raises(DendriticError, match="nothing dormant"):
        dormant_of(again)


def test_a_packing_that_fails_leaves_the_injected_model(monkeypatch):
    model, inputs = injected("bert")
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr("optimum.dendritic.compress.attach_", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compress_(model, inputs)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    monkeypatch.undo()
    compress_(model, inputs)


def test_it_exports_as_its_core():
    model, inputs = packed("bert")
    core = outputs(model, inputs)
    set_wake_rate(model, 1.0)
    program = torch.export.export(model.eval(), (), dict(inputs), strict=False)
    assert close(outputs(program.module(), inputs), core)


@pytest.mark.slow
def test_through_the_hub(session_hub, client):
    from hub import actions
    from hub.server import ALICE

    session_hub.reset()
    core, expected, alone, found = client(actions.push_dormant, "alice/dormant", token=ALICE)
    assert alone == core and found == expected != core


def test_how_often_it_woke_and_what_is_left_of_its_groups_then():
    model, inputs = packed("bert", units="structured")
    calibrate_dormant_(model, [inputs])
    assert wake_rate(set_wake_rate(model, 1.0)) == 0
    model(**inputs)
    assert wake_rate(model) == 1
    found = density(model)
    assert [each.first for each in found.groups] == [each.first for each in found.awake]
    assert sum(each.kept for each in found.groups) < sum(each.kept for each in found.awake)
    assert found.to_dict()["awake"] and "awake" not in density(build("bert")[0]).to_dict()
    with pytest.raises(DendriticError, match="has nothing dormant"):
        wake_rate(build("bert")[0])


def test_a_folder_without_what_is_dormant_is_told(tmp_path):
    model, _ = packed("bert")
    model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_dormant_(type(model).from_pretrained(tmp_path), tmp_path)
