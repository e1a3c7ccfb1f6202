"""A speed-up or a latency as the target, on a clock that counts products, so that no test depends on the machine."""

import json

import pytest
import torch
from helpers.clock import Clock
from helpers.compare import every
from helpers.models import build
from helpers.trainers import StopAt, make_dataset, make_model, make_trainer, tensors

from optimum.dendritic import (
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    Pruner,
    compress_,
    inject_,
    prune_,
    target_sparsity,
    update_,
)
from optimum.dendritic.efficiency import stopwatch
from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import count_macs
from optimum.dendritic.functional.selection import total_cost
from optimum.dendritic.layout.layout import Layout
from optimum.dendritic.state import gates_in, injected_layout, layers_in
from optimum.dendritic.structure import time_cache, time_correction, time_table, timed_runs
from optimum.dendritic.structure.model_costs import costs_in
from optimum.dendritic.structure.ranking import masks_of

MODELS = [("bert", "structured"), ("llama", "fine"), ("resnet_bottleneck", "structured"), ("lstm", "fine")]
BESIDE = {"importance": "random", "segment_size": 2, "floor": 0.0}


@pytest.fixture(autouse=True)
def clock(monkeypatch, tmp_path):
    found = Clock()
    monkeypatch.setattr(stopwatch, "reading", found)
    monkeypatch.setattr(stopwatch, "SHORT", 0.0)
    monkeypatch.setattr(stopwatch, "RUNS", 1)  # this clock has no noise
    monkeypatch.setattr(timed_runs, "TURNS", 1)
    monkeypatch.setattr(time_correction, "RUNS", 1)
    monkeypatch.setattr(time_table, "SHARES", (0.125, 1.0))  # and is linear in sizes
    monkeypatch.setattr(time_cache, "folder", lambda: tmp_path)
    with found.counter:
        yield found


def macs(model, inputs):
    return count_macs(model, Batch.of(inputs))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "units"), MODELS)
def test_a_packed_model_is_as_much_faster_as_was_asked_for(name, units):
    model, inputs = build(name)
    dense = macs(model, inputs)
    inject_(model, DendriticConfig(speedup=1.6, units=units, **BESIDE), example_inputs=inputs)
    for part in (0.5, 0.9, 1.0):
        update_(model, part * target_sparsity(model))
    compress_(model, inputs)
    assert dense / macs(model, inputs) == pytest.approx(1.6, rel=0.1)


@pytest.mark.slow
def test_a_latency_is_a_share_of_the_dense_one():
    times = []
    for target in ({"speedup": 1.4}, {"latency_ms": 0.0}):
        model, inputs = build("bert")
        target = target if not times else {"latency_ms": 0.7 * times[0].dense_ms}
        inject_(model, DendriticConfig(**target, **BESIDE), example_inputs=inputs)
        times.append(injected_layout(model).times)
    assert times[0] == times[1] and target_sparsity(model) == pytest.approx(0.3, abs=1e-6)
    model, inputs = build("bert")
    with pytest.raises(DendriticError, match=r"^latency_ms = 1000\.0: the dense model has .* already"):
        inject_(model, DendriticConfig(latency_ms=1e3, **BESIDE), example_inputs=inputs)


@pytest.mark.slow
def test_what_the_table_has_wrong_is_corrected_by_the_last_update(clock, monkeypatch):
    model, inputs = build("resnet_bottleneck")
    dense = macs(model, inputs)
    inject_(model, DendriticConfig(speedup=1.6, units="structured", **BESIDE), example_inputs=inputs)
    layout = injected_layout(model)
    wrong = layout.to_dict()
    wrong["times"]["rest"] = layout.dense_cost  # as much again, which nothing takes away
    wrong |= {"dense_cost": 2 * layout.dense_cost, "allowed": round(2 * layout.dense_cost / 1.6)}
    model.__dict__["dendritic_layout"] = Layout.from_dict(wrong)
    update_(model, target_sparsity(model))
    times = injected_layout(model).times
    compress_(model, inputs)
    assert times.counted / times.measured == pytest.approx(0.5, rel=0.2)
    assert dense / macs(model, inputs) == pytest.approx(1.6, rel=0.1)


def test_a_model_that_is_no_faster_yet_is_not_asked_for_all_of_it(monkeypatch):
    """Half way it takes as long as before: what is missing is shared out over the rest of the climb."""
    model, inputs = build("resnet_bottleneck")
    inject_(model, DendriticConfig(speedup=1.6, units="structured", **BESIDE), example_inputs=inputs)
    aim = target_sparsity(model)
    monkeypatch.setattr(time_correction, "paired_share", lambda *_: 0.98)
    update_(model, 0.5 * aim)
    half = counted(model)
    update_(model, 0.7 * aim)  # which measures nothing
    assert 0.5 * aim < half < counted(model) < 0.5  # in proportion it would be 0.88


