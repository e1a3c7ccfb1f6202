"""LSTM and GRU: hidden units have an exact gate, are pruned to zero, grow back, are packed, saved, loaded, trained."""

import copy
import io
import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build, outputs, roughen, series
from safetensors.torch import load_file, save_file
from test_compress import pack_and_check
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from optimum.dendritic import (
    CheckpointError,
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    compress_,
    inject_,
    mask_,
    score_,
    update_,
)
from optimum.dendritic.costs import RecurrentCost
from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import count_macs
from optimum.dendritic.importance import gate_gradient
from optimum.dendritic.inject import layer_costs
from optimum.dendritic.layout import Recurrent, Segments
from optimum.dendritic.nn import (
    DendriticGRU,
    DendriticLSTM,
    DendriticRecurrent,
    PackedRecurrent,
    inject_layer,
    pack_recurrent,
    states,
)
from optimum.dendritic.record import dendritic_layers, layout_of
from optimum.dendritic.selection import total_cost, unit_cost

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))
from recurrent import RecurrentConfig, RecurrentForSequenceClassification  # noqa: E402

CELLS = [nn.LSTM, nn.GRU]
SHAPES = list(itertools.product(CELLS, [1, 2], [False, True]))
every_shape = pytest.mark.parametrize(("cell", "layers", "both"), SHAPES)
INPUT, HIDDEN, KEPT, TIME, BATCH = 5, 8, 3, 4, 3


def stock(cell: type, layers: int = 1, both: bool = False, **options: Any) -> nn.LSTM | nn.GRU:
    layer = cell(INPUT, HIDDEN, layers, bidirectional=both, **options)
    roughen(layer)
    return layer


def masked(cell: type, layers: int = 1, both: bool = False, kept: int = KEPT, **options: Any) -> DendriticRecurrent:
    """An injected layer that keeps other units in each direction of each layer."""
    layer = stock(cell, layers, both, **options)
    injected = inject_layer(layer, states(layer), HIDDEN)
    assert isinstance(injected, DendriticRecurrent)
    order = torch.rand(states(layer), HIDDEN, generator=torch.Generator().manual_seed(0)).argsort(1)
    injected.dendrite_mask.scatter_(1, order[:, kept:], False)
    injected.mask_()
    return injected


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state_for(layer: nn.RNNBase, batch: int | None = BATCH) -> Tensor | tuple[Tensor, Tensor]:
    shape = (states(layer), HIDDEN) if batch is None else (states(layer), batch, HIDDEN)
    return (noise(*shape, seed=2), noise(*shape, seed=3)) if isinstance(layer, nn.LSTM) else noise(*shape, seed=2)


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, PackedSequence):
        return [result.data]
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in flat(part)]


def assert_close(actual: Any, expected: Any) -> None:
    for one, other in zip(flat(actual), flat(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


class TestTheInjectedLayer:
    @every_shape
    @pytest.mark.parametrize("training", [False, True])
    def test_equals_stock_bit_for_bit(self, cell, layers, both, training):
        layer = stock(cell, layers, both, dropout=0.5 if layers > 1 else 0.0).train(training)
        injected = inject_layer(layer, states(layer), HIDDEN)
        assert [id(p) for p in injected.parameters()] == [id(p) for p in layer.parameters()]
        for state in (None, state_for(layer)):
            results = []
            for one in (layer, injected):
                torch.manual_seed(0)
                one.zero_grad()
                found = flat(one(noise(TIME, BATCH, INPUT), state))
                sum(part.square().sum() for part in found).backward()
                results.append(found + [p.grad.clone() for p in one.parameters()])
            assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))

    @every_shape
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_pruned_unit_is_exactly_zero(self, cell, layers, both, dtype):
        layer = masked(cell, layers, both).to(dtype)
        output, state = layer(noise(TIME, BATCH, INPUT).to(dtype), None)
        for part in flat(state):
            assert (part[~layer.dendrite_mask[:, None].expand_as(part)] == 0).all()
        last = layer.dendrite_mask[-2 if both else -1 :].flatten()
        assert (output[..., ~last] == 0).all() and (output[..., last] != 0).any()

    def test_is_its_own_after_to_and_copy_and_assignment(self):
        layer = masked(nn.LSTM)
        for own in (copy.deepcopy(layer), layer.to(torch.float64).to(torch.float32), stock_again(layer)):
            assert all(a is b for a, b in zip(own._flat_weights, own.parameters(), strict=True))
        source = stock(nn.LSTM)
        injected = inject_layer(source, 1, HIDDEN)
        injected.weight_ih_l0 = nn.Parameter(torch.zeros_like(injected.weight_ih_l0))
        assert source._flat_weights[0] is source.weight_ih_l0 and injected._flat_weights[0] is injected.weight_ih_l0

    def test_a_state_of_another_shape_is_refused(self):
        for layer in (masked(nn.GRU), pack_recurrent(masked(nn.GRU), masked(nn.GRU).kept())):
            for shape in ((1, BATCH, KEPT), (2, BATCH, HIDDEN), (1, 1, BATCH, HIDDEN)):
                with pytest.raises(DendriticError, match="hx"):
                    layer(noise(TIME, BATCH, INPUT), noise(*shape))


def stock_again(layer: nn.Module) -> nn.Module:
    """Saved whole and read again, as some do."""
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def gated_loss(layer: DendriticRecurrent, gate: Tensor, x: Tensor) -> Tensor:
    """The loss with an explicit gate on every weight that touches a unit, written with indices."""
    ways, parameters = 2 if layer.bidirectional else 1, dict(layer.named_parameters())
    gated = {}
    for level, way in itertools.product(range(layer.num_layers), range(ways)):
        own = gate[level * ways + way]
        suffix = f"l{level}" + ("_reverse" if way else "")
        below = gate[(level - 1) * ways : level * ways].flatten() if level else torch.ones(INPUT, dtype=gate.dtype)
        for kind, columns in {"weight_ih": below, "weight_hh": own, "bias_ih": None, "bias_hh": None}.items():
            weight = parameters[f"{kind}_{suffix}"].detach()
            rows = own.repeat(weight.shape[0] // HIDDEN)
            gated[f"{kind}_{suffix}"] = weight * (rows if columns is None else rows[:, None] * columns)
    return functional_call(layer, gated, (x,))[0].sin().square().sum()


@every_shape
def test_the_gate_gradient_is_that_of_an_explicit_gate(cell, layers, both):
    layer = inject_layer(stock(cell, layers, both).double(), layers * (1 + both), HIDDEN)
    x, gate = noise(TIME, BATCH, INPUT).double(), torch.ones(states(layer), HIDDEN, dtype=torch.double)
    layer(x)[0].sin().square().sum().backward()
    pairs = zip(layer.gated(layer.segmented()), layer.gated(layer._gradients()), strict=True)
    found = torch.cat([gate_gradient(weight, gradient) for weight, gradient in pairs])
    gate.requires_grad_()
    gated_loss(layer, gate, x).backward()
    torch.testing.assert_close(found, gate.grad)
    for unit in [(0, 0), (states(layer) - 1, HIDDEN - 1)]:  # and the automatic one is that of finite differences
        step = torch.zeros_like(gate)
        step[unit] = 1e-6
        with torch.no_grad():
            slope = (gated_loss(layer, gate + step, x) - gated_loss(layer, gate - step, x)) / 2e-6
        assert slope.item() == pytest.approx(found[unit].item(), rel=1e-5, abs=1e-6)


@every_shape
def test_a_shut_gate_is_a_pruned_unit(cell, layers, both):
    layer = inject_layer(stock(cell, layers, both), layers * (1 + both), HIDDEN)
    gate = torch.ones(states(layer), HIDDEN)
    gate[-1, 2] = gate[0, 5] = 0
    layer.dendrite_mask.copy_(gate > 0)
    expected = gated_loss(layer, gate, noise(TIME, BATCH, INPUT))
    layer.mask_()
    torch.testing.assert_close(layer(noise(TIME, BATCH, INPUT))[0].sin().square().sum(), expected)


@pytest.mark.parametrize("importance", ["dendritic", "taylor", "movement", "magnitude"])
def test_every_importance_reads_the_weights_that_the_gate_multiplies(importance):
    layer = inject_layer(stock(nn.GRU, 2), 2, HIDDEN)
    layer(noise(TIME, BATCH, INPUT))[0].square().sum().backward()
    layer.score_(importance, 0.5)
    product, squares = torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN)
    for name, p in layer.named_parameters():
        arbor = int(name[-1])
        for value, total in ((p * p.grad, product), (p * p, squares)):
            total[arbor] += value.view(3, HIDDEN, -1).sum((0, 2))
            if name.startswith("weight_hh"):
                total[arbor] += value.sum(0)
            if name == "weight_ih_l1":
                total[0] += value.sum(0)
    formula = {
        "dendritic": 0.5 * product**2,
        "taylor": 0.5 * product.abs(),
        "movement": -0.5 * product,
        "magnitude": squares,
    }
    torch.testing.assert_close(layer.dendrite_score, formula[importance].detach(), rtol=1e-4, atol=1e-5)


