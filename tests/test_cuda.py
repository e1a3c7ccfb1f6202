"""On a GPU: a step waits for nothing, and what is trained, packed, saved and loaded there answers alike."""

import copy

import pytest
import torch
from helpers.models import build, outputs
from torch import nn

from optimum.dendritic import DendriticConfig, Pruner, inject_, mask_, score_, update_

if not torch.cuda.is_available():
    pytest.skip("no GPU, and CUDA is NOT TESTED", allow_module_level=True)

DEVICE = torch.device("cuda")
STEPS = 12


def trained(name: str, units: str, steps: int = STEPS) -> tuple[nn.Module, dict, Pruner]:
    """A model that was pruned on the device and is not packed yet."""
    model, inputs = build(name)
    model, inputs = model.to(DEVICE), {key: value.to(DEVICE) for key, value in inputs.items()}
    config = DendriticConfig(sparsity=0.5, units=units, segment_size=4, end=0.8, updates=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = Pruner(model, config, steps=STEPS, optimizer=optimizer, example_inputs=inputs)
    for _ in range(steps):
        outputs_of(model, inputs).square().mean().backward()
        pruner.before_step()
        optimizer.step()
        pruner.after_step()
        optimizer.zero_grad()
    return model.eval(), inputs, pruner


def outputs_of(model: nn.Module, inputs: dict) -> torch.Tensor:
    found = model(**inputs)
    return found if isinstance(found, torch.Tensor) else found["logits"]


@pytest.mark.parametrize(("name", "units"), [("bert", "fine"), ("gpt2", "structured"), ("resnet_basic", "structured")])
def test_what_is_packed_and_loaded_answers_as_what_was_trained(name, units, tmp_path):
    model, inputs, pruner = trained(name, units)
    masked = outputs(model, inputs)
    dense = sum(p.numel() for p in model.parameters())
    packed = pruner.pack()
    assert sum(p.numel() for p in packed.parameters()) < dense
    assert all(tensor.device.type == DEVICE.type for tensor in packed.state_dict().values())
    torch.testing.assert_close(outputs(packed, inputs), masked, rtol=1e-3, atol=1e-4)
    packed.save_pretrained(tmp_path)
    again = type(packed).from_pretrained(tmp_path).to(DEVICE).eval()
    torch.testing.assert_close(outputs(again, inputs), outputs(packed, inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("units", ["fine", "structured"])
def test_a_step_waits_for_nothing(units):
    model, inputs, _ = trained("bert", units, steps=6)
    outputs_of(model, inputs).square().mean().backward()
    score_(model), mask_(model)  # what is made once is made
    torch.cuda.set_sync_debug_mode("error")
    try:
        score_(model)
        mask_(model)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_masks_are_those_of_a_cpu():
    here, inputs = build("bert")
    inject_(here, DendriticConfig(sparsity=0.5, segment_size=4), example_inputs=inputs)
    there = copy.deepcopy(here).to(DEVICE)
    outputs_of(here, inputs).square().mean().backward()
    for own, other in zip(there.parameters(), here.parameters(), strict=True):
        own.grad = None if other.grad is None else other.grad.to(DEVICE)
    for model in (here, there):
        score_(model)
        update_(model, 0.4, regrow=0.1)
    masks = {name: buffer.cpu() for name, buffer in there.named_buffers() if name.endswith("dendrite_mask")}
    assert masks and all(torch.equal(mask, here.get_buffer(name)) for name, mask in masks.items())
