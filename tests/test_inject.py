"""Injection is exact: the same outputs, gradients and Parameter objects; where it is refused, nothing has changed."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.compare import every
from helpers.models import FACTORIES, PlainCNN, build, outputs, pixels
from helpers.snapshots import same, snapshot
from torch import nn

from optimum.dendritic import DendriticConfig, DendriticError, compress_, inject_, update_
from optimum.dendritic.nn import DendriticLayer
from optimum.dendritic.state import dendritic_layers, layout_of

CONFIG = DendriticConfig(sparsity=0.3, segment_size=4, arbors=2, importance="activation")


def config_for(name: str) -> DendriticConfig:
    """The activity of a recurrent layer's inputs is unknown: another importance there."""
    return replace(CONFIG, importance="dendritic") if name in ("lstm", "gru") else CONFIG


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FACTORIES)
def test_injected_equals_stock_bit_for_bit(name, training):
    model, inputs = build(name)
    stock = copy.deepcopy(model).train(training)
    parameters = dict(model.named_parameters())
    inject_(model.train(training), config_for(name), example_inputs=inputs)
    assert every(module.training is training for module in model.modules())
    assert {n: id(p) for n, p in model.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    results = []
    for one in (stock, model):
        torch.manual_seed(0)
        found = one(**inputs)
        found = found if isinstance(found, torch.Tensor) else found["logits"]
        found.square().mean().backward()
        results.append((found, {n: p.grad for n, p in one.named_parameters()}))
    (expected, gradients), (found, injected) = results
    assert torch.equal(found, expected)
    for parameter, gradient in gradients.items():
        assert (gradient is None) == (injected[parameter] is None)
        assert gradient is None or torch.equal(gradient, injected[parameter]), parameter


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_the_state_is_the_stock_one_plus_masks_and_scores(name):
    model, inputs = build(name)
    stock = set(model.state_dict())
    inject_(model, config_for(name), example_inputs=inputs)
    added = set(model.state_dict()) - stock
    assert stock <= set(model.state_dict())
    kinds = ("dendrite_mask", "dendrite_score", "dendrite_activity")[: 3 if config_for(name) is CONFIG else 2]
    assert added == {f"{layer}.{kind}" for layer in dendritic_layers(model) for kind in kinds}


def test_a_cut_reader_has_whole_channels_as_segments_and_others_about_segment_size():
    model, inputs = build("bert")
    inject_(model, DendriticConfig(sparsity=0.3, segment_size=5, arbors=3), example_inputs=inputs)
    layers, at = dendritic_layers(model), "bert.encoder.layer.0"
    shapes = {name: tuple(layer.dendrite_mask.shape) for name, layer in layers.items() if name.startswith(at)}
    assert shapes[f"{at}.output.dense"] == (1, 24) and shapes[f"{at}.attention.output.dense"] == (1, 4)
    assert shapes[f"{at}.intermediate.dense"] == (3, 4) and shapes[f"{at}.attention.self.query"] == (2, 4)


def test_a_segment_of_a_convolution_counts_its_kernel():
    model = PlainCNN()
    inject_(model, DendriticConfig(sparsity=0.3, target_modules=["conv2"], segment_size=18), example_inputs=pixels())
    assert dendritic_layers(model)["conv2"].dendrite_mask.shape == (1, 6)


def test_the_same_config_twice_is_one_injection():
    model, inputs = build("plain_cnn")
    inject_(model, CONFIG, example_inputs=inputs)
    before = snapshot(model)
    assert inject_(model, DendriticConfig.from_json(CONFIG.to_json())) is model
    assert same(before, snapshot(model))


@pytest.mark.parametrize("name", ["bert", "plain_cnn"])
@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"sparsity": 0.99, "floor": 0.5}, "sparsity = 0.99: at most"),
        ({"target_modules": ["nothing"]}, "target_modules = 'nothing'"),
        ({"exclude_modules": ["nothing"]}, "exclude_modules = 'nothing'"),
    ],
)
def test_a_refused_config_leaves_the_model_as_it_was(name, fields, rule):
    model, inputs = build(name)
    before = snapshot(model)
    with pytest.raises(DendriticError, match=rule):
        inject_(model, DendriticConfig(**fields), example_inputs=inputs)
    assert same(before, snapshot(model))