def test_activation_is_refused_for_recurrent_targets_and_for_them_alone():
    model, inputs = build("lstm")
    config = DendriticConfig(importance="activation", sparsity=0.3)
    with pytest.raises(DendriticError, match="importance = 'activation': rnn is recurrent.*exclude_modules"):
        inject_(model, config, example_inputs=inputs)
    assert layout_of(model) is None and type(model.rnn) is nn.LSTM
    config = DendriticConfig(importance="activation", sparsity=0.3, segment_size=2, exclude_modules=["rnn"])
    assert "rnn" not in layout_of(inject_(model, config, example_inputs=inputs)).modules


COMPILE = """
import torch
from torch import nn
from optimum.dendritic.nn import inject_layer, pack_recurrent
for cell in (nn.LSTM, nn.GRU):
    layer = inject_layer(cell(5, 8, 2), 2, 8)
    layer.dendrite_mask[:, 3:] = False
    layer.mask_()
    h, x = torch.randn(2, 3, 8), torch.randn(4, 3, 5)
    for one in (layer, pack_recurrent(layer, layer.kept())):
        model = nn.Sequential(nn.Linear(5, 5), one)
        compiled = torch.compile(model, backend="eager")
        assert torch.equal(compiled(x)[0], model(x)[0])
        state = h if cell is nn.GRU else (h, h)
        assert torch.equal(torch.compile(one, backend="eager")(x, state)[0], one(x, state)[0])
"""  # in a process without checked annotations, which cannot be compiled


