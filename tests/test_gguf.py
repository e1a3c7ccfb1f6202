"""GGUF: llama.cpp answers as the packed model does, whatever is left of its blocks, or the file is refused."""

import copy
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers.exports import GGUF, needed
from helpers.llama_cpp import LlamaCpp, greedily, log_probabilities, probabilities, tokens_of
from helpers.models import build, roughen
from helpers.tokenizers import TEXT, byte_fallback, byte_level
from torch import nn

from optimum.dendritic import DendriticConfig, DendriticError, compress_, inject_, score_, update_
from optimum.dendritic.nn import SkippedBlock
from optimum.dendritic.runtimes.gguf import TYPES, export_gguf
from optimum.dendritic.runtimes.llama_blocks import blocks_of

SIZE, HEAD, LENGTH, NEW = 320, 16, 12, 32
CLASSES = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM),
}


def stock(kind: str, **fields: Any) -> hf.PreTrainedModel:
    config, model = CLASSES[kind]
    numbers = dict(
        vocab_size=SIZE, hidden_size=64, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
        head_dim=HEAD, intermediate_size=96, max_position_embeddings=64, unk_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        found = roughen(model(config(**numbers | fields)))
    assert isinstance(found, hf.PreTrainedModel)
    return found


def ids() -> torch.Tensor:
    return torch.randint(3, SIZE, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def packed(model: hf.PreTrainedModel, dead: dict[str, slice] | None = None, **fields: Any) -> hf.PreTrainedModel:
    """Whole heads and neurons go at random, 40 % of it all; then those that are named."""
    config = DendriticConfig(**{"sparsity": 0.4, "units": "structured", "importance": "random", **fields})
    inject_(model, config, example_inputs={"input_ids": ids()})
    score_(model)
    update_(model, config.sparsity)
    for name, part in (dead or {}).items():
        model.get_submodule(name).dendrite_mask[:, part] = False
    compress_(model, {"input_ids": ids()})
    return model


@torch.no_grad()
def alike(model: hf.PreTrainedModel, file: Path, within: float) -> None:
    """Log-probabilities of the whole vocabulary, and what follows when the likeliest token is taken each time."""
    whole = {token for text, token in byte_level("gpt-2").get_vocab().items() if text.isascii()}
    prompts = (torch.randint(3, SIZE, (1, LENGTH), generator=torch.Generator().manual_seed(seed)) for seed in count())
    prompt, follows = next(
        (prompt, tokens)
        for prompt in prompts
        for tokens, clear in [followed(model, prompt)]
        if clear and tokens[0] in whole
    )
    first, then = LlamaCpp(file).ask(probabilities(prompt[0].tolist(), SIZE), greedily(prompt[0].tolist(), NEW))
    expected = torch.log_softmax(model(prompt).logits[0, -1].float(), -1)
    torch.testing.assert_close(log_probabilities(first), expected, rtol=0, atol=within)
    if within <= 1e-2:
        assert tokens_of(then) == follows


@torch.no_grad()
def followed(model: hf.PreTrainedModel, prompt: torch.Tensor) -> tuple[list[int], bool]:
    """The tokens that follow, and whether each was clearly likelier than the second one."""
    start, clear = prompt.shape[1], True
    for _ in range(NEW):
        (best, second), (token, _) = model(prompt).logits[0, -1].topk(2)
        clear = clear and bool(best - second > 0.03)
        prompt = torch.cat([prompt, token[None, None]], 1)
        if not clear or token == model.config.eos_token_id:
            break
    return prompt[0, start:].tolist(), clear


def exported(model: hf.PreTrainedModel, folder: Path, dtype: str = "f32", rules: str = "gpt-2") -> Path:
    return export_gguf(model, folder / "model.gguf", tokenizer=byte_level(rules), dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind, row in GGUF.items() if "refused" not in row[1]])
def test_uneven_blocks_run_there(kind: str, tmp_path):
    needed("xllamacpp")
    model = packed(stock(kind))
    assert len({block.widths for block in blocks_of(model)}) > 1
    alike(model, exported(model, tmp_path), within=1e-2)
    assert GGUF[kind][1] == f"`{architecture(tmp_path / 'model.gguf')}`"


@pytest.mark.slow
@pytest.mark.parametrize("kind", GGUF)
def test_blocks_that_are_alike_keep_their_architecture(kind: str, tmp_path):
    needed("xllamacpp")
    model = stock(kind, tie_word_embeddings=True, **{"head_dim": 8} if kind == "qwen2" else {})
    alike(model, exported(model, tmp_path), within=1e-2)
    assert GGUF[kind][2] == f"`{architecture(tmp_path / 'model.gguf')}`"


HEADS, NEURONS = "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"
ALL = slice(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dead",
    [
        {HEADS.format(0): ALL, NEURONS.format(1): ALL},
        {HEADS.format(1): ALL, NEURONS.format(1): ALL},
        {HEADS.format(2): ALL},
        {NEURONS.format(2): ALL},
        {HEADS.format(2): ALL, NEURONS.format(2): ALL},
    ],
    ids=["attention or FFN", "both", "last attention", "last FFN", "both of the last"],
)
def test_a_block_may_have_lost_its_attention_or_its_ffn(dead: dict[str, slice], tmp_path):
    needed("xllamacpp")
    model = packed(stock("llama"), dead, floor=0.0)
    gone = [(not block.heads, not block.neurons) for block in blocks_of(model)]
    assert sum(map(sum, gone)) == len(dead)
    alike(model, exported(model, tmp_path), within=1e-2)


@pytest.mark.slow
def test_a_block_that_is_gone_is_not_in_the_file(tmp_path):
    needed("xllamacpp")
    units = ["heads", "neurons", "streams", "blocks"]
    model = packed(stock("llama"), {"model.layers": slice(0, 1)}, floor=0.0, units=units)
    assert len(blocks_of(model)) == sum(not isinstance(block, SkippedBlock) for block in model.model.layers)
    assert isinstance(model.model.layers[0], SkippedBlock)
    alike(model, exported(model, tmp_path), within=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "within"), [("f16", 2e-2), ("bf16", 0.2), ("q8_0", 0.2)])
