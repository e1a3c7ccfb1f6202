"""One shot: the budget is met, the model is left as it was found in everything else, and bad input changes nothing."""

import copy
from typing import Any

import pytest
import torch
from helpers.compare import every
from helpers.models import build
from torch import Tensor, nn

from optimum.dendritic import DendriticConfig, DendriticError, compress_, inject_, prune_
from optimum.dendritic.config import IMPORTANCES
from optimum.dendritic.one_shot.calibration import score_on_
from optimum.dendritic.state import dendritic_layers, gates_in, injected_layout
from optimum.dendritic.structure.probing import quiet
from optimum.dendritic.train_steps import pruning_of


def prepared(name: str = "bert", **fields: Any) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    model, inputs = build(name)
    config = DendriticConfig(**{"sparsity": 0.4, "segment_size": 4, **fields})
    inject_(model, config, example_inputs=inputs)
    return model, labelled(name, inputs)


def labelled(name: str, inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Two batches of one sample each."""
    labels = inputs["input_ids"] if name in ("gpt2", "llama", "t5") else torch.tensor([0, 1])
    batch = inputs | {"labels": labels}
    return [{key: value[i : i + 1] for key, value in batch.items()} for i in range(2)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and every(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_meets_the_budget(importance):
    model, batches = prepared(importance=importance)
    assert prune_(model, batches) is model
    assert 0.4 <= pruning_of(model).sparsity < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "resnet_bottleneck"])
def test_a_model_of_any_kind_packs_to_what_it_computes(name):
    model, batches = prepared(name)
    inputs = {key: value for key, value in batches[0].items() if key != "labels"}
    prune_(model, batches)
    with torch.no_grad():
        masked = model(**inputs).logits
        parameters = sum(p.numel() for p in model.parameters())
        packed = compress_(model, inputs)(**inputs).logits
    assert torch.allclose(masked, packed, rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in model.parameters()) < parameters


@pytest.mark.slow
def test_reconstruction_brings_the_logits_nearer_to_the_dense_ones():
    errors = {}
    for reconstruct in (False, True):
        model, batches = prepared(importance="magnitude")
        dense = [model(**batch).logits for batch in batches]
        prune_(model, batches, reconstruct=reconstruct)
        errors[reconstruct] = sum(
            (model(**b).logits - d).square().sum().item() for b, d in zip(batches, dense, strict=True)
        )
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.slow
def test_without_reconstruction_what_is_kept_is_not_touched():
    model, batches = prepared()
    dense = state(model)
    prune_(model, batches, reconstruct=False)
    for name, layer in dendritic_layers(model).items():
        kept = layer.dendrite_mask[:, None, :, None, None].expand_as(layer.tiles)
        assert torch.equal(layer.tiles[kept], layer.as_tiles(dense[f"{name}.weight"])[kept])


@pytest.mark.slow
@pytest.mark.parametrize("reconstruct", [True, False])
def test_everything_else_stays_as_it_was(reconstruct):
    model, batches = prepared()
    model.train()
    model.bert.encoder.layer[0].eval()
    model.classifier.requires_grad_(False)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, index) if index % 2 and parameter.requires_grad else None
    targets = tuple(f"{name}." for name in dendritic_layers(model))
    storages = [parameter.data_ptr() for parameter in model.parameters()]
    flags = [module.training for module in model.modules()]
    needs = [parameter.requires_grad for parameter in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    others, random = {k: v for k, v in state(model).items() if not k.startswith(targets)}, torch.get_rng_state()
    prune_(model, batches, reconstruct=reconstruct)
    assert flags == [module.training for module in model.modules()]
    assert needs == [parameter.requires_grad for parameter in model.parameters()]
    assert storages == [parameter.data_ptr() for parameter in model.parameters()]
    assert equal(others, {k: v for k, v in state(model).items() if not k.startswith(targets)})
    assert torch.equal(random, torch.get_rng_state())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None) and (grad is None or torch.equal(parameter.grad, grad))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow
def test_the_mode_and_the_gradient_switch_of_the_caller_do_not_matter():
    results = []
    for training, enabled in ((True, True), (False, False)):
        model, batches = prepared()
        model.train(training)
        with torch.set_grad_enabled(enabled):
            prune_(model, batches)
        results.append(state(model))
    assert equal(*results)


@pytest.mark.slow
def test_an_iterator_does_as_well_as_a_list():
    first, batches = prepared()
    second, _ = prepared()
    prune_(first, batches)
    prune_(second, iter(batches))
    assert equal(state(first), state(second))


def gates_of(model):
    return gates_in(model, injected_layout(model), dendritic_layers(model))


def test_the_score_is_the_mean_over_batches():
    model, batches = prepared()
    readings = []
    for chosen in ([batches[0]], [batches[1]], batches):
        with quiet(model):
            score_on_(model, dendritic_layers(model), gates_of(model), "dendritic", chosen)
        readings.append([layer.dendrite_score.clone() for layer in dendritic_layers(model).values()])
    for first, second, both in zip(*readings, strict=True):
        assert torch.allclose(both, (first + second) / 2, rtol=1e-4)


def test_activity_is_the_mean_square_of_the_inputs():
    model, batches = prepared("plain_cnn", importance="activation")
    inputs = {"x": torch.randn(3, 3, 8, 8)}
    with quiet(model):
        score_on_(model, dendritic_layers(model), gates_of(model), "activation", [inputs])
    activity = dendritic_layers(model)["conv1"].dendrite_activity
    assert torch.allclose(activity, inputs["x"].square().mean((0, 2, 3)), atol=1e-5)


def test_a_batch_whose_gradients_are_not_finite_does_not_count():
    model, inputs = build("residual_mlp")

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": self.body(x).square().mean()}

    whole = inject_(WithLoss(), DendriticConfig(sparsity=0.3, segment_size=4), example_inputs=inputs)
    bad = {"x": torch.full_like(inputs["x"], torch.inf)}
    scores = []
    for batches in ([inputs], [inputs, bad]):
        score_on_(whole, dendritic_layers(whole), gates_of(whole), "dendritic", batches)
        scores.append(torch.cat([layer.dendrite_score.flatten() for layer in dendritic_layers(whole).values()]))
    assert torch.equal(*scores)
    with pytest.raises(DendriticError, match="not finite, on every batch"):
        prune_(whole, [bad])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "holds no batches"),
        (7, "must be an iterable of batches"),
        ({"input_ids": torch.ones(1, 4, dtype=torch.int64)}, "holds no batches"),
        ([torch.ones(1, 4)], "every batch must be a mapping with tensors"),
        ([{"input_ids": [1, 2]}], "every batch must be a mapping with tensors"),
        ([{"input_ids": torch.ones(1, 4, dtype=torch.int64)}], "no loss.*Put labels into every batch"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(batches, message):
    model, _ = prepared()
    before = state(model)
    with pytest.raises(DendriticError, match=message):
        prune_(model, batches)
    assert equal(before, state(model))


@pytest.mark.parametrize(
    "options", [{"rounds": 0}, {"passes": -1}, {"damping": -1}, {"damping": float("inf")}, {"rounds": True}]
)
def test_bad_options_are_refused(options):
    model, batches = prepared()
    ((field, value),) = options.items()
    with pytest.raises(DendriticError, match=f"{field} = {value}"):
        prune_(model, batches, **options)


@pytest.mark.slow
def test_labels_are_needed_only_where_gradients_are():
    model, batches = prepared(importance="activation")
    prune_(model, [{key: value for key, value in batch.items() if key != "labels"} for batch in batches])
    assert pruning_of(model).sparsity >= 0.4


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["second batch", "reconstruction"])
def test_a_failure_on_the_way_puts_everything_back(moment):
    model, batches = prepared()
    before, calls = state(model), {"second batch": 2, "reconstruction": 4 * 2 + 4}[moment]

    def interrupt(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls -= 1
        if calls == 0:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        prune_(model, batches, rounds=4)
    handle.remove()
    assert calls == 0 and equal(before, state(model))
    prune_(model, batches)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_only_an_injected_model_is_pruned(packed):
    model, inputs = build("bert")
    if packed:
        compress_(prune_(*prepared()), inputs)
        model, batches = prepared()
        compress_(prune_(model, batches), inputs)
    with pytest.raises(DendriticError, match="is packed already" if packed else "Call inject_"):
        prune_(model, labelled("bert", inputs))


@pytest.mark.slow
def test_the_progress_bar_can_be_switched_off(capsys):
    from transformers.utils import logging

    for shown, switch in ((False, logging.disable_progress_bar), (True, logging.enable_progress_bar)):
        switch()
        model, batches = prepared(importance="magnitude")
        prune_(model, batches)
        assert ("prune" in capsys.readouterr().err) == shown


@pytest.mark.slow
def test_a_copy_is_pruned_alone():
    model, batches = prepared()
    twin = copy.deepcopy(model)
    before = state(model)
    prune_(twin, batches)
    assert equal(before, state(model)) and not equal(before, state(twin))