class TestThePackedLayer:
    @every_shape
    @pytest.mark.parametrize("kept", [0, 1, KEPT, HIDDEN])
    @pytest.mark.parametrize("bias", [True, False])
    def test_masked_equals_packed(self, cell, layers, both, kept, bias):
        for batch_first in (False, True):
            layer = masked(cell, layers, both, kept, bias=bias, batch_first=batch_first)
            packed = pack_recurrent(layer, layer.kept())
            assert isinstance(packed, PackedRecurrent) is (kept < HIDDEN)
            assert packed.hidden_size == HIDDEN and packed.weight_hh_l0.shape[1] == kept
            x = noise(BATCH, TIME, INPUT) if batch_first else noise(TIME, BATCH, INPUT)
            for state in (None, state_for(layer)):
                assert_close(packed(x, state), layer(x, state))
            assert_close(packed(x[0], state_for(layer, None)), layer(x[0], state_for(layer, None)))
            assert_close(packed(x[0]), layer(x[0]))

    @every_shape
    @pytest.mark.parametrize("kept", [0, KEPT])
    def test_packed_sequences(self, cell, layers, both, kept):
        layer = masked(cell, layers, both, kept)
        packed = pack_recurrent(layer, layer.kept())
        sequence = pack_padded_sequence(noise(TIME, BATCH, INPUT), torch.tensor([2, 4, 1]), enforce_sorted=False)
        for state in (None, state_for(layer)):
            found, expected = packed(sequence, state), layer(sequence, state)
            assert_close(found, expected)
            assert_close(pad_packed_sequence(found[0])[0], pad_packed_sequence(expected[0])[0])

    @every_shape
    def test_dropout_between_layers_and_gradients(self, cell, layers, both):
        if layers == 1:
            return
        layer = masked(cell, layers, both, KEPT, dropout=0.5).train()
        packed = pack_recurrent(layer, layer.kept())
        assert packed.training and packed.dropout == 0.5
        flat(packed(noise(TIME, BATCH, INPUT)))[0].sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in packed.parameters())

    @pytest.mark.parametrize("cell", CELLS)
    def test_copies_casts_and_autocast(self, cell):
        layer = masked(cell, 2, True)
        packed, x = pack_recurrent(layer, layer.kept()), noise(TIME, BATCH, INPUT)
        expected = packed(x)
        for own in (copy.deepcopy(packed), stock_again(packed), copy.deepcopy(packed).double().float()):
            own.flatten_parameters()
            assert all(a is b for a, b in zip(own._flat_weights, own.parameters(), strict=True))
            assert own.hidden_size == HIDDEN and own.form == Recurrent(HIDDEN, KEPT)
            assert_close(own(x), expected)
        half = copy.deepcopy(packed).to(torch.bfloat16)(x.to(torch.bfloat16))
        assert all(part.dtype == torch.bfloat16 for part in flat(half))
        with torch.autocast("cpu", torch.bfloat16):
            assert [part.dtype for part in flat(packed(x))] == [part.dtype for part in flat(layer(x))]

    def test_compiles(self):
        done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("cell", CELLS)
    def test_runs_under_functional_call(self, cell):
        layer = masked(cell, 2)
        packed, x = pack_recurrent(layer, layer.kept()), noise(TIME, BATCH, INPUT)
        for one in (layer, packed):
            expected = one(x, state_for(layer))
            twice = {name: 2 * p for name, p in one.named_parameters()}
            moved = functional_call(one, twice, (x, state_for(layer)))
            assert not torch.allclose(moved[0], expected[0])
            assert_close(one(x, state_for(layer)), expected)


def injected_model(name: str = "lstm", **fields: Any) -> tuple[nn.Module, dict]:
    model, inputs = build(name)
    fields = {"sparsity": 0.5, "segment_size": 2, "floor": 0.0} | fields
    return inject_(model, DendriticConfig(**fields), example_inputs=inputs), inputs


def backward(model: nn.Module, inputs: dict) -> None:
    model.zero_grad()
    found = model(**inputs)
    (found if isinstance(found, Tensor) else found["logits"]).square().mean().backward()


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
        cost = {"rnn": RecurrentCost(*shape, per_weight=1, per_row=2)}
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
                    assert (rows[:, gone] == 0).all() and (rows[:, ~gone] != 0).any()
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
                    assert (now[:, back[arbor]] == 0).all() and torch.equal(now[:, ~back[arbor]], old[:, ~back[arbor]])
        live = model.rnn.dendrite_mask & ~back
        assert (model.rnn.dendrite_score[back] == model.rnn.dendrite_score[live].min()).all()

    def test_random_and_magnitude_prune_it_too(self):
        for importance in ("random", "magnitude", "taylor", "movement"):
            model, inputs = injected_model(importance=importance)
            backward(model, inputs)
            score_(model)
            assert update_(model, 0.5).sparsity >= 0.5
            pack_and_check(model, inputs)
            assert layout_of(model).modules["rnn"].hidden == 8


def classifier(cell: str = "lstm", **fields: Any) -> RecurrentForSequenceClassification:
    sizes = {"vocab_size": 50, "embedding_size": 6, "hidden_size": 8, "num_labels": 3, "num_hidden_layers": 2}
    with torch.random.fork_rng([]):
        return roughen(RecurrentForSequenceClassification(RecurrentConfig(cell=cell, **(sizes | fields))))