def test_smaller_types(dtype: str, within: float, tmp_path):
    needed("xllamacpp")
    model = packed(stock("llama"))
    file = exported(model, tmp_path, dtype)
    alike(model, file, within)
    wide = exported(model, tmp_path / "f32")
    assert file.stat().st_size < {"f16": 0.7, "bf16": 0.7, "q8_0": 0.6}[dtype] * wide.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("rotation", ["linear", "llama3"])
def test_scaled_rotary_embeddings(rotation: str, tmp_path):
    needed("xllamacpp")
    parameters = {"rope_type": rotation, "rope_theta": 5000.0, "factor": 4.0}
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    model = stock("llama", rope_parameters=parameters | (more if rotation == "llama3" else {}))
    alike(model, exported(model, tmp_path), within=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["gpt-2", "qwen2", "llama-bpe", "bytes"])
def test_a_text_is_cut_into_the_same_tokens(rules: str, tmp_path):
    """What follows a text is what follows its tokens."""
    needed("xllamacpp")
    tokenizer, model = byte_fallback() if rules == "bytes" else byte_level(rules), stock("llama")
    file = export_gguf(model, tmp_path / "model.gguf", tokenizer=tokenizer, dtype="f32")
    for text in TEXT:
        prompts = text[:30], tokenizer(text[:30])["input_ids"]
        by_text, by_tokens = LlamaCpp(file).ask(*(greedily(prompt, 8) for prompt in prompts))
        assert by_text["usage"] == by_tokens["usage"] and by_tokens["usage"]["prompt_tokens"] == len(prompts[1])
        assert tokens_of(by_text) == tokens_of(by_tokens)


def architecture(file: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("general.architecture")
    assert field is not None
    return field.contents()


@pytest.mark.slow
def test_what_cannot_run_there_is_refused(tmp_path):
    needed("gguf")
    gathers = packed(stock("llama"), units="fine", segment_size=16)
    with pytest.raises(DendriticError, match="gathers or scatters, which the target cannot do.*units="):
        exported(gathers, tmp_path)
    with pytest.raises(DendriticError, match="model_type = 'gpt2'.*Export one of llama, mistral, qwen2, qwen3"):
        exported(build("gpt2")[0], tmp_path)
    with pytest.raises(DendriticError, match="norms in its attention.*native=True"):
        exported(packed(stock("qwen3")), tmp_path)
    with pytest.raises(DendriticError, match="dtype = 'q8': must be one of f32, f16, bf16, q8_0. Choose"):
        exported(stock("llama"), tmp_path, "q8")
    with pytest.raises(DendriticError, match="hidden_act = 'gelu'"):
        exported(stock("llama", hidden_act="gelu"), tmp_path)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(DendriticError, match="rope_type = 'yarn'"):
        exported(stock("llama", rope_parameters=yarn), tmp_path)
    odd = stock("llama")
    attention = odd.model.layers[0].self_attn
    attention.k_proj.weight = nn.Parameter(attention.k_proj.weight[: 3 * HEAD])
    with pytest.raises(DendriticError, match="query heads = 8: reads 3 key/value heads"):
        exported(odd, tmp_path)
    attention.k_proj.weight = nn.Parameter(attention.k_proj.weight[: HEAD + 1])
    with pytest.raises(DendriticError, match="must be whole heads of 16"):
        exported(odd, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_tokenizer_is_refused(tmp_path):
    needed("gguf")
    tokenizer = copy.deepcopy(byte_level("gpt-2"))
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DendriticError, match="has rules for words that llama.cpp has no name for"):
        export_gguf(stock("llama"), tmp_path / "model.gguf", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install optimum-dendritic\[gguf\]"):
        export_gguf(stock("llama"), tmp_path / "model.gguf")


def test_a_sliding_window_bounds_the_context(tmp_path):
    needed("gguf")
    from gguf import GGUFReader

    file = exported(stock("mistral", sliding_window=24), tmp_path)
    field = GGUFReader(file).get_field("llama.context_length")
    assert field is not None and field.contents() == 24
    assert set(TYPES) == {"f32", "f16", "bf16", "q8_0"}


@pytest.mark.slow
def test_the_command_writes_one_file(cli, tmp_path):
    needed("xllamacpp")
    model = packed(stock("llama"))
    model.save_pretrained(tmp_path / "small")
    byte_level("gpt-2").save_pretrained(tmp_path / "small")
    command = ["dendritic", "export", "small", "--format", "gguf"]
    code, output, errors = cli(*command, "--gguf-type", "f32", "--output", "small.gguf")
    assert code == 0, errors
    assert "Exported to small.gguf" in output and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["small.gguf"]
    alike(model, tmp_path / "small.gguf", within=1e-2)
    code, output, errors = cli(*command, "--output", "small")
    assert code == 1 and "is a folder. Name a file" in errors
