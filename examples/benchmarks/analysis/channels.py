"""The inner channels of a ResNet's basic blocks: what they cost, what a gradient says of each, what is lost without it.

A channel is the output of a block's first convolution. Only the second one reads it, so that it goes alone: with a row
of the first, an entry of its normalisation and a column of the second.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Block:
    """One basic block.

    Attributes:
        module: The block itself.
        producer: The first convolution.
        norm: The normalisation of what the first convolution makes.
        reader: The second convolution.
        start: The index of its first channel among those of all blocks.
    """

    name: str
    module: nn.Module
    producer: nn.Conv2d
    norm: nn.BatchNorm2d
    reader: nn.Conv2d
    start: int

    @property
    def channels(self) -> slice:
        return slice(self.start, self.start + self.reader.in_channels)


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """In the order in which they compute."""
    found, start = [], 0
    for name, module in model.named_modules():
        if type(module).__name__ == "ResNetBasicLayer":
            producer, norm = (module.get_submodule(f"layer.0.{part}") for part in ("convolution", "normalization"))
            reader = module.get_submodule("layer.1.convolution")
            assert isinstance(producer, nn.Conv2d) and isinstance(reader, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            found.append(Block(name=name, module=module, producer=producer, norm=norm, reader=reader, start=start))
            start += reader.in_channels
    return found


def costs(model: PreTrainedModel, pixels: Tensor) -> Float[Tensor, " channels"]:
    """Multiply-accumulates that go with each channel; all of a block cost the same, however many are left."""
    sizes: dict[str, int] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor, name: str) -> None:
        sizes[name] = outputs[0, 0].numel()

    blocks = blocks_of(model)
    hooks = [block.reader.register_forward_hook(partial(note, name=block.name)) for block in blocks]
    with torch.inference_mode():
        model.eval()(pixel_values=pixels[:1])
    for hook in hooks:
        hook.remove()
    per = [sizes[b.name] * (b.producer.weight[0].numel() + b.reader.weight[:, 0].numel()) for b in blocks]
    return torch.cat([torch.full((b.reader.in_channels,), float(c)) for b, c in zip(blocks, per, strict=True)])


def gate_gradients(
    model: PreTrainedModel, pixels: Tensor, labels: Tensor, batch_size: int
) -> tuple[Float[Tensor, "samples channels"], Float[Tensor, " channels"]]:
    """`dL/dm` of each sample's own loss for the gate `m` of each channel, and the mean square of each channel.

    The model computes in the mode that it is in; where it normalises by batches, the mean over a batch is exact and
    the part of one sample is not.
    """
    blocks, gradients, squares = blocks_of(model), [], []
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
        inputs[0].retain_grad()
        seen[name] = inputs[0]

    hooks = [block.reader.register_forward_pre_hook(partial(keep, name=block.name)) for block in blocks]
    for own, truth in zip(pixels.split(batch_size), labels.split(batch_size), strict=True):
        with torch.autocast(pixels.device.type, torch.bfloat16):  # as a training computes
            logits = model(pixel_values=own).logits.float()
        F.cross_entropy(logits, truth, reduction="sum").backward()
        values = [seen[b.name].detach().float() for b in blocks]
        gates = [(v * _grad(seen[b.name]).float()).sum((2, 3)) for v, b in zip(values, blocks, strict=True)]
        gradients.append(torch.cat(gates, 1))
        squares.append(torch.cat([v.square().mean((0, 2, 3)) for v in values]))
        model.zero_grad()
    for hook in hooks:
        hook.remove()
    return torch.cat(gradients), torch.stack(squares).mean(0)


@torch.inference_mode()
def removal_losses(
    model: PreTrainedModel, pixels: Tensor, labels: Tensor, batch_size: int = 250
) -> Float[Tensor, "channels samples"]:
    """By how much each sample's loss rises when a channel alone is zero: the truth that scores stand for."""
    model.eval()
    blocks = blocks_of(model)
    rises = torch.zeros(blocks[-1].channels.stop, len(labels))
    for start in range(0, len(labels), batch_size):
        own = slice(start, start + batch_size)
        x = model.get_submodule("resnet.embedder")(pixels[own])
        whole = _losses(model, blocks, x, labels[own])
        for number, block in enumerate(blocks):
            first, second = (block.module.get_submodule(f"layer.{place}") for place in (0, 1))
            middle, around = first(x), block.module.get_submodule("shortcut")(x)
            for channel in range(middle.shape[1]):
                without = middle.clone(memory_format=torch.preserve_format)
                without[:, channel] = 0
                y = torch.relu(second(without) + around)
                rises[block.start + channel, own] = _losses(model, blocks[number + 1 :], y, labels[own]) - whole
            x = block.module(x)
    return rises


def without(model: PreTrainedModel, removed: Bool[Tensor, " channels"]) -> PreTrainedModel:
    """A copy whose `removed` channels reach nothing."""
    pruned = copy.deepcopy(model)
    mask_(pruned, removed)
    return pruned


@torch.no_grad()
def mask_(model: PreTrainedModel, removed: Bool[Tensor, " channels"]) -> None:
    """Set what reads the `removed` channels to zero."""
    for block in blocks_of(model):
        block.reader.weight[:, removed[block.channels]] = 0


def group_norms(model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """By block, of each channel: `||W||^2` of its row, the square scale of its norm, `||W||^2` of its column."""
    for block in blocks_of(model):
        row, column = (w.detach().square() for w in (block.producer.weight, block.reader.weight))
        yield row.sum((1, 2, 3)), block.norm.weight.detach().square(), column.sum((0, 2, 3))


def _losses(model: PreTrainedModel, blocks: list[Block], x: Tensor, labels: Tensor) -> Tensor:
    for block in blocks:
        x = block.module(x)
    return F.cross_entropy(model.get_submodule("classifier")(x.mean((2, 3))), labels, reduction="none")


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad
