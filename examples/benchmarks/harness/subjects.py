"""Small models in every state of a compression: what hostile files, interruptions and faults are tried on."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from optimum.dendritic import DendriticConfig, compress_, inject_, mask_, score_, target_sparsity, update_

sys.path.append(str(Path(__file__).resolve().parents[2]))

from recurrent import RecurrentConfig, RecurrentForSequenceClassification  # noqa: E402

Inputs = dict[str, Tensor]
LABELS: dict[str, Any] = {"num_labels": 3}
SHAPE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **LABELS, **SHAPE))


def gpt2() -> PreTrainedModel:
    sizes: dict[str, Any] = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_inner": 24}
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1, **sizes))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, max_position_embeddings=16, **SHAPE))


def vit() -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **LABELS, **SHAPE))


def resnet() -> PreTrainedModel:
    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [2, 1]}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", **LABELS, **sizes))


def recurrent(cell: str) -> PreTrainedModel:
    config = RecurrentConfig(
        vocab_size=50, embedding_size=6, hidden_size=8, num_labels=3, num_hidden_layers=2, cell=cell
    )
    return RecurrentForSequenceClassification(config)


def lstm() -> PreTrainedModel:
    return recurrent("lstm")


def gru() -> PreTrainedModel:
    return recurrent("gru")


def inputs_of(model: PreTrainedModel) -> Inputs:
    """Two samples with labels."""
    draw = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        size = model.config.to_dict().get("image_size") or 32
        return {"pixel_values": torch.randn(2, 3, size, size, generator=draw), "labels": torch.tensor([0, 2])}
    ids = torch.randint(3, 50, (2, 6), generator=draw)
    causal = isinstance(model, GPT2LMHeadModel | LlamaForCausalLM)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids if causal else torch.tensor([0, 2])}


@dataclass(frozen=True)
class Subject:
    """A model, and how it is compressed.

    Attributes:
        packed: Whether it is packed in the end.
        save: The keyword arguments of `save_pretrained`.
    """

    make: Callable[[], PreTrainedModel]
    fields: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    save: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> DendriticConfig:
        return DendriticConfig(**{"sparsity": 0.5, "segment_size": 4, "regrow": 0.5} | self.fields)

    def dense(self) -> PreTrainedModel:
        """With rough weights, so that no two channels are alike."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = self.make()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    def injected(self) -> PreTrainedModel:
        model = self.dense()
        inject_(model, self.config, example_inputs=inputs_of(model))
        return model

    def trained(self) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
        """Injected, two steps into its training, half pruned, with gradients for the next step."""
        model = self.injected().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            aim = target_sparsity(model)
            for sparsity in (aim / 2, aim):
                backward(model)
                score_(model)
                update_(model, sparsity, regrow=0.5, optimizer=optimizer)
                optimizer.step()
                mask_(model)
            backward(model)
        return model, optimizer

    def saved(self, folder: Path) -> PreTrainedModel:
        """In a folder, as it is when its training has ended."""
        model, _ = self.trained()
        model.zero_grad()
        model.eval()
        if self.packed:
            compress_(model, inputs_of(model))
        model.save_pretrained(folder, **self.save)
        return model


def backward(model: PreTrainedModel) -> None:
    model.zero_grad()
    model(**inputs_of(model)).loss.backward()


SUBJECTS = {
    "bert": Subject(bert),
    "bert packed": Subject(bert, packed=True),
    "gathered packed": Subject(bert, {"arbors": 2, "target_modules": ["query"]}, packed=True),
    "activity": Subject(bert, {"arbors": 2, "importance": "activation"}),
    "sprouts": Subject(bert, {"sprout_rank": 1, "segment_size": 2}),
    "sprouts packed": Subject(bert, {"sprout_rank": 1, "segment_size": 2}, packed=True),
    "native": Subject(bert, {"native": True, "sparsity": 0.3}),
    "gpt2": Subject(gpt2),
    "gpt2 packed": Subject(gpt2, packed=True),
    "llama packed": Subject(llama, {"budget": "macs"}, packed=True),
    "vit packed": Subject(vit, packed=True),
    "resnet": Subject(resnet),
    "resnet packed": Subject(resnet, packed=True),
    "lstm": Subject(lstm),
    "lstm packed": Subject(lstm, packed=True),
    "gru packed": Subject(gru, packed=True),
    "streams": Subject(bert, {"units": "structured"}),
    "streams packed": Subject(vit, {"units": "structured"}, packed=True),
    "tied streams": Subject(gpt2, {"units": "structured", "scope": "model"}),
    "tied streams packed": Subject(gpt2, {"units": "structured", "scope": "model"}, packed=True),
    "sharded": Subject(bert, save={"max_shard_size": "8KB"}),
    "sharded packed": Subject(bert, packed=True, save={"max_shard_size": "6KB"}),
}
