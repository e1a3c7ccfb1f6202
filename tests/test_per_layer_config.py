"""What stock transformers makes of `per_layer_config` today, which is where native models can say numbers of layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from helpers.exports import PER_LAYER
from torch import nn
from transformers.integrations.heterogeneity import AmbiguousGlobalPerLayerAttributeError
from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM, Gemma4TextConfig
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

NUMBERS: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4,
}  # fmt: skip
OTHER = {"intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
LAYERS = {
    "intermediate_size": ("mlp.up_proj", "intermediate.dense"),
    "num_attention_heads": ("self_attn.q_proj", "attention.self.query"),
    "num_key_value_heads": ("self_attn.k_proj", "attention.self.key"),
}
STOCK: dict[str, Callable[..., nn.Module]] = {
    "Llama": lambda **fields: hf.LlamaForCausalLM(hf.LlamaConfig(**NUMBERS, **fields)),
    "BERT": lambda **fields: hf.BertModel(hf.BertConfig(**{k: v for k, v in NUMBERS.items() if k in BERT}, **fields)),
    "Gemma 4": lambda **fields: Gemma4ForCausalLM(
        Gemma4TextConfig(
            **NUMBERS, vocab_size_per_layer_input=50, hidden_size_per_layer_input=4,
            layer_types=["sliding_attention", "full_attention"], **fields,
        )
    ),
    "Step 3.7": lambda **fields: Step3p7TextModel(
        Step3p7TextConfig(
            **NUMBERS, mlp_layer_types=["dense"] * 2, n_routed_experts=2, moe_intermediate_size=8, share_expert_dim=8,
            num_experts_per_tok=1, **fields,
        )
    ),
}  # fmt: skip
BERT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def built(name: str, **fields: Any) -> nn.Module:
    with torch.device("meta"):
        return STOCK[name](**fields)


def rows(model: nn.Module, field: str) -> list[int]:
    """How many rows the layers have whose width the field says."""
    found = [layer for name, layer in model.named_modules() if name.endswith(LAYERS[field])]
    return [layer.out_features for layer in found if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(("name", "field"), [row for row, read in PER_LAYER.items() if read])
def test_what_is_read(name: str, field: str):
    first, second = rows(built(name, per_layer_config={0: {field: OTHER[field]}}), field)
    assert first * NUMBERS[field] == second * OTHER[field]


@pytest.mark.parametrize(("name", "field"), [row for row, read in PER_LAYER.items() if not read])
def test_what_is_not_read_raises(name: str, field: str):
    with pytest.raises(AmbiguousGlobalPerLayerAttributeError, match=f"'{field}' is a per-layer attribute"):
        built(name, per_layer_config={0: {field: OTHER[field]}})


def test_layers_of_one_kind_are_alike_in_gemma_4():
    two = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
    given = NUMBERS | two | {"vocab_size_per_layer_input": 50, "hidden_size_per_layer_input": 4}
    config = Gemma4TextConfig(**given, per_layer_config={0: {"num_key_value_heads": 1}})
    with pytest.raises(ValueError, match="'sliding_attention' is not homogeneous"), torch.device("meta"):
        Gemma4ForCausalLM(config)


def test_where_it_is_allowed_all_layers_have_the_global_width():
    config = hf.LlamaConfig(**NUMBERS, per_layer_config={0: {"intermediate_size": 12}})
    config.allow_global_per_layer_attribute_access = True
    with torch.device("meta"):
        assert rows(hf.LlamaForCausalLM(config), "intermediate_size") == [24, 24]
