"""Models and batches that are not as a pruner would like them: they work, or they are refused by name."""

import math

import pytest
import torch
from helpers.compare import every
from helpers.models import PlainCNN, ResidualMLP, build, outputs, pixels, roughen, vectors
from helpers.snapshots import same, snapshot
from torch import Tensor, nn
from transformers.utils import logging

from optimum.dendritic import DendriticConfig, DendriticError, compress_, inject_, mask_, prune_, score_, update_
from optimum.dendritic.state import dendritic_layers, layout_of

CONFIG = DendriticConfig(sparsity=0.4, segment_size=2)


@pytest.fixture
def told(caplog):
    """What the library has logged as a warning."""
    logging.enable_propagation()
    yield lambda: " ".join(record.message for record in caplog.records if record.levelname == "WARNING")
    logging.disable_propagation()


def train(model: nn.Module, inputs: dict[str, Tensor], config: DendriticConfig = CONFIG, steps: int = 4) -> None:
    """A few steps of a plain loop on an injected model, with a mask update in each."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for step in range(1, steps + 1):
        model(**inputs).square().mean().backward()
        score_(model)
        update_(model, config.sparsity * step / steps, regrow=0.1, optimizer=optimizer)
        optimizer.step()
        mask_(model)
        optimizer.zero_grad()
    model.eval()


def pack_and_compare(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Packed equals masked, and all is finite."""
    expected = outputs(model, inputs)
    compress_(model, inputs)
    assert layout_of(model).packed and bool(expected.isfinite().all())
    assert torch.allclose(outputs(model, inputs), expected, rtol=1e-5, atol=1e-5)


class Detached(ResidualMLP):
    """The stem computes without gradients; its outputs matter all the same."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(x)))
        return self.head(x)


class TestLayersWithoutAGradient:
    def test_they_are_named_once_and_go_first(self, told):
        model, inputs = roughen(Detached()), vectors()
        inject_(model, CONFIG, example_inputs=inputs)
        train(model, inputs)
        assert told().count("No gradient has reached stem so far") == 1
        assert "exclude_modules" in told()
        density = {name: layer.dendrite_mask.float().mean() for name, layer in dendritic_layers(model).items()}
        assert density["stem"] == min(density.values())
        pack_and_compare(model, inputs)

    def test_excluded_they_stay_whole(self, told):
        model, inputs = roughen(Detached()), vectors()
        config = DendriticConfig(sparsity=0.4, segment_size=2, exclude_modules=["stem"])
        inject_(model, config, example_inputs=inputs)
        train(model, inputs, config)
        assert not told() and type(model.stem) is nn.Linear
        pack_and_compare(model, inputs)

    @pytest.mark.parametrize("importance", ["magnitude", "random"])
    def test_scores_that_need_no_gradient_say_nothing(self, told, importance):
        model, inputs = roughen(Detached()), vectors()
        config = DendriticConfig(sparsity=0.4, segment_size=2, importance=importance)
        inject_(model, config, example_inputs=inputs)
        train(model, inputs, config)
        assert not told()
        pack_and_compare(model, inputs)


class TestFrozenLayers:
    def test_frozen_before_they_are_left_alone(self):
        model, inputs = roughen(ResidualMLP()), vectors()
        model.up[0].requires_grad_(False)
        before = model.up[0].weight.clone()
        inject_(model, CONFIG, example_inputs=inputs)
        train(model, inputs)
        assert "up.0" not in layout_of(model).modules and torch.equal(model.up[0].weight, before)
        pack_and_compare(model, inputs)
        assert not model.up[0].weight.requires_grad

    def test_frozen_afterwards_they_are_pruned_as_they_stand(self):
        model, inputs = roughen(ResidualMLP()), vectors()
        inject_(model, CONFIG, example_inputs=inputs)
        before = model.up[0].weight.clone()
        model.up[0].requires_grad_(False)
        train(model, inputs)
        kept = model.up[0].weight != 0
        assert torch.equal(model.up[0].weight[kept], before[kept])
        pack_and_compare(model, inputs)


class Tied(ResidualMLP):
    """Both blocks expand by the same weight; the second projects by the module of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.up[1].weight = self.up[0].weight
        self.down[1] = self.down[0]


