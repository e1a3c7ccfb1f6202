"""Models whose speed is compared: each can be made evenly narrower, and called as it is in use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import count_macs

TOKENS, PIXELS = 128, 224

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A model that can be made narrower evenly.

    Attributes:
        make: The model whose widths are this share of the full ones.
        inputs: A batch of so many samples.
        channels_last: Whether it is timed in that memory format, too.
        decodes: Whether it is timed on one more token after the inputs, whose keys and values are in a cache.
    """

    make: Callable[[float], nn.Module]
    inputs: Callable[[int], Inputs]
    channels_last: bool = False
    decodes: bool = False

    def macs(self, model: nn.Module) -> int:
        inputs = self.inputs(1)
        return count_macs(model, Batch.of({k: v[:, :1] for k, v in inputs.items()} if self.decodes else inputs))

    def call(self, model: nn.Module, compiled: Callable[..., Any], inputs: Inputs) -> Callable[[], Any]:
        """One forward pass of `compiled`, which is `model` or the compiled form of it."""
        if not self.decodes:
            return lambda: compiled(**inputs)
        with torch.no_grad():
            cache: Any = model(**inputs, use_cache=True).past_key_values
        last = inputs["input_ids"][:, -1:]

        def one_more() -> None:
            compiled(input_ids=last, past_key_values=cache, use_cache=True)
            cache.crop(-1)

        return one_more


def _multiple(width: float, of: int) -> int:
    return max(of, round(width / of) * of)


def _bert(share: float, width: int, layers: int) -> nn.Module:
    """BERT with a head, so that its stream is not an output."""
    config = hf.BertConfig(
        hidden_size=_multiple(width * share, 12),
        intermediate_size=_multiple(4 * width * share, 4),
        num_hidden_layers=layers,
    )
    return hf.BertForSequenceClassification(config)


def _vit(share: float) -> nn.Module:
    width = _multiple(768 * share, 12)
    config = hf.ViTConfig(hidden_size=width, intermediate_size=_multiple(3072 * share, 4))
    return hf.ViTForImageClassification(config)


def _gpt2(share: float) -> nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=_multiple(768 * share, 12)))


def _resnet(share: float) -> nn.Module:
    sizes = [_multiple(width * share, 4) for width in (256, 512, 1024, 2048)]
    return hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=_multiple(64 * share, 4), hidden_sizes=sizes))


def _tokens(samples: int) -> Inputs:
    return {"input_ids": torch.randint(0, 1000, (samples, TOKENS))}


def _pixels(samples: int) -> Inputs:
    return {"pixel_values": torch.randn(samples, 3, PIXELS, PIXELS)}


SUBJECTS: Mapping[str, Subject] = {
    "bert-base": Subject(lambda share: _bert(share, 768, 12), _tokens),
    "minilm": Subject(lambda share: _bert(share, 384, 6), _tokens),
    "vit-base": Subject(_vit, _pixels),
    "resnet-50": Subject(_resnet, _pixels, channels_last=True),
    "gpt2-prefill": Subject(_gpt2, _tokens),
    "gpt2-decode": Subject(_gpt2, _tokens, decodes=True),
}
