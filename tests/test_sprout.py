"""Sprouts: nothing until they wake, then low-rank dendrites that are paid for, packed, saved and resumed."""

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import assert_same, every
from helpers.models import Inputs, build, outputs
from helpers.packing import target_cost
from helpers.selection import problems, within_budget
from helpers.trainers import StopAt, make_trainer, tensors
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from optimum.dendritic import (
    CheckpointError,
    DendriticCallback,
    DendriticConfig,
    compress_,
    inject_,
    mask_,
    score_,
    update_,
)
from optimum.dendritic.functional.low_rank import factorise, sprout_parameters
from optimum.dendritic.functional.selection import select, total_cost
from optimum.dendritic.layout.records import Form, Segments
from optimum.dendritic.nn import DendriticLayer, PackedLayer, Sprout
from optimum.dendritic.state import dendritic_layers, injected_layout, layout_of
from optimum.dendritic.structure.model_costs import layer_costs
from optimum.dendritic.train_steps import pruning_of

FIELDS = {"sparsity": 0.6, "segment_size": 4, "floor": 0.0, "sprout_rank": 1}
MODELS = ["bert", "gpt2", "vit", "llama", "t5", "concat_mlp", "convnext"]


def injected(name: str, **fields) -> tuple[nn.Module, Inputs]:
    model, inputs = build(name)
    return inject_(model, DendriticConfig(**(FIELDS | fields)), example_inputs=inputs), inputs


def sprouting(model: nn.Module) -> dict[str, DendriticLayer]:
    return {name: layer for name, layer in dendritic_layers(model).items() if layer.sprout is not None}


def step(model: nn.Module, inputs: Inputs, optimizer: torch.optim.Optimizer, sparsity: float | None = None) -> Tensor:
    """One training step, with a mask update if a sparsity is given; the loss before it."""
    optimizer.zero_grad()
    found = model(**inputs)
    loss = (found if isinstance(found, Tensor) else found["logits"]).square().mean()
    loss.backward()
    score_(model)
    if sparsity is not None:
        update_(model, sparsity, regrow=0.2, optimizer=optimizer)
    optimizer.step()
    mask_(model)
    return loss.detach()


def active(name: str, **fields) -> tuple[nn.Module, Inputs]:
    """Pruned in two updates, then trained for some steps."""
    model, inputs = injected(name, **fields)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for sparsity in (None, 0.3, None, injected_layout(model).config.sparsity, None, None, None):
        torch.manual_seed(0)
        step(model, inputs, optimizer, sparsity)
    return model.eval(), inputs


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_injected_equals_stock_bit_for_bit_with_gradients(name, training):
    model, inputs = injected(name)
    stock = build(name)[0].train(training)
    assert sprouting(model)
    for one in (stock, model.train(training)):
        torch.manual_seed(0)
        found = one(**inputs)
        (found if isinstance(found, Tensor) else found["logits"]).square().mean().backward()
    assert torch.equal(outputs(model.eval(), inputs).view(torch.int32), outputs(stock.eval(), inputs).view(torch.int32))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for parameter, tensor in stock.named_parameters():
        assert (tensor.grad is None and gradients[parameter] is None) or torch.equal(tensor.grad, gradients[parameter])
    for layer in sprouting(model).values():
        assert every(p.grad is not None and not p.grad.any() for p in layer.sprout.parameters())


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_an_inactive_sprout_changes_no_bit_whatever_it_holds(zero):
    model, inputs = injected("bert")
    layer = next(iter(sprouting(model).values()))
    x = torch.ones(3, 16)
    with torch.no_grad():
        layer.weight.fill_(zero)
        layer.bias.fill_(zero)
        for parameter in layer.sprout.parameters():
            parameter.fill_(torch.inf)
        expected = F.linear(x, layer.weight, layer.bias)
        assert torch.equal(layer(x).view(torch.int32), expected.view(torch.int32))


@pytest.mark.slow
def test_sprouts_stay_inactive_until_the_final_update():
    model, inputs = injected("bert")
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2, weight_decay=0.1)
    for sparsity in (None, 0.2, None, 0.4, None):
        step(model, inputs, optimizer, sparsity)
        layers = sprouting(model).values()
        assert not any(layer.dendrite_awake or layer.sprout.gate.any() for layer in layers)
    assert any(layer.sprout.up.any() for layer in layers), "what was pruned was taken up"
    step(model, inputs, optimizer, 0.6)
    woken = [layer for layer in layers if layer.dendrite_awake]
    assert woken and every(not layer.sprout.gate.any() or layer in woken for layer in layers)
    for _ in range(3):
        step(model, inputs, optimizer)
    assert every(layer.sprout.gate.any() for layer in woken)
    assert not any(layer.sprout.gate.any() for layer in layers if layer not in woken)