def counted(model):
    """The part of the time that is gone, as the table counts it."""
    layout = injected_layout(model)
    layers = layers_in(model, layout)
    masks = masks_of(gates_in(model, layout, layers))
    return 1 - total_cost(masks, costs_in(model, layers, layout)) / layout.dense_cost


def test_narrow_inputs_are_timed_in_the_format_of_the_model(monkeypatch):
    model, inputs = build("resnet_bottleneck")
    model.to(memory_format=torch.channels_last)
    timed, call = [], time_table._call
    monkeypatch.setattr(time_table, "_call", lambda layer, x: (timed.append(x), call(layer, x))[1])
    inject_(model, DendriticConfig(speedup=1.6, units="structured", **BESIDE), example_inputs=inputs)
    wide = [x for x in timed if x.dim() == 4 and min(x.shape[1:]) > 1 and x.shape[1] != 3]
    assert len(wide) > 4 and every(x.is_contiguous(memory_format=torch.channels_last) for x in wide)


@pytest.mark.slow
def test_one_shot_reaches_it():
    model, inputs = build("bert")
    dense = macs(model, inputs)
    batch = inputs | {"labels": torch.tensor([0, 1])}
    inject_(model, DendriticConfig(speedup=1.5, segment_size=2), example_inputs=inputs)
    compress_(prune_(model, [batch]), inputs)
    assert dense / macs(model, inputs) == pytest.approx(1.5, rel=0.1)


@pytest.mark.slow
def test_a_table_is_measured_once_and_then_read(clock, tmp_path, caplog):
    tables = []
    for _ in range(2):
        model, inputs = build("bert")
        before = clock.readings
        inject_(model, DendriticConfig(speedup=1.5, **BESIDE), example_inputs=inputs)
        tables.append((injected_layout(model).times, clock.readings - before))
    assert tables[0][0] == tables[1][0] and tables[0][1] > 0 == tables[1][1]
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text()[:100])
    model, inputs = build("bert")
    inject_(model, DendriticConfig(speedup=1.5, **BESIDE), example_inputs=inputs)
    assert injected_layout(model).times == tables[0][0] and json.loads(file.read_text())
    model, inputs = build("bert")
    longer = {name: value.repeat(1, 2) for name, value in inputs.items()}
    inject_(model, DendriticConfig(speedup=1.5, **BESIDE), example_inputs=inputs, timed_on=longer)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_an_injected_layout_keeps_its_table():
    model, inputs = build("bert")
    inject_(model, DendriticConfig(speedup=1.5, **BESIDE), example_inputs=inputs)
    layout = injected_layout(model)
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    update_(model, target_sparsity(model))
    compress_(model, inputs)
    assert "times" not in model.dendritic_layout.to_dict()


@pytest.mark.parametrize(("field", "value"), [("native", True), ("sprout_rank", 2)])
def test_what_has_no_measured_price_is_refused_beside_a_time(field, value):
    with pytest.raises(DendriticError, match=f"^{field} = .*has no measured price"):
        DendriticConfig(speedup=2, **{field: value})


@pytest.mark.slow
def test_a_pruner_reaches_it_and_resumes():
    runs = []
    for stop in (None, 6):
        model = make_model()
        batch = {
            name: torch.stack([torch.as_tensor(s[name]) for s in make_dataset()[:4]])
            for name in ("pixel_values", "labels")
        }
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        config = DendriticConfig(speedup=1.5, updates=4, segment_size=2)
        pruner = Pruner(model, config, steps=10, optimizer=optimizer, example_inputs=batch)
        for step in range(10):
            if step == stop:
                saved, weights = pruner.state_dict(), tensors(model)
                model = make_model()
                optimizer = torch.optim.SGD(model.parameters(), 0.01)
                pruner = Pruner(model, config, steps=10, optimizer=optimizer, example_inputs=batch)
                pruner.load_state_dict(json.loads(json.dumps(saved)))
                model.load_state_dict(weights)
            model(**batch).loss.backward()
            pruner.before_step()
            optimizer.step()
            pruner.after_step()
            optimizer.zero_grad()
        runs.append(tensors(pruner.pack()))
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.slow
def test_a_trainer_reaches_it_and_resumes(tmp_path):
    pixels = {"pixel_values": make_dataset()[0]["pixel_values"][None]}
    dense = macs(make_model().eval(), pixels)
    config = DendriticConfig(speedup=1.25, updates=4, units="structured")
    whole = make_trainer(tmp_path / "a", [DendriticCallback(config, example_inputs=pixels)])
    whole.train()
    assert dense / macs(whole.model.eval(), pixels) == pytest.approx(1.25, rel=0.1)
    changes = {"save_strategy": "steps", "save_steps": 8}
    make_trainer(tmp_path / "b", [DendriticCallback(config, example_inputs=pixels), StopAt(8)], **changes).train()
    again = make_trainer(tmp_path / "b", [DendriticCallback(config, example_inputs=pixels)], **changes)
    again.train(resume_from_checkpoint=True)
    expected, found = tensors(whole.model), tensors(again.model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
