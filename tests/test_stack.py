"""A stack whose blocks can be skipped: exact at both ends of a gate, with the gate's true derivative."""

import copy

import pytest
import torch
from helpers.models import build
from torch import nn

from optimum.dendritic.functional.importance import IMPORTANCE
from optimum.dendritic.nn import DendriticStack, inject_stack
from optimum.dendritic.nn.surgery import swap

STACKS = {"bert": "bert.encoder.layer", "gpt2": "transformer.h", "llama": "model.layers", "vit": "vit.layers"}
every_stack = pytest.mark.parametrize("name", STACKS)


def gated(name: str) -> tuple[nn.Module, DendriticStack, dict]:
    model, inputs = build(name)
    stack = inject_stack(model.get_submodule(STACKS[name]))
    swap(model, {STACKS[name]: stack})
    return model, stack, inputs


def skip_(stack: DendriticStack, *blocks: int) -> None:
    stack.dendrite_mask[0, list(blocks)] = False
    stack.mask_()


@every_stack
def test_injection_is_exact(name):
    dense, inputs = build(name)
    model, _, _ = gated(name)
    assert torch.equal(model(**inputs).logits, dense(**inputs).logits)
    assert {k for k in model.state_dict() if "dendrite" not in k} == set(dense.state_dict())


@every_stack
def test_a_skipped_block_is_as_if_it_were_not_there(name):
    dense, inputs = build(name)
    del dense.get_submodule(STACKS[name])[0]
    for index, block in enumerate(dense.get_submodule(STACKS[name])):
        for module in block.modules():
            if "layer_idx" in vars(module):
                module.layer_idx = index
    model, stack, _ = gated(name)
    skip_(stack, 0)
    assert torch.equal(model(**inputs).logits, dense(**inputs).logits)


def test_hidden_states_are_those_after_the_gate():
    model, inputs = build("bert")
    model(**inputs, output_hidden_states=True)  # the hooks of transformers that collect them stand already
    stack = inject_stack(model.bert.encoder.layer)
    swap(model, {"bert.encoder.layer": stack})
    skip_(stack, 1)
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == 3 and torch.equal(states[2], states[1]) and not torch.equal(states[1], states[0])


@pytest.mark.parametrize("skipped", [False, True])
def test_the_gate_has_the_derivative_of_the_interpolation(skipped):
    """Against a linear interpolation between skipping and not skipping, which autograd takes the derivative of."""
    model, stack, inputs = gated("bert")
    model.double()
    if skipped:
        skip_(stack, 0)
    model(**inputs).logits.square().sum().backward()
    dense, _ = build("bert")
    dense.double()
    gate = torch.tensor(0.0 if skipped else 1.0, dtype=torch.float64, requires_grad=True)
    dense.bert.encoder.layer[0].register_forward_hook(lambda m, args, y: args[0] + gate * (y - args[0]))
    dense(**inputs).logits.square().sum().backward()
    assert torch.allclose(stack.dendrite_gate.grad[0], gate.grad)
    weights = [m.get_parameter("bert.embeddings.word_embeddings.weight").grad for m in (model, dense)]
    assert torch.allclose(*weights)
    inner = model.bert.encoder.layer[0].output.dense.weight.grad
    assert inner is not None and bool(inner.any()) is not skipped


def test_scores():
    _, stack, _ = gated("bert")
    skip_(stack, 1)
    gradient = {"dendrite_gate": torch.tensor([2.0, 3.0])}
    assert stack.reading(IMPORTANCE["dendritic"], gradient).tolist() == [[4.0, 9.0]]  # a skipped block is judged, too
    norms = [sum(p.square().sum() for p in block.parameters()) for block in stack]
    assert torch.allclose(stack.reading(IMPORTANCE["magnitude"], gradient), torch.stack(norms)[None])


def test_an_optimizer_does_not_move_the_gates():
    model, stack, inputs = gated("bert")
    skip_(stack, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(**inputs).logits.sum().backward()
    optimizer.step()
    assert stack.dendrite_gate.tolist() != [0, 1]
    stack.mask_()
    assert stack.dendrite_gate.tolist() == [0, 1] and stack.kept()[0].tolist() == [1]


def test_a_copy_has_gates_of_its_own():
    model, _, inputs = gated("bert")
    twin = copy.deepcopy(model)
    skip_(twin.bert.encoder.layer, 0)
    assert not torch.equal(model(**inputs).logits, twin(**inputs).logits)
    assert torch.equal(model(**inputs).logits, build("bert")[0](**inputs).logits)


def test_a_slice_is_an_ordinary_list():
    _, stack, _ = gated("llama")
    assert [block is own for block, own in zip(stack[:1], stack, strict=False)] == [True]