def test_waking_changes_no_output():
    model, inputs = injected("gpt2")
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2)
    for sparsity in (None, 0.3):
        step(model, inputs, optimizer, sparsity)
    update_(model, 0.6)
    woken = [layer for layer in sprouting(model).values() if layer.dendrite_awake]
    model.eval()
    with_sprouts = outputs(model, inputs)
    for layer in woken:
        layer.dendrite_awake.fill_(False)
    assert woken and torch.equal(outputs(model, inputs), with_sprouts)


def test_optimizer_state_of_what_is_made_anew_starts_at_zero():
    model, inputs = injected("bert")
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2, momentum=0.9, weight_decay=0.1)
    for sparsity in (None, 0.3, None, None):
        step(model, inputs, optimizer, sparsity)
    sprouts = [layer.sprout for layer in sprouting(model).values()]
    assert any(optimizer.state[sprout.up]["momentum_buffer"].any() for sprout in sprouts)
    update_(model, 0.6, optimizer=optimizer)
    assert not any(optimizer.state[p]["momentum_buffer"].any() for sprout in sprouts for p in sprout.parameters())


def test_what_was_pruned_is_taken_up_as_the_nearest_of_its_rank():
    model, inputs = injected("bert", regrow=0.0)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.0)
    for sparsity in (None, 0.4):
        before = {name: layer.weight.detach().clone() for name, layer in sprouting(model).items()}
        step(model, inputs, optimizer, sparsity)
    lost_most = 0.0
    for name, layer in sprouting(model).items():
        alive = torch.ones(len(layer.weight), dtype=torch.bool)
        masks = {other: layer.dendrite_mask for other, layer in dendritic_layers(model).items()}
        for link in layer_costs(model)[name].dying_rows():
            alive &= link.alive(masks)
        lost = (before[name] - layer.weight).detach() * alive[:, None]
        norms = layer.dendrite_activity.sqrt()
        left = torch.linalg.svdvals(lost * norms)[1:].square().sum().sqrt()
        error = ((layer.sprout.up @ layer.sprout.down - lost) * norms).norm().item()
        lost_most = max(lost_most, left.item())
        assert error == pytest.approx(left.item(), rel=1e-3, abs=1e-5)
    assert lost_most > 0.1


@given(st.integers(0, 99), st.integers(3, 40), st.integers(3, 40), st.sampled_from([1, 2]), st.booleans())
def test_factors_are_nearer_in_the_weighted_norm_than_any_others(seed, rows, inputs, rank, dead):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, inputs, generator=generator)
    norms = torch.randn(inputs, generator=generator).exp()
    norms[0] = 0 if dead else norms[0]
    up, down = factorise(matrix, norms, rank)

    def distance(up: Tensor, down: Tensor) -> float:
        return ((matrix - up @ down) * norms).norm().item()

    best = torch.linalg.svdvals(matrix * norms)[rank:].square().sum().sqrt().item()
    assert distance(up, down) == pytest.approx(best, rel=2e-3, abs=1e-4)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    others = [(u[:, :rank] * s[:rank], v[:rank])]
    for size in (1e-3, 1e-1, 1.0):
        others.append((up + size * torch.randn(up.shape, generator=generator), down))
        others.append((up, down + size * torch.randn(down.shape, generator=generator)))
    assert every(distance(up, down) <= distance(*other) * 1.002 + 1e-4 for other in others)


@given(st.integers(0, 99), st.sampled_from([1, 3]))
def test_factors_are_balanced_repeatable_and_finite(seed, rank):
    matrix = torch.randn(20, 12, generator=torch.Generator().manual_seed(seed))
    norms = torch.ones(12)
    random = torch.get_rng_state()
    up, down = factorise(matrix, norms, rank)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-3)
    again = factorise(matrix.clone(), norms, rank)
    assert torch.equal(up, again[0]) and torch.equal(down, again[1])
    spoilt = matrix.clone()
    spoilt[0, 0] = torch.nan
    for hard in (torch.zeros(20, 12), spoilt, torch.ones(20, 12)):
        for weights in (norms, torch.zeros(12)):
            assert every(factor.isfinite().all() for factor in factorise(hard, weights, rank))
    up, down = factorise(torch.ones(20, 12), norms, rank)
    assert torch.allclose(up @ down, torch.ones(20, 12), atol=1e-4)


