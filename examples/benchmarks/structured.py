"""What is structured packing worth: share of MACs against share of time, beside a stock model that is evenly narrower.

    python examples/benchmarks/structured.py               # model_cards/structured.json and .md; wants a quiet machine
    python examples/benchmarks/structured.py --models resnet-50 --seconds 5

The weights are random and so is what is pruned: a model's speed depends on its shapes alone. Dense, packed and narrower
model are timed in turn in one process, and ratios are medians of neighbouring blocks. Efficiency is the share of MACs
divided by the share of time: 1 if the time falls as the MACs do.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from harness.runs import environment, write_json
from torch import Tensor, nn
from tqdm import tqdm

from optimum.dendritic import DendriticConfig, compress_, inject_, update_
from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.latency import paired_ratio, time_in_turn
from optimum.dendritic.efficiency.macs import count_macs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from resnet20 import ResNet20Config, ResNet20ForImageClassification  # noqa: E402

TOKENS, PIXELS = 128, 224
LABELS: dict[str, Any] = {"num_labels": 10}


@dataclass(frozen=True)
class Subject:
    """A model that can be made narrower evenly.

    Attributes:
        make: The model whose widths are this share of the full ones.
        inputs: A batch of so many samples.
        channels_last: Whether it is timed in that memory format, too.
    """

    make: Callable[[float], nn.Module]
    inputs: Callable[[int], dict[str, Tensor]]
    channels_last: bool = False


def _multiple(width: float, of: int) -> int:
    return max(of, round(width / of) * of)


def bert(share: float) -> nn.Module:
    """BERT with a head, so that its stream is no output."""
    width = _multiple(768 * share, 12)
    config = hf.BertConfig(hidden_size=width, intermediate_size=_multiple(3072 * share, 4))
    return hf.BertForSequenceClassification(config)


def gpt2(share: float) -> nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=_multiple(768 * share, 12)))


def resnet(share: float) -> nn.Module:
    sizes = [_multiple(width * share, 4) for width in (256, 512, 1024, 2048)]
    return hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=_multiple(64 * share, 4), hidden_sizes=sizes))


def resnet20(share: float) -> nn.Module:
    sizes = [_multiple(width * share, 1) for width in (16, 32, 64)]
    return ResNet20ForImageClassification(ResNet20Config(embedding_size=sizes[0], hidden_sizes=sizes, **LABELS))


def tokens(samples: int) -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(0, 1000, (samples, TOKENS)),
        "attention_mask": torch.ones(samples, TOKENS).long(),
    }


def pixels(samples: int, size: int = PIXELS) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(samples, 3, size, size)}


SUBJECTS = {
    "bert-base": Subject(bert, tokens),
    "gpt2": Subject(gpt2, tokens),
    "resnet-50": Subject(resnet, pixels, channels_last=True),
    "resnet-20": Subject(resnet20, partial(pixels, size=32), channels_last=True),
}


def macs(model: nn.Module, subject: Subject) -> int:
    return count_macs(model, Batch.of(subject.inputs(1)))


def packed(subject: Subject, sparsity: float) -> nn.Module:
    model = subject.make(1.0).eval()
    config = DendriticConfig(sparsity=sparsity, budget="macs", units="structured", importance="random")
    inject_(model, config)
    update_(model, sparsity)
    return compress_(model).eval()


def narrower(subject: Subject, most: int) -> nn.Module:
    """The widest evenly narrowed stock model of at most so many MACs."""
    low, high = 0.05, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(subject.make(middle), subject) <= most else (low, middle)
    return subject.make(low).eval()


def compared(subject: Subject, sparsity: float, batches: list[int], seconds: float, threads: int) -> dict[str, Any]:
    dense, ours = subject.make(1.0).eval(), packed(subject, sparsity)
    total, left = macs(dense, subject), macs(ours, subject)
    even = narrower(subject, left)
    share, even_share = left / total, macs(even, subject) / total
    found: dict[str, Any] = {"macs": share, "macs_of_the_narrower": even_share, "times": []}
    for last in (False, True) if subject.channels_last else (False,):
        for batch in batches:
            models, inputs = [dense, ours, even], subject.inputs(batch)
            if last:
                models = [model.to(memory_format=torch.channels_last) for model in models]  # type: ignore[call-overload]
                inputs = {name: value.to(memory_format=torch.channels_last) for name, value in inputs.items()}
            calls = [lambda model=model, inputs=inputs: model(**inputs) for model in models]
            baseline, *blocks = time_in_turn(calls, threads=threads, seconds=seconds)
            time, even_time = (paired_ratio(own, baseline) for own in blocks)
            row = {"batch": batch, "channels_last": last, "time": time, "time_of_the_narrower": even_time}
            row |= {"efficiency": share / time, "efficiency_of_the_narrower": even_share / even_time}
            found["times"].append(row)
    return found


def table(found: dict[str, dict[str, Any]], command: str, device: str) -> str:
    lines = [
        "# Structured packing against an evenly narrower model",
        "",
        f"`{command}`; {device}. Shares are of the dense model.",
        "",
        "| model | removed | batch | MACs | time | time, narrower | efficiency | efficiency, narrower |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, levels in found.items():
        for level, result in levels.items():
            for row in result["times"]:
                form = ", channels_last" if row["channels_last"] else ""
                lines.append(
                    f"| {name}{form} | {level} | {row['batch']} | {result['macs']:.3f} | {row['time']:.3f} | "
                    f"{row['time_of_the_narrower']:.3f} | {row['efficiency']:.2f} | "
                    f"{row['efficiency_of_the_narrower']:.2f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--levels", type=float, nargs="+", default=[0.6, 0.8])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each latency of each model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("model_cards/structured.json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    found: dict[str, dict[str, Any]] = {name: {} for name in args.models}
    with tqdm(total=len(args.models) * len(args.levels)) as bar:
        for name in args.models:
            for level in args.levels:
                subject = SUBJECTS[name]
                found[name][str(level)] = compared(subject, level, args.batches, args.seconds, args.threads)
                about = environment()
                write_json(args.output, {"environment": about, "threads": args.threads, "models": found})
                bar.update()
    command = "python examples/benchmarks/structured.py"
    args.output.with_suffix(".md").write_text(table(found, command, f"{about['device']}, {args.threads} thread(s)"))


if __name__ == "__main__":
    main()
