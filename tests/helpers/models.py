"""Tiny models whose outputs feel every channel: transformers' own initialisation (std 0.02) would hide a wrong cut."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

Inputs = dict[str, Tensor]


class PlainCNN(nn.Module):
    """conv-bn-relu-pool, conv-bn-relu-pool, flatten, linear, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.fc1, self.fc2 = nn.Linear(16 * 4, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class ResidualMLP(nn.Module):
    """Two residual blocks; `up -> down` is exclusive, the stream is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(x)))
        return self.head(x)


class GroupedCNN(nn.Module):
    """Expansion, depthwise convolution, PReLU, projection; then a grouped convolution, which no mark passes."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise, self.act = (
            nn.Conv2d(3, 12, 1),
            nn.Conv2d(12, 12, 3, padding=1, groups=12),
            nn.PReLU(12),
        )
        self.project, self.grouped = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.act(self.depthwise(self.expand(x))))
        return self.head(torch.relu(self.grouped(x)).mean((2, 3)))


class ConcatMLP(nn.Module):
    """The inputs of `join` come half from an exclusive producer, half from the model's input, which nobody can cut."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.join, self.head = nn.Linear(6, 8), nn.Linear(14, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.join(torch.cat([torch.tanh(self.branch(x)), x], -1))))


class FixedHeads(nn.Module):
    """Attention whose fused product is split by numbers in its code, which no packing can change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fused, self.out = nn.Linear(6, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)[:, None]
        query, key, value = (
            part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.fused(x).split((16, 16, 16), -1)
        )
        x = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


class RecurrentNet(nn.Module):
    """linear, LSTM or GRU, mean over time, linear, linear; `h_n` of a first pass is the initial state of a second."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.project, self.rnn = nn.Linear(6, 5), cell(5, 8, layers, batch_first=True, bidirectional=bidirectional)
        self.middle, self.head = nn.Linear(16 if bidirectional else 8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.project(x))
        hidden = self.rnn(x, self.rnn(x)[1])[0].mean(1)
        return self.head(torch.relu(self.middle(hidden)))


@torch.no_grad()
def roughen(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of standard deviation 1 / sqrt(fan-in), biases of 0.3, and BatchNorm statistics far from rest."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                normal(parameter, 0, 1)
            elif parameter.dim() < 2:
                normal(parameter, 0.3 if name == "bias" else 1, 0.3)
            else:
                fan_in = parameter.shape[0] if isinstance(module, Conv1D) else parameter[0].numel()
                normal(parameter, 0, 1 / math.sqrt(fan_in))
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            normal(module.running_mean, 0, 0.3)
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model.eval()


def images(size: int, samples: int = 2) -> Inputs:
    return {"pixel_values": torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(1))}


def text(samples: int = 2) -> Inputs:
    ids = torch.randint(3, 50, (samples, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def vectors(samples: int = 4) -> Inputs:
    return {"x": torch.randn(samples, 6, generator=torch.Generator().manual_seed(1))}


def pixels(samples: int = 2) -> Inputs:
    return {"x": torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(1))}


def series(samples: int = 3) -> Inputs:
    return {"x": torch.randn(samples, 4, 6, generator=torch.Generator().manual_seed(1))}


def bert() -> tuple[nn.Module, Inputs]:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config), text()


def gpt2() -> tuple[nn.Module, Inputs]:
    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=4, n_inner=24, bos_token_id=0, eos_token_id=1
    )
    return GPT2LMHeadModel(config), text()


def llama() -> tuple[nn.Module, Inputs]:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config), text()


def t5() -> tuple[nn.Module, Inputs]:
    config = T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, decoder_start_token_id=0)
    inputs = text()
    return T5ForConditionalGeneration(config), inputs | {"decoder_input_ids": inputs["input_ids"]}


def vit() -> tuple[nn.Module, Inputs]:
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config), images(16)


def resnet_basic() -> tuple[nn.Module, Inputs]:
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12],
        depths=[2, 1],
        layer_type="basic",
        num_labels=3,
        downsample_in_first_stage=False,
    )
    return ResNetForImageClassification(config), images(32)


def resnet_bottleneck() -> tuple[nn.Module, Inputs]:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type="bottleneck", num_labels=3)
    return ResNetForImageClassification(config), images(32)


def mobilenet() -> tuple[nn.Module, Inputs]:
    config = MobileNetV2Config(image_size=32, depth_multiplier=0.1, depth_divisible_by=4, min_depth=4, num_labels=3)
    return MobileNetV2ForImageClassification(config), images(32)


def convnext() -> tuple[nn.Module, Inputs]:
    config = ConvNextConfig(image_size=32, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, num_labels=3)
    return ConvNextForImageClassification(config), images(32)


FACTORIES: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "t5": t5,
    "vit": vit,
    "resnet_basic": resnet_basic,
    "resnet_bottleneck": resnet_bottleneck,
    "mobilenet": mobilenet,
    "convnext": convnext,
    "plain_cnn": lambda: (PlainCNN(), pixels()),
    "residual_mlp": lambda: (ResidualMLP(), vectors()),
    "grouped_cnn": lambda: (GroupedCNN(), pixels()),
    "concat_mlp": lambda: (ConcatMLP(), vectors()),
    "lstm": lambda: (RecurrentNet(nn.LSTM, 2, bidirectional=True), series()),
    "gru": lambda: (RecurrentNet(nn.GRU, 2, bidirectional=False), series()),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Inputs]:
    """A model in eval mode with rough weights, and inputs for it. The global random state is left alone."""
    with torch.random.fork_rng([]):
        model, inputs = FACTORIES[name]()
    return roughen(model, seed), inputs


@torch.no_grad()
def outputs(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    found = model(**inputs)
    return found if isinstance(found, Tensor) else found["logits"]


def backward(model: nn.Module, inputs: dict) -> None:
    model.zero_grad()
    found = model(**inputs)
    (found if isinstance(found, Tensor) else found["logits"]).square().mean().backward()
