"""The families of models that compression is held to, each as a tiny model with rough weights and a training batch.

There is one line for each family and no code for any: a family is a config. `test_families.py` runs all of them, and
`families_table.py` makes the table of supported models from them.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import nn

from helpers.models import Inputs, roughen
from helpers.sizes import IMAGE, TEXT
from optimum.dendritic import DendriticConfig, inject_

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from recurrent import RecurrentConfig, RecurrentForSequenceClassification  # noqa: E402

LABELS, SAMPLES, TOKENS, PIXELS = 3, 4, 6, 32
PRUNING = DendriticConfig(sparsity=0.5, segment_size=4, updates=3)


@dataclass(frozen=True)
class Family:
    """`name` as the table shows it; `load` is the class whose `from_pretrained` reads its checkpoints."""

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Inputs]
    load: Any


def build(family: Family) -> hf.PreTrainedModel:
    """A model in eval mode with rough weights, the same ones each time. The global random state is left alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = roughen(family.make())
    assert isinstance(model, hf.PreTrainedModel)
    return model


def inputs_of(family: Family) -> Inputs:
    """The batch without its labels."""
    return {name: tensor for name, tensor in family.batch().items() if name != "labels"}


def injected(family: Family) -> hf.PreTrainedModel:
    """A model of the family with dendritic segments."""
    return inject_(build(family), PRUNING, example_inputs=inputs_of(family))


def ids() -> torch.Tensor:
    return torch.randint(3, 50, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(1))


def pixels() -> torch.Tensor:
    return torch.randn(SAMPLES, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1))


def classes() -> torch.Tensor:
    return torch.arange(SAMPLES) % LABELS


def text() -> Inputs:
    return {"input_ids": ids(), "attention_mask": torch.ones(SAMPLES, TOKENS, dtype=torch.int64), "labels": classes()}


def language() -> Inputs:
    return text() | {"labels": ids()}


def translation() -> Inputs:
    return language() | {"decoder_input_ids": ids()}


def images() -> Inputs:
    return {"pixel_values": pixels(), "labels": classes()}


def speech() -> Inputs:
    features = torch.randn(SAMPLES, 8, 32, generator=torch.Generator().manual_seed(1))
    return {"input_features": features, "decoder_input_ids": ids(), "labels": ids()}


def text_family(name: str, model: type, **fields: Any) -> Family:
    config = TEXT | {"num_labels": LABELS} | fields
    return Family(name, lambda: model(model.config_class(**config)), text, hf.AutoModelForSequenceClassification)


def recurrent_family(name: str, **fields: Any) -> Family:
    config = {"vocab_size": 50, "embedding_size": 12, "hidden_size": 16, "num_labels": LABELS} | fields
    model = RecurrentForSequenceClassification
    return Family(name, lambda: model(RecurrentConfig(**config)), text, hf.AutoModelForSequenceClassification)


def decoder(name: str, model: type, **fields: Any) -> Family:
    config = TEXT | fields
    return Family(name, lambda: model(model.config_class(**config)), language, hf.AutoModelForCausalLM)


def translator(name: str, model: type, **fields: Any) -> Family:
    config = {"vocab_size": 50, "pad_token_id": 2, "decoder_start_token_id": 0} | fields
    return Family(name, lambda: model(model.config_class(**config)), translation, hf.AutoModelForSeq2SeqLM)


def image_family(name: str, model: type, **fields: Any) -> Family:
    config = {"num_labels": LABELS} | fields
    return Family(name, lambda: model(model.config_class(**config)), images, hf.AutoModelForImageClassification)


SMALL_DECODERS = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 4}
ALL = [
    text_family("BERT", hf.BertForSequenceClassification),
    text_family(
        "MiniLM", hf.BertForSequenceClassification, num_hidden_layers=6, hidden_size=24, num_attention_heads=12
    ),
    text_family("RoBERTa", hf.RobertaForSequenceClassification),
    text_family(
        "DistilBERT", hf.DistilBertForSequenceClassification, dim=16, hidden_dim=24, n_layers=2, n_heads=4
    ),
    text_family("ELECTRA", hf.ElectraForSequenceClassification, embedding_size=8),
    text_family("ALBERT", hf.AlbertForSequenceClassification, embedding_size=8),
    text_family(
        "DeBERTa-v2", hf.DebertaV2ForSequenceClassification, relative_attention=True, pos_att_type=["p2c", "c2p"],
        position_buckets=4,
    ),
    text_family("ModernBERT", hf.ModernBertForSequenceClassification, cls_token_id=0, sep_token_id=1),
    decoder("GPT-2", hf.GPT2LMHeadModel, n_positions=32, n_embd=16, n_layer=2, n_head=4, n_inner=24),
    decoder("Llama", hf.LlamaForCausalLM, **GROUPED),
    decoder("Mistral", hf.MistralForCausalLM, **GROUPED),
    decoder("Qwen2", hf.Qwen2ForCausalLM, **GROUPED),
    decoder("Qwen3", hf.Qwen3ForCausalLM, **GROUPED),
    decoder("Gemma", hf.GemmaForCausalLM, **GROUPED),
    decoder("Gemma 2", hf.Gemma2ForCausalLM, **GROUPED),
    decoder("Phi-3", hf.Phi3ForCausalLM, num_key_value_heads=2),
    decoder("OPT", hf.OPTForCausalLM, ffn_dim=24, word_embed_proj_dim=16),
    decoder("GPT-NeoX", hf.GPTNeoXForCausalLM),
    decoder("BLOOM", hf.BloomForCausalLM, n_layer=2, n_head=4),
    decoder("Mixtral", hf.MixtralForCausalLM, num_local_experts=2, **GROUPED),
    translator("T5", hf.T5ForConditionalGeneration, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4),
    translator("BART", hf.BartForConditionalGeneration, max_position_embeddings=32, **SMALL_DECODERS),
    Family("Whisper", lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(
        vocab_size=50, num_mel_bins=8, max_source_positions=16, max_target_positions=16, pad_token_id=2, bos_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, **SMALL_DECODERS)), speech, hf.AutoModelForSpeechSeq2Seq),
    image_family("ViT", hf.ViTForImageClassification, **IMAGE),
    image_family("DeiT", hf.DeiTForImageClassification, **IMAGE),
    image_family("BEiT", hf.BeitForImageClassification, **IMAGE),
    image_family("DINOv2", hf.Dinov2ForImageClassification, **IMAGE),
    image_family("CLIP vision", hf.CLIPForImageClassification, vision_config=IMAGE | {"projection_dim": 8}),
    image_family(
        "Swin", hf.SwinForImageClassification, image_size=32, patch_size=4, embed_dim=8, depths=[2, 1],
        num_heads=[2, 4], window_size=2, mlp_ratio=2.0,
    ),
    image_family("ConvNeXt", hf.ConvNextForImageClassification, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2),
    image_family(
        "ConvNeXt V2", hf.ConvNextV2ForImageClassification, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2
    ),
    image_family(
        "ResNet", hf.ResNetForImageClassification, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2],
        layer_type="bottleneck",
    ),
    image_family(
        "RegNet", hf.RegNetForImageClassification, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2],
        groups_width=8,
    ),
    image_family("MobileNetV2", hf.MobileNetV2ForImageClassification, image_size=32, depth_multiplier=0.1,
        depth_divisible_by=4, min_depth=4, finegrained_output=False),
    recurrent_family("LSTM", cell="lstm", num_hidden_layers=2),
    recurrent_family("GRU", cell="gru", bidirectional=False),
]  # fmt: skip
