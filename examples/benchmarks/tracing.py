"""What it costs to trace the dependency groups of a model: seconds, passes and samples, by model, depth and width.

    python examples/benchmarks/tracing.py                  # model_cards/tracing.json; some minutes on one core
    python examples/benchmarks/tracing.py --models bert-base gpt2

The weights are random, and those of the largest model share one storage, since no traced pass multiplies by them: what
is measured is the time and the memory of tracing alone. The last rows make BERT deeper and wider: the time grows with
the depth, and with the width as activations do.
"""

import argparse
import gc
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from harness.runs import environment, write_json
from torch import nn
from tqdm import tqdm

from optimum.dendritic import trace_wiring
from optimum.dendritic.structure.made_inputs import TRACING_IMAGE_SIZE, example_inputs_for
from optimum.dendritic.structure.nan_tracing import Tracer

LARGE = 2**22  # entries from which a tensor shares its storage
ROPE_BASE = 500_000.0


def bert(layers: int = 12, width: int = 768) -> nn.Module:
    heads = width // 64
    config = hf.BertConfig(hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads)
    config.num_hidden_layers = layers
    return hf.BertForSequenceClassification(config)


def llama() -> nn.Module:
    """Llama 3's 8 billion parameters."""
    config = hf.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
    )
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(config)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shared = torch.full((1,), 0.02).expand(parameter.shape)
            value = shared if parameter.numel() >= LARGE else torch.full(parameter.shape, 0.02)
            module.register_parameter(name, nn.Parameter(value))
        for name, buffer in list(module.named_buffers(recurse=False)):
            half = torch.arange(buffer.numel()) / buffer.numel()
            module.register_buffer(name, ROPE_BASE**-half if name.endswith("inv_freq") else torch.zeros(buffer.shape))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert-base": bert,
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config()),
    "resnet-50": lambda: hf.ResNetForImageClassification(hf.ResNetConfig()),
    "vit-base, 224 pixels": lambda: hf.ViTForImageClassification(hf.ViTConfig()),
    "llama, 8 billion": llama,
    "bert, 6 layers": lambda: bert(6),
    "bert, 24 layers": lambda: bert(24),
    "bert, half as wide": lambda: bert(12, 384),
    "bert, twice as wide": lambda: bert(12, 1536),
}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(name: str) -> dict[str, Any]:
    model = MODELS[name]()
    passes: list[int] = []
    mark = Tracer.mark

    def counted(self: Tracer, patterns: Any, samples: int) -> Any:
        passes.append(samples)
        return mark(self, patterns, samples)

    before, wall, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    Tracer.mark = counted
    try:
        wiring = trace_wiring(model, example_inputs_for(model, image_size=TRACING_IMAGE_SIZE))  # type: ignore[arg-type]
    finally:
        Tracer.mark = mark
    found = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "passes": len(passes),
        "samples": sum(passes),
        "memory_beyond_the_model_bytes": peak_bytes() - before,
        "groups": dict(Counter(f"{group.kind}{'' if group.cut else ', not cut'}" for group in wiring.groups)),
    }
    del model
    gc.collect()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--output", type=Path, default=Path("model_cards/tracing.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in tqdm(args.models):
        found[name] = measured(name)
        row = found[name]
        tqdm.write(
            f"{name}: {row['cpu_seconds']:.1f} CPU seconds, {row['passes']} passes, {row['samples']} samples, "
            f"{row['memory_beyond_the_model_bytes'] / 2**30:.2f} GiB; {row['groups']}"
        )
        write_json(args.output, {"environment": environment(), "threads": 1, "models": found})


if __name__ == "__main__":
    main()
