"""Models with LSTM or GRU layers: targets, exact budgets, and hidden units that go and grow back in training."""

import copy
import logging
from typing import Any

import pytest
import torch
from helpers.compare import every
from helpers.models import backward, build, outputs, series
from helpers.packing import pack_and_check
from helpers.recurrent import INPUT, noise
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from optimum.dendritic import (
    DendriticConfig,
    compress_,
    inject_,
    mask_,
    score_,
    update_,
)
from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import count_macs
from optimum.dendritic.functional.other_costs import RecurrentCost
from optimum.dendritic.functional.selection import total_cost, unit_cost
from optimum.dendritic.layout.records import Segments
from optimum.dendritic.nn import (
    DendriticGRU,
    DendriticLSTM,
)
from optimum.dendritic.state import dendritic_layers, layout_of
from optimum.dendritic.structure.model_costs import layer_costs


def injected_model(name: str = "lstm", **fields: Any) -> tuple[nn.Module, dict]:
    model, inputs = build(name)
    fields = {"sparsity": 0.5, "segment_size": 2, "floor": 0.0} | fields
    return inject_(model, DendriticConfig(**fields), example_inputs=inputs), inputs


class Ragged(nn.Module):
    """Runs its layer on sequences of three steps and one, made of one of four."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Any:
        return self.rnn(pack_padded_sequence(x[:, :3].repeat(2, 1, 1), torch.tensor([3, 1]), batch_first=True))


class TestTheModel:
    def test_targets(self):
        model, _ = injected_model("lstm")
        assert type(model.rnn) is DendriticLSTM and type(model.head) is nn.Linear
        assert layout_of(model).modules["rnn"] == Segments(4, 8)
        assert type(injected_model("gru")[0].rnn) is DendriticGRU

    def test_projections_and_subclasses_and_frozen_ones_are_left_alone(self, caplog):
        class Special(nn.GRU):
            pass

        model, inputs = build("lstm")
        for rnn, told in (
            (nn.LSTM(5, 24, proj_size=8, batch_first=True, bidirectional=True), "rnn is left alone: it projects"),
            (Special(5, 8, batch_first=True, bidirectional=True), ""),
            (nn.GRU(5, 8, batch_first=True, bidirectional=True), "rnn is left alone: its weight is frozen"),
        ):
            one = copy.deepcopy(model)
            one.rnn = rnn
            rnn.bias_hh_l0.requires_grad_(not told.endswith("frozen"))
            with caplog.at_level(logging.INFO, "optimum.dendritic"):
                inject_(one, DendriticConfig(sparsity=0.2, segment_size=1), example_inputs=inputs)
            assert list(layout_of(one).modules) == ["project", "middle"] and one.rnn is rnn and told in caplog.text

    @pytest.mark.parametrize("budget", ["params", "macs"])
    @pytest.mark.parametrize("name", ["lstm", "gru"])
    def test_the_budget_is_met_in_the_packed_model(self, name, budget):
        for sparsity in (0.1, 0.5, 0.8):
            model, inputs = injected_model(name, budget=budget, target_modules=["rnn"])
            costs, layout = layer_costs(model), layout_of(model)
            backward(model, inputs)
            score_(model)
            dense = {"rnn": torch.ones_like(model.rnn.dendrite_mask)}
            report = update_(model, sparsity)
            assert report.sparsity >= sparsity
            mask, back = model.rnn.dendrite_mask, model.rnn.dendrite_mask.clone()
            back[torch.arange(len(back)), (~mask).int().argmax(1)] = True  # one unit more would be too much
            assert (
                total_cost({"rnn": back}, costs)
                > (1 - sparsity) * layout.dense_cost
                == (1 - sparsity) * total_cost(dense, costs)
            )
            pack_and_check(model, inputs)
            kept = sum(p.numel() for p in model.rnn.parameters() if budget == "params" or p.dim() > 1)
            assert kept * (layout.positions["rnn"] if budget == "macs" else 1) == total_cost({"rnn": mask}, costs)

    def test_the_macs_are_those_that_the_meter_counts(self):
        for name in ("lstm", "gru"):
            model, inputs = injected_model(name, budget="macs", target_modules=["rnn"], importance="magnitude")
            score_(model)
            update_(model, 0.5)
            cost = total_cost({"rnn": model.rnn.dendrite_mask}, layer_costs(model))
            compress_(model, inputs)
            x = noise(1, 4, INPUT)  # the model runs it twice
            assert 2 * count_macs(model.rnn.eval(), Batch.of((x,))) == cost
            assert 2 * count_macs(Ragged(model.rnn).eval(), Batch.of((x,))) == cost

    @pytest.mark.parametrize("shape", [(5, 1, 1, 4), (5, 3, 2, 3), (1, 2, 2, 4)])
    def test_the_cost_is_the_size_of_the_stock_layer_with_fewer_units(self, shape):
        inputs, layers, ways, gates = shape
        cell = {4: nn.LSTM, 3: nn.GRU}[gates]
        masks = {"rnn": torch.ones(layers * ways, 6, dtype=torch.bool)}
        sizes = {"inputs": inputs, "layers": layers, "directions": ways, "gates": gates}
        cost = {"rnn": RecurrentCost(**sizes, per_weight=1, per_row=2)}
        for kept in range(6, 0, -1):
            small = cell(inputs, kept, layers, bidirectional=ways == 2)
            assert total_cost(masks, cost) == sum(p.numel() for p in small.parameters())
            fewer = {"rnn": masks["rnn"].clone()}
            fewer["rnn"][:, kept - 1] = False
            assert unit_cost(masks, cost)["rnn"] == total_cost(masks, cost) - total_cost(fewer, cost)
            masks = fewer
        assert total_cost(masks, cost) == 0 and unit_cost(masks, cost)["rnn"] > 0

    @pytest.mark.parametrize("name", ["lstm", "gru"])
    def test_pruned_means_zero_after_the_optimizer_and_every_arbor_can_grow_back(self, name):
        model, inputs = injected_model(name, target_modules=["rnn"])
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(3):
            backward(model, inputs)
            score_(model)
            optimizer.step()
        update_(model, 0.5, optimizer=optimizer)
        for _ in range(3):
            backward(model, inputs)
            optimizer.step()
            mask_(model)
            for arbor, names in enumerate(model.rnn._all_weights):
                gone = ~model.rnn.dendrite_mask[arbor]
                for weight in names:
                    rows = model.rnn.get_parameter(weight).view(-1, 8, model.rnn.get_parameter(weight)[0].numel())
                    assert every(rows[:, gone] == 0) and (rows[:, ~gone] != 0).any()
        assert ((model.rnn.growth() > 0) | model.rnn.dendrite_mask).all()

    @pytest.mark.parametrize("name", ["lstm", "gru"])
    def test_what_returns_starts_with_zero_rows_and_a_fresh_optimizer(self, name):
        model, inputs = injected_model(name, target_modules=["rnn"])
        optimizer = torch.optim.Adam(model.train().parameters(), lr=0.01)
        for _ in range(3):
            backward(model, inputs)
            score_(model)
            optimizer.step()
        update_(model, 0.5, optimizer=optimizer)
        backward(model, inputs)
        optimizer.step()
        mask_(model)
        before, expected = model.rnn.dendrite_mask.clone(), outputs(model.eval(), inputs)
        moments = {p: copy.deepcopy(optimizer.state[p]) for p in model.rnn.parameters()}
        backward(model, inputs)
        regrown = update_(model, 0.0, regrow=0.9, optimizer=optimizer).regrown
        back = model.rnn.dendrite_mask & ~before
        assert regrown == back.sum() > 0 and (back.sum(1) == back[0].sum()).all()
        torch.testing.assert_close(outputs(model, inputs), expected)  # it returns without a jolt
        for arbor, names in enumerate(model.rnn._all_weights):
            for parameter in map(model.rnn.get_parameter, names):
                for key in ("exp_avg", "exp_avg_sq"):
                    now, old = optimizer.state[parameter][key], moments[parameter][key]
                    now, old = now.view(-1, 8, now[0].numel()), old.view(-1, 8, old[0].numel())
                    assert every(now[:, back[arbor]] == 0) and torch.equal(now[:, ~back[arbor]], old[:, ~back[arbor]])
        live = model.rnn.dendrite_mask & ~back
        assert every(model.rnn.dendrite_score[back] == model.rnn.dendrite_score[live].min())

    def test_random_and_magnitude_prune_it_too(self):
        for importance in ("random", "magnitude", "taylor", "movement"):
            model, inputs = injected_model(importance=importance)
            backward(model, inputs)
            score_(model)
            assert update_(model, 0.5).sparsity >= 0.5
            pack_and_check(model, inputs)
            assert layout_of(model).modules["rnn"].hidden == 8


def test_series_reach_the_model_and_its_layers_are_called():
    model, inputs = injected_model("gru")
    assert inputs.keys() == series().keys() and set(dendritic_layers(model)) == {"project", "rnn", "middle"}
