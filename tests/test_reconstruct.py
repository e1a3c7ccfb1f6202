"""Reconstruction is the least-squares optimum: exact where that is possible, and never worse than leaving it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import every
from helpers.models import build
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from optimum.dendritic import DendriticConfig, DendriticError, inject_, score_, update_
from optimum.dendritic.nn import DendriticLayer
from optimum.dendritic.one_shot.reconstruction import (
    fitted_layers,
    kept_columns,
    reconstruct_,
    stages,
)
from optimum.dendritic.state import dendritic_layers, injected_layout, kept_in


class Lone(nn.Module):
    """One layer, whose output is the model's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.layer(x)


LAYERS = {
    "linear": lambda: (nn.Linear(12, 8), (40, 12)),
    "linear, no bias": lambda: (nn.Linear(12, 8, bias=False), (5, 8, 12)),
    "conv1d": lambda: (Conv1D(8, 12), (5, 8, 12)),
    "conv": lambda: (nn.Conv2d(6, 8, 3, padding=1), (6, 6, 7, 7)),
    "strided conv": lambda: (nn.Conv2d(6, 8, (3, 2), stride=(2, 1), dilation=(1, 2), bias=False), (8, 6, 9, 8)),
    "same conv": lambda: (nn.Conv2d(6, 8, 3, padding="same", padding_mode="reflect"), (6, 6, 6, 6)),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pruned(kind: str, arbors: int = 1) -> tuple[Lone, dict[str, Tensor], Tensor]:
    """A layer in float64 that lost some of its segments, its parameters before, and inputs for it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layer, shape = LAYERS[kind]()
        nn.init.normal_(layer.weight)
    model, x = Lone(layer).double().eval(), drawn(*shape)
    config = DendriticConfig(sparsity=0.1, target_modules=["layer"], segment_size=1, arbors=arbors)
    inject_(model, config, example_inputs={"x": x})
    dense = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    injected = layer_of(model)
    for arbor, mask in enumerate(injected.dendrite_mask):
        mask[torch.randperm(len(mask), generator=torch.Generator().manual_seed(arbor))[: len(mask) // 3]] = False
    injected.mask_()
    return model, dense, x


def columns_of(layer: DendriticLayer) -> list[Tensor]:
    return [kept_columns(layer, inputs) for inputs in layer.kept()]


def layer_of(model: Lone) -> DendriticLayer:
    return dendritic_layers(model)["layer"]


def fit(model: nn.Module, dense: dict[str, Tensor], *batches: dict[str, Tensor], damping: float = 0.0) -> None:
    layers = fitted_layers(dendritic_layers(model))
    groups = stages(model, layers, batches[0], passes=100)
    reconstruct_(model, layers, kept_inputs(model), dense, batches, groups, damping=damping)


def kept_inputs(model: nn.Module) -> dict[str, list[Tensor]]:
    return kept_in(model, injected_layout(model), dendritic_layers(model))[0]


def wanted(model: nn.Module, dense: dict[str, Tensor], **batch: Tensor) -> Tensor:
    return torch.func.functional_call(model, dense, (), batch).detach()


@pytest.mark.parametrize("arbors", [1, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_the_optimum_that_lstsq_finds(kind, arbors):
    model, dense, x = pruned(kind, arbors)
    layer, answer = layer_of(model), wanted(model, dense, x=x)
    fit(model, dense, {"x": x[:2]}, {"x": x[2:]})
    rows, expected = layer.factors(x), layer.products(answer).chunk(arbors, 1)
    for arbor, kept in enumerate(columns_of(layer)):
        design = rows[:, kept]
        if layer.bias is not None:
            design = torch.cat([design, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        optimum = torch.linalg.lstsq(design, expected[arbor]).solution.t()
        weight = layer.tiles.flatten(2)[arbor]
        assert torch.allclose(weight[:, kept], optimum[:, : len(kept)], atol=1e-6)
        if layer.bias is not None:
            assert torch.allclose(layer.bias.chunk(arbors)[arbor], optimum[:, -1], atol=1e-6)
    assert every(layer.tiles[~layer.dendrite_mask[:, None, :, None, None].expand_as(layer.tiles)] == 0)


@pytest.mark.slow
@given(st.sampled_from(sorted(LAYERS)), st.sampled_from([1, 2]), st.floats(0, 10))
def test_it_is_never_worse_than_the_pruned_layer(kind, arbors, damping):
    model, dense, x = pruned(kind, arbors)
    answer = wanted(model, dense, x=x)
    before = (model(x) - answer).square().sum()
    fit(model, dense, {"x": x}, damping=damping)
    assert (model(x) - answer).square().sum() <= before * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["linear", "linear, no bias", "conv1d"])
def test_inputs_that_depend_on_kept_ones_cost_nothing(kind):
    model, dense, x = pruned(kind)
    kept = columns_of(layer_of(model))[0]
    lost = [i for i in range(12) if i not in kept]
    offset = 0.0 if "no bias" in kind else 1.7
    x[..., lost] = x[..., kept] @ drawn(len(kept), len(lost), seed=3) + offset
    answer = wanted(model, dense, x=x)
    assert not torch.allclose(model(x), answer, atol=0.1)
    fit(model, dense, {"x": x})
    assert torch.allclose(model(x), answer, atol=1e-8)


def test_columns_of_a_convolution_are_what_its_weight_multiplies():
    for kind in ("conv", "strided conv", "same conv"):
        model, _, x = pruned(kind)
        layer = layer_of(model)
        product = layer.factors(x) @ layer.weight.flatten(1).t() + (0 if layer.bias is None else layer.bias)
        assert torch.allclose(product, layer.products(model(x)), atol=1e-12)


def test_a_layer_that_lost_everything_answers_the_mean():
    model, dense, x = pruned("linear")
    layer = layer_of(model)
    layer.dendrite_mask.fill_(False)
    layer.mask_()
    answer = wanted(model, dense, x=x)
    fit(model, dense, {"x": x})
    assert torch.allclose(layer.bias, answer.mean(0)) and (layer.weight == 0).all()


def test_padded_tokens_do_not_count():
    model, dense, x = pruned("conv1d")
    mask = torch.ones(x.shape[:2], dtype=torch.int64)
    mask[:, 5:] = 0
    garbage = torch.where(mask[..., None] == 1, x, 100 * drawn(*x.shape, seed=5))
    twin = copy.deepcopy(model)
    fit(model, dense, {"x": garbage, "attention_mask": mask})
    fit(twin, dense, {"x": x[:, :5].contiguous(), "attention_mask": mask[:, :5]})
    assert torch.allclose(layer_of(model).weight, layer_of(twin).weight, atol=1e-8)


def test_what_is_not_finite_leaves_the_layer_alone(caplog):
    model, dense, x = pruned("linear")
    before = layer_of(model).weight.clone()
    x[0, 0] = torch.inf
    fit(model, dense, {"x": x})
    assert torch.equal(layer_of(model).weight, before)


class Fickle(nn.Module):
    """Drops samples once its first layer is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return self.head(x + self.second(x[:2] if (self.first.weight == 0).any() else x).mean(0))


def test_a_model_that_runs_otherwise_when_pruned_is_refused():
    model, x = Fickle(), torch.randn(4, 6)
    inject_(
        model,
        DendriticConfig(sparsity=0.1, segment_size=2, target_modules=["first", "second"]),
        example_inputs={"x": x},
    )
    dense = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.first.dendrite_mask[0, 0] = False
    model.first.mask_()
    with pytest.raises(DendriticError, match=r"calls second otherwise once it is pruned.*reconstruct=False"):
        layers = fitted_layers(dendritic_layers(model))
        reconstruct_(model, layers, kept_inputs(model), dense, [{"x": x}], [["first"], ["second"]], damping=0.0)


class TestStages:
    def test_layers_that_read_the_same_tensor_stay_together(self):
        model, inputs = build("bert")
        inject_(model, DendriticConfig(sparsity=0.2, segment_size=4), example_inputs=inputs)
        groups = stages(model, fitted_layers(dendritic_layers(model)), inputs, passes=100)
        attention = "bert.encoder.layer.0.attention"
        assert {f"{attention}.self.{name}" for name in ("query", "key", "value")} == set(groups[0])
        assert groups[1] == [f"{attention}.output.dense"]
        assert sorted(sum(groups, [])) == sorted(dendritic_layers(model))

    @pytest.mark.parametrize("passes", [1, 2, 3, 100])
    def test_there_are_no_more_groups_than_passes_and_the_order_stays(self, passes):
        model, inputs = build("plain_cnn")
        inject_(model, DendriticConfig(sparsity=0.2, segment_size=4), example_inputs=inputs)
        groups = stages(model, fitted_layers(dendritic_layers(model)), inputs, passes)
        assert len(groups) <= passes and sum(groups, []) == list(dendritic_layers(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit", "resnet_bottleneck", "grouped_cnn"])
def test_later_layers_make_up_for_earlier_ones(name):
    model, inputs = build(name)
    inject_(model, DendriticConfig(sparsity=0.4, segment_size=4, importance="magnitude"), example_inputs=inputs)
    dense = {
        f"{n}.{k}": p.detach().clone()
        for n, m in dendritic_layers(model).items()
        for k, p in m._parameters.items()
        if p is not None
    }
    score_(model)
    update_(model, 0.4)

    def error() -> float:
        found, expected = model(**inputs), torch.func.functional_call(model, dense, (), inputs)
        found, expected = (o if isinstance(o, Tensor) else o["logits"] for o in (found, expected))
        return F.mse_loss(found, expected).item()

    before = error()
    fit(model, dense, inputs, damping=0.01)
    assert error() < 0.5 * before