def test_a_large_matrix_is_factored_almost_as_well_as_by_a_full_decomposition():
    generator = torch.Generator().manual_seed(0)
    matrix, norms = torch.randn(300, 200, generator=generator), torch.rand(200, generator=generator)
    best = torch.linalg.svdvals(matrix * norms)[4:].square().sum().sqrt()
    up, down = factorise(matrix, norms, 4)
    assert ((matrix - up @ down) * norms).norm() <= 1.005 * best


@pytest.mark.slow
@pytest.mark.parametrize("arbors", [1, 2])
@pytest.mark.parametrize("budget", ["params", "macs"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "llama", "t5"])
def test_masked_equals_packed_and_the_budget_is_met_as_counted_there(name, budget, arbors):
    model, inputs = active(name, budget=budget, arbors=arbors)
    layout, names, costs = layout_of(model), list(dendritic_layers(model)), layer_costs(model)
    masks = {layer: module.dendrite_mask for layer, module in dendritic_layers(model).items()}
    paying = {layer for layer in names if costs[layer].sprout_cost(masks, layer)}
    assert paying == {layer for layer, module in sprouting(model).items() if module.dendrite_awake} and paying
    report, expected = pruning_of(model), outputs(model, inputs)
    assert report.sparsity == 1 - total_cost(masks, costs) / layout.dense_cost >= 0.6
    deaf = {
        layer for layer in paying if not dendritic_layers(model)[layer].sprout.gate.any()
    }  # query and key both dead
    unused = sum(costs[layer].sprout_cost(masks, layer) for layer in deaf)
    compress_(model, inputs)
    found = outputs(model, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    grown = {layer: module for layer in names if isinstance(module := model.get_submodule(layer), PackedLayer)}
    grown = {layer: module.sprout for layer, module in grown.items() if module.sprout is not None}
    assert grown.keys() == paying - deaf and grown and every(isinstance(sprout, Sprout) for sprout in grown.values())
    cost = target_cost(model, names, layout.positions if budget == "macs" else None)
    assert cost == total_cost(masks, costs) - unused
    assert not any("dendrite" in key for key in model.state_dict())
    for layer, sprout in grown.items():
        form = layout_of(model).modules[layer]
        assert isinstance(form, Form) and form.sprout == 1 and not form.plain
        parts = sum(parameter.numel() for parameter in sprout.parameters())
        assert parts == sprout_parameters(1, form.inputs, sum(form.arbors))


@pytest.mark.slow
@given(problems(), st.integers(1, 20), st.integers(1, 5))
def test_a_sprout_is_paid_for_where_more_was_pruned_and_the_budget_still_holds(problem, sprout, sprout_row):
    scores, masks, plain, budget, floor, regrown = problem
    costs = {name: replace(cost, sprout=sprout, sprout_row=sprout_row) for name, cost in plain.items()}
    expected = total_cost(masks, plain)
    for name, cost in costs.items():
        alive, size = costs[name].alive_rows(masks), cost.rows // len(masks[name])
        pruned = sum(int((~masks[name][row // size]).sum()) for row in range(cost.rows) if alive[row])
        price = sprout + sprout_row * int(alive.sum())
        expected += price if pruned * cost.segment_size * cost.per_weight > price else 0
    assert total_cost(masks, costs) == expected
    changed = (scores, masks, costs, budget, floor, regrown)
    chosen = select(*changed)
    assert within_budget(chosen, costs, budget, floor)
    less = select(scores, masks, costs, budget / 2, floor, regrown)
    assert every(not (less[name] & ~chosen[name]).any() for name in masks)
    dense = {name: torch.ones_like(mask) for name, mask in masks.items()}
    assert total_cost(dense, costs) == total_cost(dense, plain)


def test_packed_sprouts_lose_the_rows_that_died_with_their_groups():
    model, inputs = active("bert")
    compress_(model, inputs)
    forms = layout_of(model).modules
    at = "bert.encoder.layer.{}.{}"
    inner = [forms[at.format(i, "intermediate.dense")] for i in (0, 1)]
    heads = [forms[at.format(i, f"attention.self.{part}")] for i in (0, 1) for part in ("query", "key", "value")]
    assert any(form.sprout and form.outputs < 24 and not form.scatter for form in inner)
    assert any(form.sprout and form.outputs < 16 for form in heads) or every(form.outputs == 16 for form in heads)


def test_packed_sprouts_train_on():
    model, inputs = active("gpt2")
    compress_(model.train(), inputs)
    sprouts = [module for module in model.modules() if isinstance(module, Sprout)]
    before = [copy.deepcopy(sprout.state_dict()) for sprout in sprouts]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model(**inputs)["logits"].square().mean().backward()
    optimizer.step()
    assert sprouts and every(
        any((p != old[n]).any() for n, p in s.named_parameters()) for s, old in zip(sprouts, before, strict=True)
    )


def test_a_sprout_that_never_learned_is_dropped():
    model, inputs = injected("bert")
    step(model.train(), inputs, torch.optim.SGD(model.parameters(), lr=0.1))
    update_(model, 0.6)
    assert any(layer.dendrite_awake for layer in sprouting(model).values())
    compress_(model.eval(), inputs)
    assert every(record.sprout == 0 for record in layout_of(model).modules.values())
    assert not any(isinstance(module, Sprout) for module in model.modules())


def test_only_linear_layers_whose_pruned_inputs_still_arrive_get_sprouts(caplog):
    with caplog.at_level(logging.INFO, "optimum.dendritic.inject"):
        model, _ = injected("bert")
    found = {name.removeprefix("bert.encoder.layer.0.") for name in sprouting(model) if ".0." in name}
    parts = {f"attention.self.{part}" for part in ("query", "key", "value")}
    assert found == parts | {"intermediate.dense"}
    assert "bert.encoder.layer.0.output.dense gets no sprout: the inputs that are pruned" in caplog.text
    assert not sprouting(injected("plain_cnn")[0]).keys() & {"conv1", "conv2"}
    wide, _ = injected("bert", sprout_rank=8)
    assert not sprouting(wide).keys() & {f"bert.encoder.layer.0.{part}" for part in parts}
    records = layout_of(model).modules
    for name, record in records.items():
        assert isinstance(record, Segments) and record.sprout == (1 if name in sprouting(model) else 0)
        assert record.activity == (name in sprouting(model))


def test_without_a_rank_there_is_nothing_new():
    model, _ = injected("bert", sprout_rank=0)
    assert not sprouting(model)
    assert not any("sprout" in key or "awake" in key for key in model.state_dict())
    assert every(record.sprout == 0 and not record.activity for record in layout_of(model).modules.values())


def test_dense_cost_leaves_sprouts_out_and_nothing_is_paid_before_pruning():
    with_sprouts, without = injected("bert")[0], injected("bert", sprout_rank=0)[0]
    assert layout_of(with_sprouts).dense_cost == layout_of(without).dense_cost
    assert pruning_of(with_sprouts).sparsity == 0


@pytest.mark.slow
def test_a_resumed_training_is_bit_exact():
    def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: list[float | None]) -> None:
        for sparsity in steps:
            torch.manual_seed(0)
            step(model, inputs, optimizer, sparsity)

    plan: list[float | None] = [None, 0.2, None, 0.4, None, 0.6, None, None]
    whole, inputs = injected("bert")
    optimizer = torch.optim.AdamW(whole.train().parameters(), lr=1e-2)
    for stop in range(1, len(plan)):
        run(whole, optimizer, plan[stop - 1 : stop])
        resumed, _ = injected("bert")
        resumed.load_state_dict(whole.state_dict())
        other = torch.optim.AdamW(resumed.train().parameters(), lr=1e-2)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        continued = copy.deepcopy((whole, optimizer))
        run(resumed, other, plan[stop:])
        run(*continued, plan[stop:])
        assert_same(tensors(continued[0]), tensors(resumed))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["injected", "packed"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_saved_equals_loaded(name, form, tmp_path):
    model, inputs = active(name)
    if form == "packed":
        compress_(model, inputs)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_same(tensors(model), tensors(loaded))
    assert layout_of(loaded) == layout_of(model) and torch.equal(outputs(loaded, inputs), outputs(model, inputs))
    assert any(isinstance(module, Sprout) for module in loaded.modules())
    if form == "injected":
        expected = outputs(loaded, inputs)
        torch.testing.assert_close(outputs(compress_(loaded, inputs), inputs), expected, rtol=1e-4, atol=1e-4)


QUERY, OUTPUT = (f"bert.encoder.layer.0.{part}" for part in ("attention.self.query", "output.dense"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "name", "field", "value"),
    [
        ("segments", QUERY, "sprout", 3),
        ("segments", QUERY, "sprout", 2**31 - 1),
        ("segments", QUERY, "sprout", 0),
        ("segments", OUTPUT, "sprout", 1),
        ("segments", QUERY, "activity", False),
        ("form", None, "sprout", 3),
        ("form", None, "sprout", 2**31 - 1),
        ("form", None, "sprout", 0),
    ],
)
def test_a_layout_that_lies_about_sprouts_is_refused(form, name, field, value, tmp_path):
    model, inputs = active("bert")
    if form == "form":
        compress_(model, inputs)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    modules = config["quantization_config"]["modules"]
    record = modules[name or next(key for key, kind in modules.items() if kind[form]["sprout"])][form]
    assert record[field] != value
    record[field] = value
    if (name, field) == (OUTPUT, "sprout"):
        record["activity"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="sprout|activity"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.slow
def test_autocast_and_half_precision():
    model, inputs = active("bert")
    packed = compress_(copy.deepcopy(model), inputs)
    seen: dict[str, list[torch.dtype]] = {}
    for one in (build("bert")[0], model, packed):
        for name in layout_of(packed).modules:
            note = lambda m, a, output, name=name: seen.setdefault(name, []).append(output.dtype)  # noqa: E731
            one.get_submodule(name).register_forward_hook(note)
        with torch.autocast("cpu", torch.bfloat16):
            outputs(one, inputs)
    assert every(len(set(dtypes)) == 1 and len(dtypes) == 3 for dtypes in seen.values())
    half = model.to(torch.bfloat16).train()
    half(**inputs)["logits"].mean().backward()
    update_(half, 0.7)
    assert outputs(compress_(half.eval(), inputs), inputs).isfinite().all()


def test_a_compiled_model_feels_the_waking():
    model, inputs = injected("residual_mlp", sprout_rank=1)
    assert sprouting(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(**inputs), model(**inputs))
    layer = next(iter(sprouting(model).values()))
    with torch.no_grad():
        for parameter in layer.sprout.parameters():
            parameter.fill_(0.5)
        before = compiled(**inputs)
        layer.dendrite_awake.fill_(True)
        assert not torch.equal(compiled(**inputs), before) and torch.equal(compiled(**inputs), model(**inputs))


def text_data() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(3, 50, (6,), generator=generator), "labels": i % 3} for i in range(32)]


class TestTrainer:
    CONFIG = DendriticConfig(sparsity=0.5, updates=5, regrow=0.3, segment_size=4, sprout_rank=2)

    def trainer(self, folder, name, callbacks, **settings):
        model, _ = build(name)
        trainer = make_trainer(folder, callbacks, model=model, **settings)
        data = text_data()
        if name == "gpt2":
            data = [sample | {"labels": sample["input_ids"]} for sample in data]
        trainer.train_dataset = trainer.eval_dataset = data
        return trainer

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["bert", "gpt2"])
    def test_ends_packed_within_the_budget_with_sprouts(self, tmp_path, name):
        trainer = self.trainer(tmp_path, name, [DendriticCallback(self.CONFIG)])
        start = layout_of(trainer.model)
        trainer.train()
        assert layout_of(trainer.model).packed and any(isinstance(m, Sprout) for m in trainer.model.modules())
        assert target_cost(trainer.model, list(start.modules), None) <= 0.5 * start.dense_cost
        assert trainer.evaluate()["eval_loss"] > 0

    @pytest.mark.slow
    @pytest.mark.parametrize("stop", [8, 16])
    def test_resumed_equals_uninterrupted(self, tmp_path, stop):
        saving = {"save_strategy": "steps", "save_steps": 4}
        whole = self.trainer(tmp_path / "whole", "bert", [DendriticCallback(self.CONFIG)], **saving)
        whole.train()
        parts = [DendriticCallback(self.CONFIG), StopAt(stop)]
        self.trainer(tmp_path / "parts", "bert", parts, **saving).train()
        resumed = self.trainer(tmp_path / "parts", "bert", [DendriticCallback(self.CONFIG)], **saving)
        resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
        assert layout_of(resumed.model).packed
        assert_same(tensors(whole.model), tensors(resumed.model))
