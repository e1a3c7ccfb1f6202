"""Trains, prunes, packs, saves and reloads in a loop: memory, open files and processes must stay flat.

    python examples/benchmarks/soak.py                 # ten minutes; model_cards/soak.json
    python examples/benchmarks/soak.py --minutes 60

Every round is another family and another seed, in a stock Trainer, every second with a teacher, through checkpoints and
a best model, to a packed folder that is loaded again and compared. The first fifth of the rounds fills caches; what is
held in the second is compared with the last.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from harness.images import as_it_is
from harness.runs import environment, write_json
from torch import Tensor
from tqdm import tqdm
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from optimum.dendritic import DendriticCallback, DendriticConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from overhead import Random, digits, tokens  # noqa: E402

from convnet import ConvNetConfig, ConvNetForImageClassification  # noqa: E402

SAMPLES, STEPS = 16, 30
LIMITS = {"resident_bytes": 0.02, "open_files": 0.0, "processes": 0.0}  # growth that counts as flat, as a share


def bert() -> tuple[PreTrainedModel, dict[str, Tensor]]:
    config = BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    return BertForSequenceClassification(config), tokens(SAMPLES)


def vit() -> tuple[PreTrainedModel, dict[str, Tensor]]:
    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    batch = {"pixel_values": torch.randn(SAMPLES, 3, 32, 32), "labels": torch.randint(2, (SAMPLES,))}
    return ViTForImageClassification(config), batch


def convnet() -> tuple[PreTrainedModel, dict[str, Tensor]]:
    return ConvNetForImageClassification(ConvNetConfig()), digits(SAMPLES)


FAMILIES = (bert, vit, convnet)


def one_round(number: int) -> None:
    """From a fresh model to a packed folder and back.

    Raises:
        AssertionError: the loaded model differs from the one that was saved.
    """
    set_seed(number)
    model, batch = FAMILIES[number % len(FAMILIES)]()
    config = DendriticConfig(sparsity=0.3 + 0.1 * (number % 6), distillation=float(number % 2), seed=number)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=STEPS,
                per_device_train_batch_size=SAMPLES,
                use_cpu=not torch.cuda.is_available(),
                eval_strategy="steps",
                eval_steps=STEPS // 3,
                save_steps=STEPS // 3,
                save_total_limit=1,
                load_best_model_at_end=True,
                logging_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                disable_tqdm=True,
            ),
            train_dataset=Random(batch, STEPS * SAMPLES),
            eval_dataset=Random(batch, SAMPLES),
            data_collator=as_it_is,
            callbacks=[DendriticCallback(config)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model()
        packed = model.eval()
        loaded = type(model).from_pretrained(folder, device_map=model.device).eval()
        with torch.no_grad():
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
            torch.testing.assert_close(loaded(**inputs).logits, packed(**inputs).logits)


def held(process: psutil.Process) -> dict[str, int]:
    gc.collect()
    return {
        "resident_bytes": process.memory_info().rss,
        "open_files": process.num_fds(),
        "processes": len(process.children(recursive=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, default=Path("model_cards/soak.json"))
    args = parser.parse_args()
    process, start, rounds = psutil.Process(), time.monotonic(), []
    with tqdm(total=round(60 * args.minutes), unit="s", desc="soak") as bar:
        while (seconds := time.monotonic() - start) < 60 * args.minutes or len(rounds) < 3 * len(FAMILIES):
            one_round(len(rounds))
            rounds.append({"seconds": seconds, **held(process)})
            bar.update(round(seconds) - bar.n)
    found = {name: growth([round[name] for round in rounds]) for name in LIMITS}
    holds = {name: found[name] <= LIMITS[name] for name in LIMITS}
    content: dict[str, Any] = {"limits": LIMITS, "growth": found, "holds": holds}
    write_json(args.output, {**content, "rounds": rounds, "environment": environment()})
    tqdm.write(f"{len(rounds)} rounds; growth {found}; flat: {holds}")


def growth(values: list[int]) -> float:
    """From the second fifth of the rounds to the last one, as a share; medians, since one round is not like another."""
    fifth = max(1, len(values) // 5)
    early, late = statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])
    return (late - early) / max(early, 1)


if __name__ == "__main__":
    main()