def texts() -> dict[str, Tensor]:
    ids = torch.randint(3, 50, (4, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 3, 5, 1])
    mask = (torch.arange(7) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def pruned(folder: Path, form: str, **fields: Any) -> RecurrentForSequenceClassification:
    model = inject_(classifier(**fields), DendriticConfig(sparsity=0.6, importance="magnitude"))
    score_(model)
    update_(model, 0.6)
    if form == "packed":
        compress_(model)
    model.save_pretrained(folder)
    return model


LOAD = """
import sys, torch
from safetensors.torch import load_file, save_file
import optimum.dendritic, recurrent
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[1] + "/again")
with torch.no_grad():
    save_file({"logits": model(**load_file(sys.argv[1] + "/inputs")).logits}, sys.argv[1] + "/logits")
"""


class TestCheckpoints:
    @pytest.mark.parametrize("pooling", ["mean", "last"])
    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_the_example_packs_and_loads(self, cell, pooling, tmp_path):
        for both in (False, True):
            model = inject_(
                classifier(cell, pooling=pooling, bidirectional=both),
                DendriticConfig(sparsity=0.6, importance="magnitude"),
            )
            assert list(layout_of(model).modules) == ["encoder"] and layout_of(model).positions == {"encoder": 4}
            score_(model)
            update_(model, 0.6)
            expected = outputs(model, texts())
            compress_(model)
            torch.testing.assert_close(outputs(model, texts()), expected, rtol=1e-4, atol=1e-5)
            model.save_pretrained(tmp_path)
            loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
            assert torch.equal(outputs(loaded, texts()), outputs(model, texts()))
            assert loaded.dendritic_layout == model.dendritic_layout and type(loaded.encoder) is type(model.encoder)
            assert loaded.encoder.outputs.dtype == torch.int64

    @pytest.mark.parametrize("form", ["injected", "packed"])
    def test_a_fresh_process_loads_the_same(self, form, tmp_path):
        model = pruned(tmp_path, form)
        save_file(texts(), tmp_path / "inputs")
        command = [sys.executable, "-c", LOAD, str(tmp_path)]
        done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        torch.testing.assert_close(load_file(tmp_path / "logits")["logits"], outputs(model, texts()))
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()

    def test_an_injected_checkpoint_goes_on(self, tmp_path):
        pruned(tmp_path, "injected")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        backward(model.train(), texts())
        score_(model)
        assert update_(model, 0.7, regrow=0.2).sparsity >= 0.7
        expected = outputs(model.eval(), texts())
        torch.testing.assert_close(outputs(compress_(model), texts()), expected, rtol=1e-4, atol=1e-5)

    def test_an_unpruned_layer_packs_to_the_stock_one(self, tmp_path):
        model = compress_(inject_(classifier(), DendriticConfig(sparsity=0.0)))
        assert type(model.encoder) is nn.LSTM and layout_of(model).modules == {"encoder": Recurrent(8, 8)}
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert type(loaded.encoder) is nn.LSTM and layout_of(loaded) == layout_of(model)

    @pytest.mark.parametrize(
        ("edit", "names"),
        [
            (lambda t: t + 100, "outputs.*ascend"),
            (lambda t: t - 100, "outputs.*ascend"),
            (lambda t: t.flip(1), "outputs.*ascend"),
            (lambda t: torch.zeros_like(t), "outputs.*ascend"),
            (lambda t: t.to(torch.int32), "outputs.*I32"),
            (lambda t: t.float(), "outputs.*F32"),
            (lambda t: t[:, 1:].contiguous(), "outputs.*shape"),
            (lambda t: t.flatten(), "outputs.*shape"),
            (None, "outputs.*exactly once"),
        ],
    )
    def test_hostile_indices(self, edit, names, tmp_path):
        model = pruned(tmp_path, "packed")
        tensors = load_file(tmp_path / "model.safetensors")
        index = tensors.pop("encoder.outputs")
        if edit is not None:
            tensors["encoder.outputs"] = edit(index)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=names):
            type(model).from_pretrained(tmp_path)
        with pytest.raises((CheckpointError, RuntimeError), match="outputs|ignore_mismatched_sizes"):
            type(model).from_pretrained(None, config=model.config, state_dict=tensors)

    @pytest.mark.parametrize(
        ("form", "record"),
        [
            ("packed", {"recurrent": {"hidden": 8, "kept": 7}}),
            ("packed", {"recurrent": {"hidden": 8, "kept": 9}}),
            ("packed", {"recurrent": {"hidden": 2**31 - 1, "kept": 4}}),
            ("packed", {"recurrent": {"hidden": 8, "kept": -1}}),
            ("packed", {"recurrent": {"hidden": 8}}),
            ("packed", {"follower": {"channels": 8}}),
            ("packed", {"form": dict(inputs=6, outputs=8, kept=6, arbors=[8], gather=False, scatter=False)}),
            ("injected", {"segments": {"arbors": 2, "segments": 8, "activity": False}}),
            ("injected", {"segments": {"arbors": 4, "segments": 4, "activity": False}}),
            ("injected", {"segments": {"arbors": 4, "segments": 8, "activity": True}}),
            ("injected", {"recurrent": {"hidden": 8, "kept": 8}}),
        ],
    )
    def test_hostile_records(self, form, record, tmp_path):
        model = pruned(tmp_path, form)
        config = json.loads((tmp_path / "config.json").read_text())
        config["quantization_config"]["modules"]["encoder"] = record
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError):
            type(model).from_pretrained(tmp_path)

    def test_records_that_name_a_module_of_another_kind(self, tmp_path):
        model = pruned(tmp_path, "packed")
        written = json.loads((tmp_path / "config.json").read_text())
        wire = {"name": "encoder", "runs": [dict(start=0, size=1, reach=0, width=1, count=8)]}
        bundle = dict(reader="encoder", producers=[wire], followers=[], block=1, cut=True)
        for change in (
            {"modules": {"classifier": written["quantization_config"]["modules"]["encoder"]}},
            {"modules": {"embedding": written["quantization_config"]["modules"]["encoder"]}},
            {"bundles": [bundle]},
            {"modules": {"encoder": {"segments": dict(arbors=4, segments=8, activity=False)}}, "bundles": [bundle]},
        ):
            changed = written | {"quantization_config": written["quantization_config"] | change}
            (tmp_path / "config.json").write_text(json.dumps(changed))
            with pytest.raises(CheckpointError):
                type(model).from_pretrained(tmp_path)


