"""vLLM: the folder says, in the form of `DeciLMForCausalLM`, the model that is packed, or it is refused.

vLLM itself, where it is installed, answers in `test_vllm_answers_as_the_model`; everywhere else the form is read as its
published source reads it, block by block, on the layers of stock `transformers`.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers.exports import VLLM, needed
from helpers.models import roughen
from helpers.processes import HANGS
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from optimum.dendritic import DendriticConfig, DendriticError, compress_, inject_, score_, update_
from optimum.dendritic.runtimes.vllm import export_vllm

pytestmark = pytest.mark.slow

SIZE, LENGTH, NEW = 320, 12, 16
CLASSES = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM),
}
CHILD = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    folder, prompts, new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    model = LLM(folder, trust_remote_code=True, skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
                max_model_len=64, max_num_seqs=2, max_logprobs=-1)
    options = SamplingParams(temperature=0.0, max_tokens=new, logprobs=5, detokenize=False, ignore_eos=True)
    found = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], options)
    first = [{str(k): v.logprob for k, v in each.outputs[0].logprobs[0].items()} for each in found]
    tokens = [list(each.outputs[0].token_ids) for each in found]
    open(sys.argv[4], "w").write(json.dumps({"tokens": tokens, "first": first}))
"""


def ids() -> torch.Tensor:
    return torch.randint(3, SIZE, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def packed(
    kind: str = "llama",
    dead: dict[str, slice] | None = None,
    units: Any = None,
    only: Any = None,
    multiple_of: int = 1,
    **fields: Any,
) -> Any:
    """Whole neurons go at random, a fifth of them; then what is named, or that alone, of the units `only`."""
    config, model = CLASSES[kind]
    numbers = dict(
        vocab_size=SIZE, hidden_size=64, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
        head_dim=32, intermediate_size=96, max_position_embeddings=64, unk_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        found: Any = roughen(model(config(**numbers | fields)))
    own = only or units or ["neurons"]
    chosen = DendriticConfig(sparsity=0.2, units=own, importance="random", floor=0.0, multiple_of=multiple_of)
    inject_(found, chosen, example_inputs={"input_ids": ids()})
    if only is None:
        score_(found)
        update_(found, 0.2)
    for name, part in (dead or {}).items():
        found.get_submodule(name).dendrite_mask[:, part] = False
    return compress_(found, {"input_ids": ids()})


def config_in(folder: Path) -> Any:
    """The config as vLLM reads it: by the file that lies beside it."""
    source = importlib.util.spec_from_file_location("configuration_deci", folder / "configuration_deci.py")
    assert source is not None and source.loader is not None
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    return module.DeciConfig.from_pretrained(folder)


@torch.no_grad()
def read(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """What the form says of some tokens, as `DeciLMForCausalLM` goes through the blocks."""
    config, tensors = config_in(folder), load_file(folder / "model.safetensors")

    def into(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
        own = {name.removeprefix(prefix): tensors.pop(name) for name in [*tensors] if name.startswith(prefix)}
        module.load_state_dict(own)
        return module.eval()

    def norm(name: str) -> torch.nn.Module:
        return into(LlamaRMSNorm(config.hidden_size, config.rms_norm_eps), name)

    plain = {key: value for key, value in config.to_dict().items() if key not in ("block_configs", "model_type")}
    length = tokens.shape[1]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    stream = tensors["model.embed_tokens.weight"][tokens]
    rotated = LlamaRotaryEmbedding(hf.LlamaConfig(**plain))(stream, torch.arange(length)[None])
    for index, block in enumerate(config.block_configs):
        prefix = f"model.layers.{index}."
        if not block.attention.no_op:
            heads = config.num_attention_heads // block.attention.n_heads_in_group
            own = hf.LlamaConfig(**plain | {"num_key_value_heads": heads, "attention_bias": config.qkv_bias})
            own._attn_implementation = "eager"
            attention = LlamaAttention(own, 0)
            width = attention.o_proj.in_features
            attention.o_proj = torch.nn.Linear(width, config.hidden_size, bias=config.attention_bias)
            inputs = norm(f"{prefix}input_layernorm.")(stream)
            stream = stream + into(attention, f"{prefix}self_attn.")(inputs, rotated, mask)[0]
        if not block.ffn.no_op:
            assert not hasattr(block.ffn, "ffn_mult")
            ffn = LlamaMLP(hf.LlamaConfig(**plain | {"intermediate_size": block.ffn.intermediate_size}))
            inputs = norm(f"{prefix}post_attention_layernorm.")(stream)
            stream = stream + into(ffn, f"{prefix}mlp.")(inputs)
    found = norm("model.norm.")(stream)
    embedding = tensors.pop("model.embed_tokens.weight")
    head = embedding if config.tie_word_embeddings else tensors.pop("lm_head.weight")
    assert not tensors
    return found @ head.t()


WHOLE_FFN = {"model.layers.1.mlp.down_proj": slice(None)}
NO_ATTENTION = {"model.layers.0.self_attn.o_proj": slice(None)}
HALF = {f"model.layers.{index}.self_attn.o_proj": slice(2, 4) for index in (1, 2)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 32}),
    "qwen2": ("qwen2", {}),
    "no FFN": ("llama", {"dead": WHOLE_FFN}),
    "no attention in the first block": ("llama", {"dead": NO_ATTENTION | HALF, "only": ["heads"]}),
    "narrower": ("llama", {"units": ["neurons", "streams"], "multiple_of": 8}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_form_says_the_model(name: str, tmp_path: Path):
    kind, fields = MODELS[name]
    model = packed(kind, **fields)
    path = export_vllm(model, tmp_path / "folder")
    with torch.no_grad():
        expected = model(ids()).logits
    torch.testing.assert_close(read(path.parent, ids()), expected, rtol=1e-4, atol=1e-4)
    said = json.loads((path.parent / "config.json").read_text())
    assert said["architectures"] == ["DeciLMForCausalLM"] and said["model_type"] == "nemotron-nas"
    assert said["max_position_embeddings"] == (32 if name == "mistral" else 64)
    blocks = said["block_configs"]
    assert [block["ffn"]["no_op"] for block in blocks] == [False, name == "no FFN", False]
    assert not any(block["attention"]["no_op"] for block in blocks)
    if name not in ("no FFN", "no attention in the first block"):
        assert len({block["ffn"]["intermediate_size"] for block in blocks}) > 1


def test_a_later_block_without_attention(tmp_path: Path):
    model = packed(dead={"model.layers.1.self_attn.o_proj": slice(None)}, only=["heads"])
    path = export_vllm(model, tmp_path / "folder")
    config = config_in(path.parent)
    assert [block.attention.no_op for block in config.block_configs] == [False, True, False]
    with torch.no_grad():
        torch.testing.assert_close(read(path.parent, ids()), model(ids()).logits, rtol=1e-4, atol=1e-4)
    assert not any(name.startswith("model.layers.1.self_attn") for name in load_file(path))


def test_heads_that_differ_are_refused(tmp_path: Path):
    model = packed(dead={"model.layers.1.self_attn.o_proj": slice(0, 2)}, only=["heads"])
    with pytest.raises(DendriticError, match=r"^query heads = \[8, 4, 8\]: must be the same in all blocks"):
        export_vllm(model, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("kind", [kind for kind, (_, shown) in VLLM.items() if shown != "yes"])
def test_what_the_form_cannot_say_is_refused(kind: str, tmp_path: Path):
    with pytest.raises(DendriticError, match=f"has {VLLM[kind][1].removeprefix('refused: ')}"):
        export_vllm(packed(kind), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_every_model_of_the_page_is_tried():
    assert {kind for kind, (_, shown) in VLLM.items() if shown == "yes"} == {kind for kind, _ in MODELS.values()}


def test_vllm_answers_as_the_model(tmp_path: Path):
    needed("vllm")
    model = packed(dead=WHOLE_FFN)
    path = export_vllm(model, tmp_path / "folder")
    prompts = ids()
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, str(tmp_path / "child.py"), str(path.parent), json.dumps(prompts.tolist()), str(NEW)]
    answer = tmp_path / "answer.json"
    done = subprocess.run([*command, str(answer)], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(answer.read_text())
    with torch.no_grad():
        expected = torch.log_softmax(model(prompts).logits[0, -1], -1)
        follows = model.generate(prompts, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)[0, LENGTH:].tolist()
    for token, value in found["first"][0].items():
        assert abs(float(expected[int(token)]) - value) < 1e-2
    assert found["tokens"][0] == follows
