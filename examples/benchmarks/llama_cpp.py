"""Time per token and size of file in llama.cpp: a Llama of a given size, dense and packed by whole heads and neurons.

    python examples/benchmarks/llama_cpp.py --json model_cards/llama-cpp.json    # and a table beside it

The weights are random, since neither figure depends on them; which units are left is drawn at random, too, so that
every block keeps another number of them, multiples of 32, which q8_0 counts in. The models take turns, several times
over, on the same number of threads.
Wants the extra `gguf` and `xllamacpp`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from harness.runs import environment
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from optimum.dendritic import DendriticConfig, compress_, inject_, score_, update_
from optimum.dendritic.runtimes.gguf import TYPES, export_gguf

CLIENT = """
import json, os, sys
import xllamacpp
file, threads, context, tokens, prompts = json.loads(sys.argv[1])
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel = file, context, 1
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(parameters)
found = []
for prompt in prompts:
    asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "cache_prompt": False, "ignore_eos": True}
    found.append(server.handle_completions(asked)["timings"])
sys.stdout.write("TIMINGS" + json.dumps(found))
sys.stdout.flush()
os._exit(0)
"""


def model_of(args: argparse.Namespace, sparsity: float) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads // 4,
        intermediate_size=args.width * 11 // 4,
        max_position_embeddings=context_of(args),
    )
    model = LlamaForCausalLM(config).eval()
    if sparsity:
        inputs = {"input_ids": torch.arange(4)[None]}
        pruning = DendriticConfig(
            sparsity=sparsity, units="structured", importance="random", floor=0.02, multiple_of=32
        )
        inject_(model, pruning, example_inputs=inputs)
        score_(model)
        update_(model, sparsity)
        compress_(model, inputs)
    return model


def context_of(args: argparse.Namespace) -> int:
    return max(args.lengths) + args.tokens + 32  # llama.cpp keeps a few places free


def tokenizer_of(size: int) -> PreTrainedTokenizerFast:
    """Byte-level, and filled up with tokens that no text has."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    words += [f"<|{index}|>" for index in range(size - len(words))]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def timings(file: Path, args: argparse.Namespace) -> list[dict[str, float]]:
    """What llama.cpp says of each prompt, in a process of its own."""
    prompts = [[index % 200 for index in range(length)] for length in args.lengths]
    asked = json.dumps([str(file), args.threads, context_of(args), args.tokens, prompts])
    done = subprocess.run([sys.executable, "-c", CLIENT, asked], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.rpartition("TIMINGS")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sparsities", type=float, nargs="+", default=[0.0, 0.6, 0.8], help="of the blocks; 0 is dense"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 128, 512], help="tokens in the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="that are generated after it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=TYPES, default="q8_0")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for sparsity in args.sparsities:
            model = model_of(args, sparsity)
            files[sparsity] = Path(folder) / f"{sparsity}.gguf"
            export_gguf(model, files[sparsity], tokenizer=tokenizer_of(args.vocabulary), dtype=args.dtype)
        found = {sparsity: [] for sparsity in files}
        for _ in range(args.rounds):
            for sparsity, file in files.items():
                found[sparsity].append(timings(file, args))
        rows = [row(sparsity, files[sparsity].stat().st_size, rounds, args) for sparsity, rounds in found.items()]
    figures = {"settings": {k: v for k, v in vars(args).items() if k != "json"}, "rows": rows}
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
        args.json.with_suffix(".md").write_text(table(args, rows))
    print(json.dumps(rows, indent=2))


def table(args: argparse.Namespace, rows: list[dict]) -> str:
    columns = [f"{what}, prompt of {length}" for what in ("read", "generated") for length in args.lengths]
    lines = [
        f"# A Llama in llama.cpp: {args.width} wide, {args.layers} layers, {args.dtype}",
        "",
        f"Milliseconds per token, medians of {args.rounds} rounds in turn, {args.threads} thread(s), "
        f"{environment()['device']}; random weights, whole units, multiples of 32.",
        "",
        f"`python examples/benchmarks/llama_cpp.py --rounds {args.rounds} --json model_cards/llama-cpp.json`",
        "",
        f"| removed | file, MB | {' | '.join(columns)} |",
        "| --- " * (2 + len(columns)) + "|",
    ]
    for each in rows:
        times = [f"{each[which][str(n)]:.2f}" for which in ("prompt_ms", "generated_ms") for n in args.lengths]
        lines.append(f"| {each['sparsity']:.0%} | {each['bytes'] / 1e6:.1f} | {' | '.join(times)} |")
    return "\n".join(lines) + "\n"


def row(sparsity: float, size: int, rounds: list[list[dict[str, float]]], args: argparse.Namespace) -> dict:
    """Medians over the rounds, in milliseconds per token, for each length of the prompt."""
    columns = dict(zip(map(str, args.lengths), zip(*rounds, strict=True), strict=True))
    return {
        "sparsity": sparsity,
        "bytes": size,
        "prompt_ms": {n: statistics.median(t["prompt_per_token_ms"] for t in found) for n, found in columns.items()},
        "generated_ms": {
            n: statistics.median(t["predicted_per_token_ms"] for t in found) for n, found in columns.items()
        },
    }


if __name__ == "__main__":
    main()