class TestTheTrainer:
    @pytest.mark.parametrize(("cell", "pooling"), [("lstm", "mean"), ("gru", "last")])
    def test_twenty_steps_end_packed(self, cell, pooling, tmp_path):
        samples = [
            {"input_ids": ids, "attention_mask": mask, "labels": i % 3}
            for i, (ids, mask) in enumerate(zip(*texts().values(), strict=True))
        ] * 4
        arguments = TrainingArguments(
            str(tmp_path), max_steps=20, per_device_train_batch_size=4, learning_rate=1e-2, save_strategy="no",
            report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
        )  # fmt: skip
        config = DendriticConfig(sparsity=0.6, updates=5, regrow=0.5)
        model = classifier(cell, pooling=pooling)
        trainer = Trainer(model, arguments, train_dataset=samples, callbacks=[DendriticCallback(config)])
        assert type(model.encoder) in (DendriticLSTM, DendriticGRU)
        dense = sum(p.numel() for p in model.encoder.parameters())
        trainer.train()
        assert isinstance(model.encoder, PackedRecurrent) and layout_of(model).packed
        assert sum(p.numel() for p in model.encoder.parameters()) <= 0.4 * dense
        trainer.save_model(str(tmp_path / "small"))
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
        assert torch.equal(outputs(loaded, texts()), outputs(model.eval(), texts()))


def test_series_reach_the_model_and_its_layers_are_called():
    model, inputs = injected_model("gru")
    assert inputs.keys() == series().keys() and set(dendritic_layers(model)) == {"project", "rnn", "middle"}