def test_tied_weights_stay_tied_and_shared_modules_are_pruned_once():
    model, inputs = roughen(Tied()), vectors()
    inject_(model, CONFIG, example_inputs=inputs)
    assert set(layout_of(model).modules) == {"stem", "down.0"}
    train(model, inputs)
    assert model.up[0].weight is model.up[1].weight and model.down[0] is model.down[1]
    pack_and_compare(model, inputs)
    assert model.up[0].weight is model.up[1].weight and model.down[0] is model.down[1]


class FailsOnNaN(PlainCNN):
    """Checks its numbers, as careful models do: wires cannot be traced with NaN."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = torch.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        x = torch.relu(self.fc1(x.flatten(1)))
        if not bool(x.isfinite().all()):
            raise FloatingPointError("numbers gone bad")
        return self.fc2(x)


class FailsInEval(ResidualMLP):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            raise RuntimeError("only trained")
        return super().forward(x)


class TestAForwardThatRaises:
    def test_on_nan(self, told):
        model, inputs = roughen(FailsOnNaN()), pixels()
        inject_(model, CONFIG, example_inputs=inputs)
        assert "The forward pass raises when NaN traces" in told() and "numbers gone bad" in told()
        assert {group.host for group in layout_of(model).groups} == {"conv2", "fc1"}, "only fc1's wire is lost"
        train(model, inputs)
        pack_and_compare(model, inputs)

    def test_in_eval_mode(self, told):
        model, inputs = roughen(FailsInEval()), vectors()
        with pytest.raises(
            DendriticError, match="could not be traced .RuntimeError: only trained.*layer_by_layer=True"
        ):
            inject_(model, CONFIG, example_inputs=inputs)
        assert layout_of(model) is None
        inject_(model, CONFIG, example_inputs=inputs, layer_by_layer=True)
        assert "could not be traced, so no channels are cut: RuntimeError: only trained" in told()
        assert not layout_of(model).groups
        train(model, inputs)
        model.train()
        expected = model(**inputs)
        compress_(model, inputs)
        assert "Packed without verification" in told()
        assert torch.allclose(model(**inputs), expected, rtol=1e-5, atol=1e-6)


class TestEmptyBatches:
    def test_in_training_they_leave_scores_and_activity_alone(self):
        model, inputs = roughen(ResidualMLP()), vectors()
        config = DendriticConfig(sparsity=0.4, segment_size=2, importance="activation")
        inject_(model, config, example_inputs=inputs)
        model.train()
        model(**inputs).square().mean().backward()
        score_(model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for reduce in (Tensor.sum, Tensor.mean):
            loss = reduce(model(x=torch.zeros(0, 6)).square())
            assert math.isnan(loss.item()) == (reduce is Tensor.mean)
            model.zero_grad()
            loss.backward()
        assert before.keys() == dict(model.named_buffers()).keys()
        assert every(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        score_(model)
        update_(model, 0.4)
        pack_and_compare(model.eval(), inputs)

    @pytest.mark.parametrize("step", ["inject", "compress", "prune"])
    def test_as_examples_they_are_refused_by_name(self, step):
        model, inputs = build("bert")
        nothing = {name: tensor[:0] for name, tensor in inputs.items()}
        steps = {
            "inject": lambda: inject_(model, CONFIG, example_inputs=nothing),
            "compress": lambda: compress_(model, nothing),
            "prune": lambda: prune_(model, [{**nothing, "labels": torch.zeros(0, dtype=torch.int64)}]),
        }
        if step != "inject":
            inject_(model, CONFIG, example_inputs=inputs)
        before = snapshot(model)
        with pytest.raises(DendriticError, match=r"\(0, 6\).*sample"):
            steps[step]()
        assert same(before, snapshot(model))


class Moving(PlainCNN):
    """It takes its inputs to where its weights are, as `model.device` of transformers tells."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(next(self.parameters()).device))


def test_a_model_that_asks_where_its_weights_are_is_cut_as_any_other():
    groups = [layout_of(inject_(kind(), CONFIG, example_inputs=pixels())).groups for kind in (PlainCNN, Moving)]
    assert groups[0] == groups[1] and any(group.cut for group in groups[1])