def test_the_sparsity_that_an_error_offers_can_be_reached():
    model, inputs = build("plain_cnn")
    with pytest.raises(DendriticError) as error:
        inject_(model, DendriticConfig(sparsity=0.99, floor=0.3), example_inputs=inputs)
    most = float(str(error.value).split("at most ")[1].split()[0])
    inject_(model, DendriticConfig(sparsity=most - 1e-4, floor=0.3), example_inputs=inputs)
    assert update_(model, most - 1e-4).sparsity >= most - 1e-4


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")], ids=["data_parallel", "compiled"]
)
def test_a_wrapped_model_is_refused(wrap):
    model, inputs = build("plain_cnn")
    before = snapshot(model)
    with pytest.raises(DendriticError, match="wrapper"):
        inject_(wrap(model), CONFIG, example_inputs=inputs)
    assert same(before, snapshot(model))


def test_another_config_and_a_packed_model_are_refused():
    model, inputs = build("bert")
    inject_(model, CONFIG, example_inputs=inputs)
    before = snapshot(model)
    with pytest.raises(DendriticError, match="injected with another config"):
        inject_(model, DendriticConfig(sparsity=0.4), example_inputs=inputs)
    assert same(before, snapshot(model))
    update_(model, 0.3)
    compress_(model, inputs)
    before = snapshot(model)
    with pytest.raises(DendriticError, match="packed already"):
        inject_(model, CONFIG, example_inputs=inputs)
    assert same(before, snapshot(model))


def test_a_plain_module_without_example_inputs_is_refused():
    model = PlainCNN()
    before = snapshot(model)
    with pytest.raises(DendriticError, match="example_inputs"):
        inject_(model, CONFIG)
    assert same(before, snapshot(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit", "resnet_basic", "convnext"])
def test_a_pretrained_model_needs_no_example_inputs(name):
    model, inputs = build(name)
    with_inputs = inject_(build(name)[0], CONFIG, example_inputs=inputs)
    inject_(model, CONFIG)
    assert layout_of(model).groups == layout_of(with_inputs).groups


def test_layers_that_the_forward_pass_does_not_call_are_left_alone():
    class Spare(PlainCNN):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.Linear(3, 3)

    model = inject_(Spare(), DendriticConfig(sparsity=0.1, target_modules=".*"), example_inputs=pixels())
    assert type(model.aside) is nn.Linear and isinstance(model.fc2, DendriticLayer)


def test_a_shared_module_is_injected_everywhere_and_once():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = nn.ModuleList([self.a])

        def forward(self, x):
            return self.b[0](torch.tanh(self.a(x)))

    model = inject_(Shared(), DendriticConfig(sparsity=0.1, segment_size=2), example_inputs={"x": torch.ones(1, 6)})
    assert model.a is model.b[0] and isinstance(model.a, DendriticLayer) and list(dendritic_layers(model)) == ["a"]


def test_an_untraceable_model_is_injected_without_cuts_if_that_is_asked_for_but_not_for_macs():
    class Demanding(PlainCNN):
        def forward(self, x, needed):
            return super().forward(x)

    model = inject_(Demanding(), DendriticConfig(sparsity=0.3), example_inputs=pixels(), layer_by_layer=True)
    assert layout_of(model).groups == () and set(dendritic_layers(model)) == {"conv1", "conv2", "fc1"}
    model = Demanding()
    before = snapshot(model)
    for config, remedy in (
        (DendriticConfig(budget="macs"), "^budget = 'macs'.* pass budget=\"params\""),
        (DendriticConfig(speedup=2.0), "^speedup = 2.0.* ask for sparsity, parameters or megabytes"),
    ):
        with pytest.raises(DendriticError, match=remedy):
            inject_(model, config, example_inputs=pixels(), layer_by_layer=True)
    assert same(before, snapshot(model))
    with pytest.raises(DendriticError, match="could not be traced .*missing 1 required.*layer_by_layer=True"):
        inject_(model, DendriticConfig(sparsity=0.3), example_inputs=pixels())
    assert same(before, snapshot(model))


def test_injection_works_where_the_parameters_are_half_precision():
    model, inputs = build("residual_mlp")
    model, inputs = model.to(torch.bfloat16), {"x": inputs["x"].to(torch.bfloat16)}
    expected = outputs(model, inputs)
    inject_(model, CONFIG, example_inputs=inputs)
    assert torch.equal(outputs(model, inputs), expected)
    assert every(layer.dendrite_score.dtype == torch.float32 for layer in dendritic_layers(model).values())
