"""What the callback costs: the same training with and without it, in turn, on MiniLM and on the CNN.

    python examples/benchmarks/overhead.py      # a quarter of an hour on one core; a quiet machine
    python examples/benchmarks/overhead.py --models convnet --output overhead.json

A step's time is from its end to the end of the one before, the mean over a whole schedule: warm-up, pruning (scores in
every step, and the mask updates) and recovery. The data are random, because a step costs the same whatever they say.
A repetition goes without, with, with, without, because what trains later in a process may take some percent longer.
There is no distillation: a teacher costs its forward pass. The mask is updated as often as the default has it in 1,000
steps. Memory is that of masks and scores against the weights.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness.images import as_it_is
from harness.runs import environment, write_json
from sst2 import default_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from optimum.dendritic import DendriticCallback, DendriticConfig, inject_

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convnet import ConvNetConfig, ConvNetForImageClassification  # noqa: E402

LIMITS = {"time": 0.05, "memory": 0.01}


class Random(Dataset):
    """One random batch, over and over."""

    def __init__(self, batch: dict[str, Tensor], samples: int):
        self.batch, self.samples = batch, samples

    def __len__(self) -> int:
        return self.samples

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return self.batch


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args, **kwargs) -> None:
        self.ends.append(time.perf_counter())

    def mean_step(self) -> float:
        return statistics.mean(end - start for start, end in zip(self.ends, self.ends[1:], strict=False))


def minilm() -> nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(default_model(), num_labels=2, dtype=torch.float32)


def convnet() -> nn.Module:
    return ConvNetForImageClassification(ConvNetConfig())


def tokens(samples: int) -> dict[str, Tensor]:
    ids = torch.randint(1000, 20000, (samples, 64))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(2, (samples,))}


def digits(samples: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(samples, 1, 28, 28), "labels": torch.randint(10, (samples,))}


MODELS = {"minilm": (minilm, tokens, 32), "convnet": (convnet, digits, 128)}


def step_time(name: str, steps: int, config: DendriticConfig | None) -> float:
    """Seconds of a mean step of a stock Trainer, with the callback where there is a config."""
    make, draw, batch_size = MODELS[name]
    set_seed(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=make(),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=batch_size,
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                disable_tqdm=True,
            ),
            train_dataset=Random(draw(batch_size), steps * batch_size),
            data_collator=as_it_is,
            callbacks=[*([] if config is None else [DendriticCallback(config)]), clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.mean_step()


def in_turn(name: str, steps: int, config: DendriticConfig) -> tuple[float, float]:
    """Seconds of a mean step without and with the callback, each from two trainings, so that drift cancels."""
    first, second, third, fourth = (step_time(name, steps, used) for used in (None, config, config, None))
    return (first + fourth) / 2, (second + third) / 2


def memory_share(name: str, config: DendriticConfig) -> float:
    """Bytes of masks and scores, as a share of the bytes of the weights."""
    model = MODELS[name][0]()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    before = sum(b.numel() * b.element_size() for b in model.buffers())
    inject_(model, config)
    return (sum(b.numel() * b.element_size() for b in model.buffers()) - before) / weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--steps", type=int, default=40, help="of each training")
    parser.add_argument("--repetitions", type=int, default=4, help="of four trainings: without, with, with, without")
    parser.add_argument("--output", type=Path, default=Path("model_cards/overhead.json"))
    args = parser.parse_args()
    config = DendriticConfig(updates=max(1, DendriticConfig().updates * args.steps // 1000))
    found = {}
    for name in args.models:
        step_time(name, args.steps, None)  # the first training of a process finds no memory ready
        pairs = [in_turn(name, args.steps, config) for _ in tqdm(range(args.repetitions), desc=name)]
        ratios = sorted(dendritic / plain for plain, dendritic in pairs)
        memory = memory_share(name, config)
        overhead = statistics.median(ratios) - 1
        plain, dendritic = (statistics.median(times) for times in zip(*pairs, strict=True))
        found[name] = {
            "step_seconds": {"plain": plain, "dendritic": dendritic},
            "time_overhead": overhead,
            "time_overheads": [ratio - 1 for ratio in ratios],
            "memory_share": memory,
            "holds": {"time": overhead <= LIMITS["time"], "memory": memory <= LIMITS["memory"]},
        }
        spread = f"{ratios[0] - 1:+.1%} to {ratios[-1] - 1:+.1%}"
        tqdm.write(f"{name}: {overhead:+.1%} step time ({spread}), {memory:.2%} memory")
    write_json(
        args.output, {"limits": LIMITS, "config": config.to_dict(), "models": found, "environment": environment()}
    )
    tqdm.write(json.dumps({name: entry["holds"] for name, entry in found.items()}))


if __name__ == "__main__":
    main()
