"""vLLM: a packed Llama-like model as a folder of the form that its `DeciLMForCausalLM` reads.

In that form every block says itself how wide its FFN is and how many query heads share a key, and may lack its
attention or its FFN. Query heads are one number for the whole model. The config is read with a file of Python that lies
beside it, as on the Hub with the models that the form was made for: hence `trust_remote_code=True`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import invalid
from ..nn import merged_table
from .comparison import check_exportable, staged
from .llama_blocks import ATTENTION, FFN, Block, blocks_of, dense_weight

CONFIGURATION = Path(__file__).with_name("configuration_deci.py")
OTHERWISE = "Prune neurons and blocks alone (units=['neurons', 'blocks']) or evenly (native=True), or export to GGUF."


def export_vllm(
    model: PreTrainedModel, folder: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> Path:
    """Write a Llama, Mistral or Qwen2 as a folder for vLLM: `LLM(folder, trust_remote_code=True)`.

    Blocks of which nothing is left are left out. A sliding window is not told: instead, the context is at most as long.

    Args:
        model: packed, loaded or stock, of any dtype; it is not changed.
        folder: created if it does not exist; files of the same names are replaced.
        tokenizer: saved beside it.

    Returns:
        Path of `model.safetensors`.

    Raises:
        DendriticError: the model is none of these, is not packed, has a layer that gathers, has blocks whose numbers of
            query heads differ, or norms in its attention; nothing was written.
    """
    check_exportable(model, {p.dtype for p in model.parameters()})
    blocks = [block for block in blocks_of(model) if block.heads or block.neurons]
    if any(block.query_norm is not None for block in blocks):
        rule = "has norms in its attention, which DeciLMForCausalLM has not"
        raise invalid(
            "model", type(model).__name__, rule, "Prune it with native=True: stock vLLM runs the result as it is."
        )
    numbers = [block.heads for block in blocks]
    if len({*numbers} - {0}) > 1:
        rule = "must be the same in all blocks that have attention, since DeciLMForCausalLM has one number of them"
        raise invalid("query heads", numbers, rule, OTHERWISE)
    heads = max(numbers, default=0) or 1
    with staged(folder) as staging:
        save_file(_tensors(model, blocks, heads), staging / "model.safetensors", metadata={"format": "pt"})
        (staging / "config.json").write_text(json.dumps(_config(model, blocks, heads), indent=2) + "\n")
        shutil.copyfile(CONFIGURATION, staging / CONFIGURATION.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
    return Path(folder) / "model.safetensors"


def _config(model: PreTrainedModel, blocks: list[Block], heads: int) -> dict[str, Any]:
    stock = model.config.to_dict()
    copied = (
        "vocab_size", "hidden_act", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "bos_token_id",
        "eos_token_id", "pad_token_id", "initializer_range",
    )  # fmt: skip
    window, length = stock.get("sliding_window"), stock["max_position_embeddings"]
    parts = [
        {"attention": _attention(block, heads, first=index == 0), "ffn": _ffn(block)}
        for index, block in enumerate(blocks)
    ]
    return {
        **{name: stock[name] for name in copied},
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{CONFIGURATION.stem}.DeciConfig"},
        "model_type": "nemotron-nas",
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "max_position_embeddings": min(window or length, length),
        "hidden_size": len(blocks[0].attention_norm),
        "head_dim": blocks[0].head_size,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // parts[0]["attention"]["n_heads_in_group"],
        "num_hidden_layers": len(blocks),
        "intermediate_size": max(block.neurons for block in blocks),
        "qkv_bias": any(block.attention["attn_q"].bias is not None for block in blocks if block.heads),
        "attention_bias": any(block.attention["attn_output"].bias is not None for block in blocks if block.heads),
        "mlp_bias": any(block.ffn["ffn_down"].bias is not None for block in blocks if block.neurons),
        "block_configs": parts,
    }


def _attention(block: Block, heads: int, first: bool) -> dict[str, Any]:
    """The first block has attention, if only of zeros: vLLM begins its sum of the residual stream there."""
    if not block.heads and not first:
        return {"no_op": True, "n_heads_in_group": None}
    return {"no_op": False, "n_heads_in_group": heads // block.key_heads if block.heads else heads}


def _ffn(block: Block) -> dict[str, Any]:
    return {"no_op": not block.neurons, "intermediate_size": block.neurons or None}


def _tensors(model: PreTrainedModel, blocks: list[Block], heads: int) -> dict[str, Tensor]:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, nn.Module) and isinstance(head, nn.Module)
    norm = model.get_submodule(f"{model.base_model_prefix}.norm")
    tensors = {"model.embed_tokens.weight": merged_table(embedding), "model.norm.weight": dense_weight(model, norm)}
    if head.weight is not next(embedding.parameters()):
        tensors["lm_head.weight"] = dense_weight(model, head)
    config = _config(model, blocks, heads)
    biased = {name: config["qkv_bias"] for name in ATTENTION} | {"attn_output": config["attention_bias"]}
    biased |= {name: config["mlp_bias"] for name in FFN}
    for index, block in enumerate(blocks):
        prefix = f"model.layers.{index}."
        if block.heads or index == 0:
            layers = block.attention if block.heads else _zeros(block, heads)
            tensors |= {f"{prefix}input_layernorm.weight": block.attention_norm}
            tensors |= _linears(f"{prefix}self_attn.", ATTENTION, layers, biased)
        if block.neurons:
            tensors |= {f"{prefix}post_attention_layernorm.weight": block.ffn_norm}
            tensors |= _linears(f"{prefix}mlp.", FFN, block.ffn, biased)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _linears(
    prefix: str, names: Mapping[str, str], layers: Mapping[str, nn.Linear], biased: Mapping[str, bool]
) -> dict[str, Tensor]:
    """Weights, and biases where the config says that there are some: zeros in a block that has none."""
    tensors = {}
    for name, stock in names.items():
        layer = layers[name]
        tensors[f"{prefix}{stock}.weight"] = layer.weight
        if biased[name]:
            zeros = layer.weight.new_zeros(len(layer.weight))
            tensors[f"{prefix}{stock}.bias"] = zeros if layer.bias is None else layer.bias
    return tensors


def _zeros(block: Block, heads: int) -> dict[str, nn.Linear]:
    """Attention with one key that adds nothing to the stream."""
    width, like = len(block.attention_norm), block.attention_norm
    rows = {"attn_q": heads * block.head_size, "attn_k": block.head_size, "attn_v": block.head_size}

    def layer(inputs: int, outputs: int) -> nn.Linear:
        made = nn.Linear(inputs, outputs, bias=False, device=like.device, dtype=like.dtype)
        torch.nn.init.zeros_(made.weight)
        return made

    made = {name: layer(width, count) for name, count in rows.items()}
    return made | {"attn_output": layer(heads * block.head_size, width)}
