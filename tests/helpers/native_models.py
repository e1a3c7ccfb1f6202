"""Small models of families, injected with a native config and trained for a few steps, and packed."""

import copy
from collections.abc import Callable

import torch
import transformers as hf
from transformers.models.gemma3n import Gemma3nForCausalLM, Gemma3nTextConfig
from transformers.models.step3p7 import Step3p7Config, Step3p7ForConditionalGeneration

from helpers.families import ALL, Family, build, inputs_of, language
from helpers.families_training import endless, train
from optimum.dendritic import DendriticConfig, compress_, inject_

STEPS = 12


def gemma_3n(**fields: object) -> Gemma3nTextConfig:
    """A config that takes a list: one FFN width for each layer."""
    given = {
        "vocab_size": 50, "vocab_size_per_layer_input": 50, "hidden_size": 16, "hidden_size_per_layer_input": 4,
        "intermediate_size": [24, 20, 16], "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 4, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2, "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return Gemma3nTextConfig(**{**given, **fields})


def step_3_7(**fields: object) -> Step3p7Config:
    """A config whose text model reads the heads of each layer from `per_layer_config`; it is shown no image."""
    text = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 4, "sliding_window": 4, "num_experts_per_tok": 1, "n_routed_experts": 2,
        "moe_intermediate_size": 8, "share_expert_dim": 8, "mlp_layer_types": ["dense"] * 3, "pad_token_id": 0,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
        "max_position_embeddings": 4, "mlp_ratio": 2.0,
    }  # fmt: skip
    return Step3p7Config(text_config={**text, **fields}, vision_config=vision, image_token_id=2)


GEMMA_3N = Family("Gemma 3n (text)", lambda: Gemma3nForCausalLM(gemma_3n()), language, hf.AutoModelForCausalLM)
STEP_3_7 = Family(
    "Step 3.7", lambda: Step3p7ForConditionalGeneration(step_3_7()), language, hf.AutoModelForImageTextToText
)
FAMILIES = {family.name: family for family in (*ALL, GEMMA_3N, STEP_3_7)}


class NativeModels:
    """Those of one kind of config; each is made once, and whoever changes it takes a copy."""

    def __init__(self, config: Callable[[str], DendriticConfig]) -> None:
        """
        Args:
            config: that of a family, by its name.
        """
        self.config = config
        self._masked, self._packed = dict[str, hf.PreTrainedModel](), dict[str, hf.PreTrainedModel]()

    def masked(self, name: str) -> hf.PreTrainedModel:
        """The model of a family after a few steps."""
        if name not in self._masked:
            family = FAMILIES[name]
            model = inject_(build(family), self.config(name), example_inputs=inputs_of(family))
            with torch.random.fork_rng([]):
                train(model, endless(family.batch()), STEPS, self.config(name))
            self._masked[name] = model
        return self._masked[name]

    def packed(self, name: str) -> hf.PreTrainedModel:
        """What packing makes of it."""
        if name not in self._packed:
            self._packed[name] = compress_(copy.deepcopy(self.masked(name)), inputs_of(FAMILIES[name]))
        return self._packed[name]
