"""The analysis of rankings: it reads of a channel what the layer's own gradients say, and what it removes is gone."""

import argparse
import doctest
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "benchmarks"))

from analysis import channels, ranking, scores  # noqa: E402

from resnet20 import ResNet20Config, ResNet20ForImageClassification  # noqa: E402


@pytest.fixture
def model() -> ResNet20ForImageClassification:
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 6, 8], "depths": [1, 1, 1]}
    made = ResNet20ForImageClassification(ResNet20Config(num_labels=10, **sizes)).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    return made


def batch(samples: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 3, 16, 16), torch.arange(samples) % 10


def test_the_gradient_of_a_gate_is_that_of_what_reads_the_channel(model):
    pixels, labels = batch()
    found, squares = channels.gate_gradients(model, pixels, labels, batch_size=2)
    F.cross_entropy(model(pixel_values=pixels).logits, labels, reduction="sum").backward()
    readers = [block.reader.weight for block in channels.blocks_of(model)]
    own = torch.cat([(weight * weight.grad).sum((0, 2, 3)) for weight in readers]).detach()
    assert found.shape == (6, 18) and squares.shape == (18,) and bool((squares >= 0).all())
    assert torch.corrcoef(torch.stack([found.sum(0), own]))[0, 1] > 0.99  # bf16 here, fp32 there


def test_the_loss_without_a_channel_is_that_of_a_model_that_has_lost_it(model):
    pixels, labels = batch()
    rises = channels.removal_losses(model, pixels, labels, batch_size=4)
    whole = F.cross_entropy(model(pixel_values=pixels).logits, labels, reduction="none")
    for channel in (0, 5, 17):
        gone = torch.arange(18) == channel
        rest = channels.without(model, gone)
        own = F.cross_entropy(rest(pixel_values=pixels).logits, labels, reduction="none")
        assert torch.allclose(rises[channel], (own - whole).detach(), atol=1e-5)
    assert channels.costs(model, pixels).unique().numel() == 3


def test_rankings_are_compared_in_and_between_layers():
    assert doctest.testmod(scores).failed == 0
    layers = torch.tensor([0, 0, 0, 1, 1, 1])
    first, second = torch.tensor([3.0, 2.0, 1.0, 30.0, 20.0, 10.0]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert scores.within(first, second, layers) == -1 and scores.between(first, second, layers) == 1
    gone = scores.weakest(second, torch.tensor([1.0, 1, 1, 3, 3, 3]), 0.5)
    assert gone.tolist() == [False, True, True, True, False, False] or int(gone.sum()) > 0
    assert scores.weakest(second, torch.ones(6), 0.5).tolist() == [True] * 3 + [False] * 3


@pytest.mark.slow
def test_the_analysis_runs_from_a_saved_model_to_a_card(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        images = np.random.default_rng(0).integers(0, 256, (512, 3, 16, 16), np.uint8)
        np.save(tmp_path / "data" / f"{split}-images.npy", images)
        np.save(tmp_path / "data" / f"{split}-labels.npy", np.arange(512) % 10)
    sizes = {"steps": 4, "images": 8, "early": 1, "rate": 0.1, "level": 0.5, "recovery": 1, "recovery_rate": 0.01}
    sizes |= {"recoveries": 2, "rounds": 2}
    paths = {"model": tmp_path / "model", "output_dir": tmp_path, "card": tmp_path / "card.md"}
    args = argparse.Namespace(dataset="unused", seed=0, **sizes, **paths)
    result = ranking.analysed(args)
    ranking.render(result, args.card)
    assert result["agreement"].keys() == scores.SCORES.keys()
    assert "second order" in args.card.read_text() and args.card.with_suffix(".json").exists()
