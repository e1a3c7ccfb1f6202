"""LSTM and GRU layers: the gate is exact, pruned means zero, and the packed layer computes what the masked one does."""

import copy
import io
import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers.compare import every
from helpers.models import build, roughen
from helpers.recurrent import BATCH, HIDDEN, INPUT, KEPT, TIME, noise
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from optimum.dendritic import (
    DendriticConfig,
    DendriticError,
    inject_,
)
from optimum.dendritic.functional.importance import gate_gradient
from optimum.dendritic.layout.records import Recurrent
from optimum.dendritic.nn import (
    DendriticRecurrent,
    PackedRecurrent,
    inject_layer,
    pack_recurrent,
    states,
)
from optimum.dendritic.state import layout_of

CELLS = [nn.LSTM, nn.GRU]
SHAPES = list(itertools.product(CELLS, [1, 2], [False, True]))
every_shape = pytest.mark.parametrize(("cell", "layers", "both"), SHAPES)


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
            assert every(torch.equal(one, other) for one, other in zip(*results, strict=True))

    @every_shape
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_pruned_unit_is_exactly_zero(self, cell, layers, both, dtype):
        layer = masked(cell, layers, both).to(dtype)
        output, state = layer(noise(TIME, BATCH, INPUT).to(dtype), None)
        for part in flat(state):
            assert every(part[~layer.dendrite_mask[:, None].expand_as(part)] == 0)
        last = layer.dendrite_mask[-2 if both else -1 :].flatten()
        assert every(output[..., ~last] == 0) and (output[..., last] != 0).any()

    def test_is_its_own_after_to_and_copy_and_assignment(self):
        layer = masked(nn.LSTM)
        for own in (copy.deepcopy(layer), layer.to(torch.float64).to(torch.float32), stock_again(layer)):
            assert every(a is b for a, b in zip(own._flat_weights, own.parameters(), strict=True))
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
    found = layer._sums(gate_gradient, layer._gradients()).detach()
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
        assert every(p.grad is not None and p.grad.isfinite().all() for p in packed.parameters())

    @pytest.mark.parametrize("cell", CELLS)
    def test_copies_casts_and_autocast(self, cell):
        layer = masked(cell, 2, True)
        packed, x = pack_recurrent(layer, layer.kept()), noise(TIME, BATCH, INPUT)
        expected = packed(x)
        for own in (copy.deepcopy(packed), stock_again(packed), copy.deepcopy(packed).double().float()):
            own.flatten_parameters()
            assert every(a is b for a, b in zip(own._flat_weights, own.parameters(), strict=True))
            assert own.hidden_size == HIDDEN and own.form == Recurrent(HIDDEN, KEPT)
            assert_close(own(x), expected)
        half = copy.deepcopy(packed).to(torch.bfloat16)(x.to(torch.bfloat16))
        assert every(part.dtype == torch.bfloat16 for part in flat(half))
        with torch.autocast("cpu", torch.bfloat16):
            assert [part.dtype for part in flat(packed(x))] == [part.dtype for part in flat(layer(x))]

    @pytest.mark.slow
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
