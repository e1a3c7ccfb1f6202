"""Pruning while training: pruned means zero, what returns starts afresh, and bad gradients poison nothing."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from helpers.compare import every
from helpers.models import build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from optimum.dendritic import DendriticConfig, DendriticError, inject_, mask_, score_, update_
from optimum.dendritic.functional.selection import total_cost, unit_cost
from optimum.dendritic.functional.tiles import over_tiles
from optimum.dendritic.state import dendritic_layers, layout_of
from optimum.dendritic.structure.model_costs import layer_costs
from optimum.dendritic.train_steps import pruning_of, update_plan

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def prepared(name: str = "plain_cnn", **fields) -> tuple[nn.Module, dict]:
    model, inputs = build(name)
    fields = {"sparsity": 0.6, "segment_size": 4, "arbors": 2, "floor": 0.05} | fields
    return inject_(model, DendriticConfig(**fields), example_inputs=inputs).train(), inputs


def backward(model: nn.Module, inputs: dict) -> None:
    model.zero_grad()
    found = model(**inputs)
    (found if isinstance(found, torch.Tensor) else found["logits"]).square().mean().backward()


def pruned_weights(model: nn.Module) -> torch.Tensor:
    parts = [
        layer.tiles[over_tiles(~layer.dendrite_mask).expand_as(layer.tiles)]
        for layer in dendritic_layers(model).values()
    ]
    return torch.cat(parts)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["plain_cnn", "gpt2", "bert"])
def test_pruned_means_zero_after_every_step_of_a_training(name, optimizer):
    model, inputs = prepared(name)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    plan = update_plan(layout_of(model).config, 12)
    for step in range(1, 13):
        backward(model, inputs)
        score_(model)
        if step in plan:
            update_(model, plan[step].sparsity, regrow=plan[step].regrow, optimizer=optimizer)
        optimizer.step()
        mask_(model)
        assert every(pruned_weights(model) == 0)
    costs = layer_costs(model)
    masks = {layer: module.dendrite_mask for layer, module in dendritic_layers(model).items()}
    assert len(pruned_weights(model)) > 0
    assert total_cost(masks, costs) <= 0.4 * layout_of(model).dense_cost
    assert pruning_of(model).sparsity == 1 - total_cost(masks, costs) / layout_of(model).dense_cost


@pytest.mark.slow
@settings(max_examples=10)
@given(st.floats(0, 0.6), st.floats(0, 0.9), st.sampled_from(["plain_cnn", "residual_mlp"]))
def test_an_update_reports_what_it_did(sparsity, regrow, name):
    model, inputs = prepared(name)
    backward(model, inputs)
    score_(model)
    update_(model, 0.3)
    before = {layer: module.dendrite_mask.clone() for layer, module in dendritic_layers(model).items()}
    report = update_(model, max(sparsity, 0.3), regrow=regrow)
    assert report.sparsity >= max(sparsity, 0.3) and report.sparsity == pruning_of(model).sparsity
    after = {layer: module.dendrite_mask for layer, module in dendritic_layers(model).items()}
    assert report.regrown == sum(int((after[layer] & ~before[layer]).sum()) for layer in after)
    assert report.density == {layer: mask.float().mean().item() for layer, mask in after.items()}


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adamw"])
def test_what_returns_starts_with_zero_weights_and_a_fresh_optimizer(optimizer):
    model, inputs = prepared()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(3):
        backward(model, inputs)
        score_(model)
        optimizer.step()
    update_(model, 0.5, optimizer=optimizer)
    for _ in range(2):
        backward(model, inputs)
        optimizer.step()
        mask_(model)
    before = {name: layer.dendrite_mask.clone() for name, layer in dendritic_layers(model).items()}
    moments = {id(p): copy.deepcopy(optimizer.state[p]) for p in model.parameters()}
    backward(model, inputs)
    report = update_(model, 0.5, regrow=0.5, optimizer=optimizer)
    assert report.regrown > 0
    for name, layer in dendritic_layers(model).items():
        back = over_tiles(layer.dendrite_mask & ~before[name]).expand_as(layer.tiles)
        assert (layer.tiles[back] == 0).all()
        for key, moment in optimizer.state[layer.weight].items():
            if isinstance(moment, torch.Tensor) and moment.shape == layer.weight.shape:
                old = moments[id(layer.weight)][key]
                assert (layer.as_tiles(moment)[back] == 0).all()
                assert torch.equal(layer.as_tiles(moment)[~back], layer.as_tiles(old)[~back])
                assert (old != 0).any()
        returned = layer.dendrite_mask & ~before[name]
        if returned.any() and (layer.dendrite_mask & ~returned).any():
            weakest = layer.dendrite_score[layer.dendrite_mask & ~returned].min()
            assert every(layer.dendrite_score[returned] == weakest)


def test_the_frozen_mask_does_not_move_when_nothing_is_asked_of_it():
    model, inputs = prepared()
    backward(model, inputs)
    score_(model)
    update_(model, 0.5)
    before = {name: layer.dendrite_mask.clone() for name, layer in dendritic_layers(model).items()}
    for sparsity in (0.5, 0.2, 0.0):
        update_(model, sparsity)
        assert every(torch.equal(layer.dendrite_mask, before[n]) for n, layer in dendritic_layers(model).items())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_gradient_does_not_poison_the_scores_or_the_selection(bad):
    model, inputs = prepared()
    backward(model, inputs)
    score_(model)
    scores = {name: layer.dendrite_score.clone() for name, layer in dendritic_layers(model).items()}
    for layer in dendritic_layers(model).values():
        layer.weight.grad.fill_(bad)
    score_(model)
    assert every(torch.equal(layer.dendrite_score, scores[name]) for name, layer in dendritic_layers(model).items())
    assert update_(model, 0.5, regrow=0.5).sparsity >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("update", [False, True])
def test_a_step_that_a_grad_scaler_skips_is_neither_scored_nor_harmful(update):
    model, inputs = prepared("bert")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(overflow: bool, sparsity: float | None) -> None:
        optimizer.zero_grad()
        scaler.scale(model(**inputs)["logits"].square().mean()).backward()
        if overflow:
            next(iter(dendritic_layers(model).values())).weight.grad[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        score_(model)
        if sparsity is not None:
            update_(model, sparsity, regrow=0.5, optimizer=optimizer)
        scaler.step(optimizer)
        scaler.update()
        mask_(model)

    def scores() -> list[torch.Tensor]:
        return [layer.dendrite_score.clone() for layer in dendritic_layers(model).values()]

    step(overflow=False, sparsity=0.3)
    before, weights = scores(), [parameter.detach().clone() for parameter in model.parameters()]
    step(overflow=True, sparsity=0.5 if update else None)
    assert scaler.get_scale() == 512.0, "the scaler skipped the step"
    assert every((new == old).all() or update for new, old in zip(scores(), before, strict=True))
    for parameter, old in zip(model.parameters(), weights, strict=True):
        assert ((parameter == old) | ((parameter == 0) & update)).all()
    assert every(pruned_weights(model) == 0) and every(score.isfinite().all() for score in scores())
    before = scores()
    step(overflow=False, sparsity=None)
    assert not all(torch.equal(new, old) for new, old in zip(scores(), before, strict=True))


def test_one_gradient_that_is_not_finite_keeps_the_whole_step_from_being_scored():
    model, inputs = prepared()
    for bad in (torch.nan, -torch.inf):
        backward(model, inputs)
        score_(model)
        scores = {name: layer.dendrite_score.clone() for name, layer in dendritic_layers(model).items()}
        next(iter(dendritic_layers(model).values())).weight.grad[0, 0] = bad
        score_(model)
        assert every(torch.equal(layer.dendrite_score, scores[name]) for name, layer in dendritic_layers(model).items())


def test_activity_is_of_the_whole_step_however_it_is_cut_into_micro_batches():
    whole, inputs = prepared("bert", importance="activation", sprout_rank=0)
    parts, _ = prepared("bert", importance="activation", sprout_rank=0)
    for module in [*whole.modules(), *parts.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for _ in range(2):
        whole(**inputs)
        for sample in range(2):
            parts(**{key: value[sample : sample + 1] for key, value in inputs.items()})
        score_(whole)
        score_(parts)
    for name, layer in dendritic_layers(whole).items():
        assert torch.allclose(layer.dendrite_score, dendritic_layers(parts)[name].dendrite_score, rtol=1e-4)
        assert layer.dendrite_score.any() and not layer.seen.any()


def test_without_gradients_nothing_returns():
    model, inputs = prepared()
    backward(model, inputs)
    score_(model)
    update_(model, 0.5)
    model.zero_grad()
    assert update_(model, 0.5, regrow=0.9).regrown == 0


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["dendritic", "magnitude", "taylor", "movement", "activation", "random"])
def test_every_importance_meets_the_budget(importance):
    model, inputs = prepared("bert", importance=importance)
    for _ in range(2):
        backward(model, inputs)
        score_(model)
    dense = {name: torch.ones_like(layer.dendrite_mask) for name, layer in dendritic_layers(model).items()}
    largest_unit = max(unit_cost(dense, layer_costs(model)).values()) / layout_of(model).dense_cost
    report = update_(model, 0.6)
    assert 0.6 <= report.sparsity < 0.6 + largest_unit < 0.7 and every(pruned_weights(model) == 0)


def test_the_least_important_neuron_goes_first():
    model, _ = prepared("residual_mlp", importance="magnitude", target_modules=["down.0", "up.0"], segment_size=16)
    layer = dendritic_layers(model)["down.0"]
    with torch.no_grad():
        layer.tiles[0, :, 3] = 1e-4
    score_(model)
    update_(model, 1e-6)
    assert (~layer.dendrite_mask).nonzero().tolist() == [[0, 3]]


@pytest.mark.slow
def test_random_importance_is_the_same_in_every_process():
    code = "\n".join(
        [
            "from helpers.models import build",
            "from optimum.dendritic import DendriticConfig, inject_, update_",
            "from optimum.dendritic.state import dendritic_layers",
            "model, inputs = build('plain_cnn')",
            "inject_(model, DendriticConfig(importance='random', seed=3, segment_size=4), example_inputs=inputs)",
            "update_(model, 0.5)",
            "print([layer.dendrite_mask.int().tolist() for layer in dendritic_layers(model).values()])",
        ]
    )
    model, inputs = build("plain_cnn")
    torch.manual_seed(1234)
    inject_(model, DendriticConfig(importance="random", seed=3, segment_size=4), example_inputs=inputs)
    update_(model, 0.5)
    here = str([layer.dendrite_mask.int().tolist() for layer in dendritic_layers(model).values()])
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": path}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


@pytest.mark.parametrize("step", [score_, mask_, pruning_of, lambda model: update_(model, 0.5)])
def test_a_stock_model_is_refused(step):
    model, _ = build("plain_cnn")
    with pytest.raises(DendriticError, match="has no dendritic segments"):
        step(model)


def test_masks_and_scores_travel_with_the_state():
    model, inputs = prepared()
    backward(model, inputs)
    score_(model)
    update_(model, 0.5)
    other, _ = prepared()
    other.load_state_dict(model.state_dict())
    assert pruning_of(other) == pruning_of(model)
    assert update_(other, 0.6) == update_(model, 0.6)


def test_a_copy_of_a_model_is_pruned_on_its_own():
    model, inputs = prepared()
    twin = copy.deepcopy(model)
    backward(twin, inputs)
    score_(twin)
    update_(twin, 0.5)
    assert pruning_of(model).sparsity == 0 and pruning_of(twin).sparsity >= 0.5


def test_magnitude_counts_the_rows_that_die_with_a_neuron():
    model, _ = prepared("residual_mlp", importance="magnitude", target_modules=["down.0", "up.0"], segment_size=16)
    with torch.no_grad():
        model.down[0].weight.fill_(1.0)
        model.up[0].weight.copy_(torch.arange(24.0)[:, None].expand(-1, 16))
    score_(model)
    update_(model, 0.5)
    kept = model.down[0].dendrite_mask[0].nonzero().flatten().tolist()
    assert len(kept) > 8 and kept == list(range(24 - len(kept), 24))


@pytest.mark.slow
def test_at_random_dear_segments_go_as_often_as_cheap_ones():
    kept = {"heads": 0.0, "neurons": 0.0}
    for seed in range(20):
        model, _ = prepared("bert", importance="random", seed=seed, segment_size=4096, floor=0.0)
        update_(model, 0.5)
        for name, density in pruning_of(model).density.items():
            if name.endswith("attention.output.dense"):
                kept["heads"] += density / 40
            elif name.endswith("output.dense"):
                kept["neurons"] += density / 40
    assert abs(kept["heads"] - kept["neurons"]) < 0.1
