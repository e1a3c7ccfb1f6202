"""Dependency groups with streams: one gate for a unit, costs as packed, masked is packed, saved is loaded."""

from pathlib import Path

import pytest
import torch
from helpers.compare import assert_same, every
from helpers.families import ALL, build, inputs_of
from helpers.families_training import close, logits
from helpers.models import Inputs, backward, outputs, roughen, vectors
from helpers.models import build as build_model
from helpers.packing import target_cost
from helpers.trainers import StopAt, make_trainer, tensors
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from optimum.dendritic import DendriticCallback, DendriticConfig, compress_, inject_, mask_, prune_, score_
from optimum.dendritic.config import IMPORTANCES, SCOPES
from optimum.dendritic.functional.selection import total_cost
from optimum.dendritic.functional.units import streams
from optimum.dendritic.layout.records import Form
from optimum.dendritic.nn.living_norm import LivingNorm
from optimum.dendritic.state import dendritic_layers, gates_in, gates_of, injected_layout, layers_in, layout_of
from optimum.dendritic.structure.model_costs import layer_costs

NAMES = {family.name: family for family in ALL}
STRUCTURED = DendriticConfig(sparsity=0.0, floor=0.0, units="structured", segment_size=4)
WITH_BLOCKS = ["heads", "neurons", "channels", "streams", "blocks"]


def draw_masks(model: nn.Module, seed: int) -> None:
    """Random masks of all gates. A stream keeps a unit at least."""
    generator = torch.Generator().manual_seed(seed)
    layout = injected_layout(model)
    needed = streams(layout.groups)
    for name, gates in gates_in(model, layout, layers_in(model, layout)).items():
        arbors, segments = gates.dendrite_mask.shape
        least = int(name in needed)
        gone = int(torch.randint(segments + 1 - least, (), generator=generator))
        order = torch.rand(arbors, segments, generator=generator).argsort(1)
        gates.dendrite_mask.fill_(True).scatter_(1, order[:, :gone], False)
    mask_(model)


def masked(name: str, seed: int, **fields) -> tuple[PreTrainedModel, Inputs]:
    """A family's model with random masks."""
    model, inputs = build(NAMES[name]), inputs_of(NAMES[name])
    inject_(model, DendriticConfig(**STRUCTURED.to_dict() | fields), example_inputs=inputs)
    draw_masks(model, seed)
    return model, inputs


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_masked_equals_packed_equals_loaded_and_costs_what_was_counted(name, tmp_path):
    for seed, (budget, units) in enumerate([("params", WITH_BLOCKS), ("macs", "structured")]):
        model, inputs = masked(name, seed, budget=budget, units=units)
        layout, layers = injected_layout(model), dendritic_layers(model)
        masks = {n: layer.dendrite_mask.clone() for n, layer in layers.items()}
        cost, expected = total_cost(masks, layer_costs(model)), logits(model, inputs)
        model.save_pretrained(tmp_path / f"injected{seed}")
        again = type(model).from_pretrained(tmp_path / f"injected{seed}")
        assert torch.equal(logits(again, inputs), expected)
        compress_(model, inputs)
        assert close(logits(model, inputs), expected, rtol=1e-4)
        assert close(logits(compress_(again, inputs), inputs), expected, rtol=1e-4)
        assert target_cost(model, list(layers), layout.positions if budget == "macs" else None) == cost
        model.save_pretrained(tmp_path / f"packed{seed}")
        loaded = type(model).from_pretrained(tmp_path / f"packed{seed}")
        assert every(torch.equal(tensor, loaded.state_dict()[n]) for n, tensor in model.state_dict().items())
        assert close(logits(loaded, inputs), logits(model, inputs))


SCATTERING = {"LSTM", "GRU"}  # whose hidden units are read by what keeps its width


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_structured_layer_gathers_or_scatters(name):
    """Zeros of full width stand for a group of which nothing is left, so each keeps a unit."""
    model, inputs = masked(name, 0)
    layout = injected_layout(model)
    for gates in gates_in(model, layout, layers_in(model, layout)).values():
        if len(gates.dendrite_mask) == 1:  # the states of a recurrent layer keep equally many
            gates.dendrite_mask[:, 0] = True
    compress_(model, inputs)
    records = layout_of(model).modules
    if name not in SCATTERING:
        assert every(record.plain for record in records.values() if isinstance(record, Form))
    assert not any(record.gather for record in records.values() if isinstance(record, Form))


@pytest.mark.slow
@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("name", ["GPT-2", "ViT"])
def test_streams_are_pruned_in_one_shot_by_every_importance(name, importance):
    """Their heads read the stream, too, and are not targets: an embedding's weight, and a layer of its own."""
    family = NAMES[name]
    model, inputs = build(family).eval(), inputs_of(family)
    inject_(model, DendriticConfig(sparsity=0.4, units="structured", importance=importance), example_inputs=inputs)
    prune_(model, [family.batch()], rounds=2)
    assert any(not mask.all() for mask in masks_of(model).values())
    expected = logits(model, inputs)
    assert close(logits(compress_(model, inputs), inputs), expected, rtol=1e-4)


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: gates.dendrite_mask for name, gates in gates_of(model).items()}


