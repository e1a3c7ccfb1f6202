"""What is left of each block of a Llama-like model, read from its layers and not from its config."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import invalid
from ..nn import PackedLayer, SkippedBlock

ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
FFN = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
MODELS = ("llama", "mistral", "qwen2", "qwen3")
WHOLE = "Prune whole units: units='structured', arbors=1, sprout_rank=0."


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        heads: Query heads; 0 where nothing is left of the attention.
        key_heads: Key and value heads.
        head_size: Channels of one head.
        neurons: Neurons of the FFN; 0 where nothing is left of it.
        attention: The linear layers of the attention, by the names that GGUF has for them.
        ffn: Those of the FFN.
        attention_norm: The weight of the norm before the attention.
        ffn_norm: That of the norm before the FFN.
        query_norm: That of a norm over each query head, if there is one.
        key_norm: That of a norm over each key head, if there is one.
    """

    heads: int
    key_heads: int
    head_size: int
    neurons: int
    attention: Mapping[str, nn.Linear]
    ffn: Mapping[str, nn.Linear]
    attention_norm: Tensor
    ffn_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None

    @property
    def widths(self) -> tuple[int, int, int]:
        return self.heads, self.key_heads, self.neurons


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """The blocks of a Llama, Mistral, Qwen2 or Qwen3, in order, without those that are skipped.

    Raises:
        DendriticError: it is another model, or a layer gathers, scatters or sprouts, or its heads do not come in groups
            of the same size.
    """
    config = model.config
    if config.model_type not in MODELS:
        rule = "is none of the models whose blocks are known"
        raise invalid("model_type", config.model_type, rule, f"Export one of {', '.join(MODELS)}.")
    if config.hidden_act != "silu":
        raise invalid("hidden_act", config.hidden_act, "must be silu, as in Llama", "Export a model with silu.")
    stack = model.get_submodule(f"{model.base_model_prefix}.layers")
    return [_block(model, block) for block in stack.children() if not isinstance(block, SkippedBlock)]


def dense_weight(model: PreTrainedModel, module: nn.Module) -> Tensor:
    """The weight of a module that multiplies by all of it."""
    if isinstance(module, PackedLayer):
        name = next(name for name, each in model.named_modules() if each is module)
        raise invalid(name, str(module.form), "gathers or scatters, which the target cannot do", WHOLE)
    weight = module.get_parameter("weight")
    assert isinstance(weight, Tensor)
    return weight


def _block(model: PreTrainedModel, block: nn.Module) -> Block:
    size = model.config.to_dict().get("head_dim") or model.config.hidden_size // model.config.num_attention_heads
    attention = {name: block.get_submodule(f"self_attn.{layer}") for name, layer in ATTENTION.items()}
    ffn = {name: block.get_submodule(f"mlp.{layer}") for name, layer in FFN.items()}
    attends, computes = (not _is_gone(layers, last) for layers, last in ((attention, "attn_output"), (ffn, "ffn_down")))
    for layer in [*(attention.values() if attends else ()), *(ffn.values() if computes else ())]:
        dense_weight(model, layer)
    heads, key_heads = (_heads(model, attention[name], size) if attends else 0 for name in ("attn_q", "attn_k"))
    if attends and heads % key_heads:
        rule = f"reads {key_heads} key/value heads: query heads must be a multiple of them"
        raise invalid("query heads", heads, rule, WHOLE)
    norms = {name: module.get_parameter("weight") for name, module in block.named_modules() if name.endswith("norm")}
    return Block(
        heads=heads,
        key_heads=key_heads,
        head_size=size,
        neurons=ffn["ffn_up"].get_parameter("weight").shape[0] if computes else 0,
        attention={name: _linear(layer) for name, layer in attention.items()},
        ffn={name: _linear(layer) for name, layer in ffn.items()},
        attention_norm=norms["input_layernorm"],
        ffn_norm=norms["post_attention_layernorm"],
        query_norm=norms.get("self_attn.q_norm"),
        key_norm=norms.get("self_attn.k_norm"),
    )


def _is_gone(layers: Mapping[str, nn.Module], last: str) -> bool:
    """Whether nothing is left that writes to the residual stream."""
    writer = _linear(layers[last])
    return writer.weight.numel() == 0 and writer.bias is None


def _heads(model: PreTrainedModel, layer: nn.Module, size: int) -> int:
    rows = layer.get_parameter("weight").shape[0]
    if rows % size:
        name = next(name for name, each in model.named_modules() if each is layer)
        raise invalid(f"rows of {name}", rows, f"must be whole heads of {size}", WHOLE)
    return rows // size


def _linear(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return layer
