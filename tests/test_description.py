"""What a user is told about each layer: true of the tensors, the same after loading, and nothing is left out."""

import logging

import pytest
import torch
from helpers.checkpoints import saved
from helpers.models import FixedHeads, build, roughen, vectors
from optimum.utils import logging as optimum_logging
from torch import nn
from transformers import AutoModelForCausalLM

from optimum.dendritic import DendriticConfig, compress_, describe, inject_
from optimum.dendritic.inspection.describe import DENSE, together
from optimum.dendritic.state import dendritic_layers


def halve(model: nn.Module) -> None:
    for layer in dendritic_layers(model).values():
        layer.dendrite_mask[:, 1::2] = False


def test_a_stock_model_is_dense_everywhere():
    model, _ = build("plain_cnn")
    assert describe(model) == dict.fromkeys(["conv1", "conv2", "fc1", "fc2"], DENSE)


def test_every_state_of_a_layer_has_its_words():
    model, inputs = build("gpt2")
    inject_(model, DendriticConfig(sparsity=0.0, segment_size=4), example_inputs=inputs)
    assert describe(model)["transformer.h.0.attn.c_attn"] == "injected: 4 of 4 segments"
    halve(model)
    assert describe(model)["transformer.h.0.attn.c_attn"] == "injected: 2 of 4 segments"
    words = describe(compress_(model, inputs))
    assert words["transformer.h.0.attn.c_attn"] == "gather: 8 of 16 -> 24"
    assert words["transformer.h.0.attn.c_proj"] == "plain: 8 -> 16"
    assert words["transformer.h.0.mlp.c_fc"] == "gather: 8 of 16 -> 12"
    assert words["transformer.h.0.mlp.c_proj"] == "plain: 12 -> 16"
    assert words["lm_head"] == DENSE and len(words) == 9


def test_heads_that_cannot_go_leave_zeros():
    model = compress_(halved_heads(), vectors())
    words = describe(model)
    assert words["fused"] == "gather, scatter: 8 of 16 -> 24 of 48" and words["out"] == "gather: 8 of 16 -> 16"


def halved_heads() -> nn.Module:
    model = roughen(FixedHeads())
    inject_(model, DendriticConfig(sparsity=0.0, segment_size=4), example_inputs=vectors())
    halve(model)
    return model


def test_arbors_and_followers_are_told():
    model, inputs = build("plain_cnn")
    inject_(model, DendriticConfig(sparsity=0.0, segment_size=9, arbors=2, target_modules=["conv1", "conv2"]),
            example_inputs=inputs)  # fmt: skip
    first = dendritic_layers(model)["conv1"]
    first.dendrite_mask.copy_(torch.tensor([[True, False, False], [False, True, False]]))
    dendritic_layers(model)["conv2"].dendrite_mask[:, 1::2] = False
    words = describe(compress_(model, inputs))
    assert words["conv1"] == "gather: 1 of 3 for each of 2 arbors -> 6"
    assert words["bn1"] == "plain: 6 channels" and words["conv2"] == "plain: 6 -> 16"
    assert words["fc1"] == words["fc2"] == DENSE


def test_a_loaded_model_says_the_same(tmp_path):
    model, _ = saved(tmp_path, "llama", "packed")
    assert describe(AutoModelForCausalLM.from_pretrained(tmp_path)) == describe(model)


def test_matrices_outside_of_layers_are_named_and_tables_are_not():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up, self.scale = nn.Parameter(torch.ones(2, 4, 6)), nn.Parameter(torch.ones(1, 1, 6))

    model = nn.Sequential(nn.Embedding(9, 4), Experts(), nn.LayerNorm(4), nn.LSTM(4, 4), nn.Conv1d(4, 4, 3))
    assert describe(model) == dict.fromkeys(["1", "3", "4"], DENSE)


@pytest.fixture
def logged(caplog):
    """What the package logs, also where a command has configured the logger of the `optimum` namespace."""
    optimum_logging.set_verbosity_info()
    optimum_logging.enable_propagation()
    caplog.set_level(logging.INFO)
    yield caplog
    optimum_logging.disable_propagation()
    optimum_logging.set_verbosity_warning()


def test_packing_logs_what_became_of_each_layer_and_why(logged):
    model = halved_heads()
    dendritic_layers(model)["stem"].dendrite_mask.fill_(True)
    compress_(model, vectors())
    (text,) = [record.getMessage() for record in logged.records if record.getMessage().startswith("Packed")]
    assert text.splitlines() == [
        "Packed FixedHeads: 0 plain and smaller, 2 with a gather, 1 with a scatter, 1 as large as before",
        "  gather, from a tensor that is not theirs alone: fused",
        "  gather, from a tensor that cannot shrink (split, reshaped, added): out",
        "  scatter, into a tensor that cannot shrink: fused",
        "  as large as before: stem",
        "  no target: head",
    ]


def test_like_names_are_told_once():
    assert together([]) == ""
    assert together(["a.0.b", "c", "a.10.b", "a.1.b2"]) == "a.*.b (2), c, a.1.b2"