class Gated(nn.Module):
    """A stream without norms, with a gate at every reader if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.gate: Tensor | None = None

    def read(self, x: Tensor) -> Tensor:
        return x if self.gate is None else x * self.gate

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = x + self.down(torch.tanh(self.up(self.read(x))))
        return self.head(self.read(x))


def test_the_gate_of_a_unit_has_the_derivative_of_a_real_gate_on_the_stream():
    model, inputs = roughen(Gated()), vectors()
    inject_(model, DendriticConfig(sparsity=0.1, units="structured", decay=0.0), example_inputs=inputs)
    (group,) = [group for group in layout_of(model).groups if group.kind == "streams"]
    assert {member.name for member in group.consumers} == {"up", "head"}
    model.gate = torch.ones(8, requires_grad=True)
    backward(model, inputs)
    assert model.gate.grad is not None and model.gate.grad.abs().min() > 1e-4
    score_(model)
    found = dendritic_layers(model)[group.host].dendrite_score
    torch.testing.assert_close(found, model.gate.grad.square()[None])


def test_scores_of_a_stream_do_not_come_from_one_consumer_alone():
    model, inputs = roughen(Gated()), vectors()
    inject_(model, DendriticConfig(sparsity=0.1, units="structured", decay=0.0), example_inputs=inputs)
    backward(model, inputs)
    layout = injected_layout(model)
    gates = gates_in(model, layout, layers_in(model, layout))
    (host,) = streams(layout.groups)
    single = {n: (model.get_submodule(n).weight * model.get_submodule(n).weight.grad).sum(0) for n in ("up", "head")}
    score_(model)
    torch.testing.assert_close(gates[host].dendrite_score[0], (single["up"] + single["head"]).square())


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "resnet_basic", "llama"])
def test_injection_changes_no_bit(name):
    model, inputs = build_model(name)
    expected = outputs(model, inputs)
    inject_(model, STRUCTURED, example_inputs=inputs)
    assert torch.equal(outputs(model, inputs), expected)
    assert name == "resnet_basic" or any(isinstance(module, LivingNorm) for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_tied_weights_stay_tied(name, scope, tmp_path: Path):
    model, inputs = build_model(name)
    assert isinstance(model, PreTrainedModel)
    if not model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    inject_(model, DendriticConfig(**STRUCTURED.to_dict() | {"scope": scope}), example_inputs=inputs)
    draw_masks(model, 1)
    expected = outputs(model, inputs)
    model.save_pretrained(tmp_path)
    assert layout_of(type(model).from_pretrained(tmp_path)).dense_cost == layout_of(model).dense_cost
    compress_(model, inputs)
    model.save_pretrained(tmp_path)
    for packed in (model, type(model).from_pretrained(tmp_path)):
        table, head = packed.get_input_embeddings(), packed.get_output_embeddings()
        assert table.weight is head.weight and (
            table.weight.shape[1] < 16 or name == "t5"
        )  # whose encoder is an output
        assert torch.allclose(outputs(packed, inputs), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("form", ["injected", "packed"])
def test_a_body_is_loaded_from_a_model_with_a_head_and_the_other_way_round(form, tmp_path: Path):
    model, inputs = build_model("bert")
    assert isinstance(model, PreTrainedModel)
    inject_(model, STRUCTURED, example_inputs=inputs)
    draw_masks(model, 1)
    if form == "packed":
        compress_(model, inputs)
    model.save_pretrained(tmp_path / "whole")
    body = AutoModel.from_pretrained(tmp_path / "whole", add_pooling_layer=True)
    with torch.no_grad():
        expected = model.base_model(**inputs).last_hidden_state
        assert torch.equal(body(**inputs).last_hidden_state, expected)
        body.save_pretrained(tmp_path / "body")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "body", num_labels=3)
        assert torch.equal(again.base_model(**inputs).last_hidden_state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 10, 16])
def test_a_run_with_streams_that_is_resumed_ends_as_the_undisturbed_one(stop, tmp_path: Path):
    config = DendriticConfig(sparsity=0.4, updates=5, regrow=0.5, units="structured")
    whole = make_trainer(tmp_path / "whole", callbacks=[DendriticCallback(config)])
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": stop}
    make_trainer(tmp_path / "part", callbacks=[DendriticCallback(config), StopAt(stop)], **saving).train()
    again = make_trainer(tmp_path / "part", callbacks=[DendriticCallback(config)], **saving)
    again.train(resume_from_checkpoint=str(tmp_path / f"part/checkpoint-{stop}"))
    assert_same(tensors(whole.model), tensors(again.model))
