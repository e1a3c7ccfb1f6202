"""GGUF: a packed Llama-like model as one file for llama.cpp, which runs it without torch and without this package.

Where all blocks are alike the file has the model's own architecture. Where they are not, it has `deci`, in which every
block says its numbers of heads and neurons itself, and may have no attention or no FFN at all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import invalid, near
from ..nn import merged_table
from .comparison import check_exportable, staged
from .gguf_tokenizer import add_tokenizer
from .llama_blocks import ATTENTION, FFN, Block, blocks_of, dense_weight

TYPES = ("f32", "f16", "bf16", "q8_0")
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
UNEVEN = "deci"  # Qwen2, too, where its heads are together not as wide as the stream
ROTATED_BY_HALVES = ("qwen2", "qwen3")  # the others pair neighbouring channels, and want their rows in that order
EMPTY_FFN = 32  # neurons of zeros that stand for no FFN: llama.cpp leaves out the attention of a block that has none
EMPTY_ATTENTION = (
    1  # head of zeros that stands for no attention in the first block: llama.cpp takes its size from there
)


@dataclass(frozen=True)
class _File:
    """What is being written: the writer of the package `gguf`, the architecture, and the type of the matrices."""

    writer: Any
    architecture: str
    dtype: str

    def matrix(self, name: str, tensor: Tensor) -> None:
        """A matrix in the type of the file; q8_0 counts in blocks of 32 inputs, and what has others is in f16."""
        dtype = self.dtype if self.dtype != "q8_0" or tensor.shape[-1] % 32 == 0 else "f16"
        self._add(name, tensor, dtype)

    def vector(self, name: str, tensor: Tensor) -> None:
        self._add(name, tensor, "f32")

    def _add(self, name: str, tensor: Tensor, dtype: str) -> None:
        import gguf

        kind, values = gguf.GGMLQuantizationType[dtype.upper()], tensor.detach().float().cpu().contiguous().numpy()
        self.writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def export_gguf(
    model: PreTrainedModel, file: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, dtype: str = "f16"
) -> Path:
    """Write a Llama, Mistral, Qwen2 or Qwen3 as one GGUF file.

    The widths are read from the layers: heads and key/value heads that are left in each block, neurons of its FFN, and
    channels of the residual stream. An embedding of two factors becomes the one table that they are. llama.cpp has no
    gather, so all layers must be plain, as they are where whole heads and neurons were pruned (`segment_size` at least
    as large as the model is wide). A sliding window is not told: instead, the context is at most as long as the window.

    Args:
        model: packed, loaded or stock, of any dtype; it is not changed.
        file: replaced if it exists.
        tokenizer: byte-level BPE as of Llama 3, Qwen2 or GPT-2, or BPE with byte fallback as of Llama 2 and Mistral;
            without one, the file knows token ids and no text, and the server of llama.cpp does not take it.
        dtype: of the matrices: "f32", "f16", "bf16" or "q8_0", in which matrices whose rows are not a multiple of 32
            stay in f16.

    Returns:
        The path of the file.

    Raises:
        DendriticError: the architecture or the tokenizer is none of these, the model is not packed, or its layers are
            of a form that llama.cpp cannot run; nothing was written.
        ImportError: the extra `gguf` is missing.
    """
    if dtype not in TYPES:
        raise invalid("dtype", dtype, f"must be one of {', '.join(TYPES)}", f"{near(dtype, TYPES)}Choose one of them.")
    check_exportable(model, {p.dtype for p in model.parameters()})
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise ImportError(f"{error}. Install it: pip install optimum-dendritic[gguf]") from error
    blocks, architecture = blocks_of(model), _architecture(model)
    file = Path(file)
    with staged(file.parent) as staging:
        writer = GGUFWriter(staging / file.name, architecture)
        _write(_File(writer, architecture, dtype), model, blocks, tokenizer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return file


def _architecture(model: PreTrainedModel) -> str:
    kind, blocks = model.config.model_type, blocks_of(model)
    first = blocks[0]
    square = first.heads * first.head_size == len(first.attention_norm) or kind != "qwen2"
    if all(block.widths == first.widths for block in blocks) and first.heads and first.neurons and square:
        return ARCHITECTURES[kind]
    if any(block.query_norm is not None for block in blocks):
        rule = "has blocks of different widths and norms in its attention, which no architecture of llama.cpp has both"
        raise invalid("model", type(model).__name__, rule, "Prune it with native=True, which leaves all blocks alike.")
    return UNEVEN


def _write(file: _File, model: PreTrainedModel, blocks: list[Block], tokenizer: PreTrainedTokenizerBase | None) -> None:
    config, writer, uneven = model.config, file.writer, file.architecture == UNEVEN
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, nn.Module) and isinstance(head, nn.Module)
    table = merged_table(embedding).detach()
    neurons = [_neurons(block, last=block is blocks[-1]) for block in blocks]
    empty = [EMPTY_ATTENTION if index == 0 and not block.heads else 0 for index, block in enumerate(blocks)]

    def told(numbers: list[int]) -> Any:
        return numbers if uneven else numbers[0]

    writer.add_name(Path(config.name_or_path or "").name or type(model).__name__)
    window = config.to_dict().get("sliding_window") or config.max_position_embeddings
    writer.add_context_length(min(window, config.max_position_embeddings))
    writer.add_embedding_length(table.shape[1])
    writer.add_block_count(len(blocks))
    writer.add_feed_forward_length(told(neurons))
    writer.add_head_count(told([block.heads or zeros for block, zeros in zip(blocks, empty, strict=True)]))
    writer.add_head_count_kv(told([block.key_heads or zeros for block, zeros in zip(blocks, empty, strict=True)]))
    size = blocks[0].head_size
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(table.shape[0])
    _add_rotation(file, model, size)
    add_tokenizer(writer, tokenizer, table.shape[0])
    file.matrix("token_embd.weight", table)
    file.vector("output_norm.weight", dense_weight(model, model.get_submodule(f"{model.base_model_prefix}.norm")))
    if head.weight is not next(embedding.parameters()):
        file.matrix("output.weight", dense_weight(model, head))
    for index, (block, width) in enumerate(zip(blocks, neurons, strict=True)):
        _write_attention(file, f"blk.{index}.", block, empty[index])
        _write_ffn(file, f"blk.{index}.", block, width)


def _neurons(block: Block, last: bool) -> int:
    """Neurons that a block is written with. llama.cpp skips a block whole that has no FFN, and forgets there which
    rows of the last block are asked for."""
    return block.neurons or (0 if not block.heads and not last else EMPTY_FFN)


def _write_attention(file: _File, prefix: str, block: Block, empty: int) -> None:
    if not block.heads and not empty:
        return
    file.vector(f"{prefix}attn_norm.weight", block.attention_norm)
    if empty:
        _write_zeros(file, prefix, ATTENTION, "attn_output", len(block.attention_norm), empty * block.head_size)
        return
    rotated = file.architecture not in ROTATED_BY_HALVES
    heads = {"attn_q": block.heads, "attn_k": block.key_heads} if rotated else {}
    for name, layer in block.attention.items():
        for part, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            if tensor is not None:
                add = file.matrix if part == "weight" else file.vector
                add(f"{prefix}{name}.{part}", _neighbours(tensor, heads[name]) if name in heads else tensor)
    if block.query_norm is not None and block.key_norm is not None:
        file.vector(f"{prefix}attn_q_norm.weight", block.query_norm)
        file.vector(f"{prefix}attn_k_norm.weight", block.key_norm)


def _write_ffn(file: _File, prefix: str, block: Block, neurons: int) -> None:
    if not neurons:
        return
    file.vector(f"{prefix}ffn_norm.weight", block.ffn_norm)
    if not block.neurons:
        _write_zeros(file, prefix, FFN, "ffn_down", len(block.ffn_norm), neurons)
        return
    for name, layer in block.ffn.items():
        file.matrix(f"{prefix}{name}.weight", layer.weight)
        if layer.bias is not None:
            file.vector(f"{prefix}{name}.bias", layer.bias)


def _write_zeros(file: _File, prefix: str, names: Iterable[str], last: str, width: int, inner: int) -> None:
    """Layers from and to a stream of `width` that add nothing to it."""
    for name in names:
        file.matrix(f"{prefix}{name}.weight", torch.zeros((width, inner) if name == last else (inner, width)))


def _neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head in the order in which the two halves of a rotated pair are neighbours."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _add_rotation(file: _File, model: PreTrainedModel, size: int) -> None:
    """The rotary embedding: its base, and, where its frequencies are scaled once and for all, by how much each one."""
    parameters = model.config.rope_parameters
    kind, base = parameters.get("rope_type", "default"), float(parameters["rope_theta"])
    file.writer.add_rope_freq_base(base)
    if kind == "default":
        return
    if kind not in ("linear", "llama3"):
        rule = "is a rotary embedding that is scaled by the length of the text, which is not written"
        raise invalid("rope_type", kind, rule, "Export a model with rope_type default, linear or llama3.")
    plain = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    frequencies = model.get_submodule(f"{model.base_model_prefix}.rotary_emb").get_buffer("inv_freq")
    file.vector("rope_freqs.weight", plain / frequencies.double().cpu())
