"""Compress while training in a loop of your own, without a Trainer, on one process or on several.

    python examples/accelerate_loop.py
    accelerate launch examples/accelerate_loop.py
    accelerate launch --config_file examples/accelerate/ddp.yaml examples/accelerate_loop.py

The data are the handwritten digits inside scikit-learn: nothing is downloaded. `batch_size` is that of all processes
together, so that every number of processes makes the same model, up to rounding (and the draws of dropout).
"""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification, HfArgumentParser

from convnet import ConvNetConfig, ConvNetForImageClassification
from optimum.dendritic import DendriticConfig, compress_, inject_, mask_, score_, update_, update_plan

Batch = dict[str, torch.Tensor]


@dataclass
class Arguments:
    sparsity: float = 0.6
    steps: int = 300  # of the optimizer
    batch_size: int = 64
    accumulate: int = 1  # micro-batches in one step
    dropout: float = 0.25
    learning_rate: float = 2e-3
    seed: int = 0
    output_dir: str = "runs/accelerate_loop"


def digits() -> tuple[list[Batch], list[Batch]]:
    """Samples for training and for testing: pixels `[1, 8, 8]` in [-1, 1] and their label."""
    rows, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(rows).float().view(-1, 1, 8, 8) / 8 - 1
    pairs = zip(pixels, torch.from_numpy(labels), strict=True)
    samples = [{"pixel_values": image, "labels": label} for image, label in pairs]
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    return [samples[i] for i in order[:-360]], [samples[i] for i in order[-360:]]


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> float:
    model.eval()
    right, seen = 0, 0
    for batch in loader:
        guesses = model(batch["pixel_values"]).logits.argmax(-1)
        hits: torch.Tensor = accelerator.gather_for_metrics(guesses == batch["labels"])  # pyright: ignore
        right, seen = right + int(hits.sum()), seen + len(hits)
    return right / seen


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # pyright: ignore[reportArgumentType]
    order = DataLoaderConfiguration(use_seedable_sampler=True)  # the same for every number of processes
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulate, dataloader_config=order)
    set_seed(args.seed)
    train_set, test_set = digits()
    drops = {"feature_dropout": args.dropout, "classifier_dropout": args.dropout}
    model = ConvNetForImageClassification(ConvNetConfig(image_size=8, **drops))

    config = DendriticConfig(sparsity=args.sparsity)
    plan = update_plan(config, args.steps)
    inject_(model, config)  # before prepare, and before the optimizer

    share = args.batch_size // accelerator.num_processes // args.accumulate
    loader = DataLoader(train_set, batch_size=share, shuffle=True, drop_last=True)  # pyright: ignore
    tests = accelerator.prepare(DataLoader(test_set, batch_size=60))  # pyright: ignore
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, args.steps * accelerator.num_processes)
    wrapped, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    step = 0
    while step < args.steps:
        for batch in loader:
            wrapped.train()
            with accelerator.accumulate(wrapped):
                accelerator.backward(wrapped(**batch).loss)
                due = accelerator.sync_gradients
                if due:
                    step += 1
                    accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)  # unscales the gradients of fp16, too
                    if step <= max(plan):
                        score_(model)  # the model inside the wrapper; every process calls
                    if step in plan:
                        update_(model, plan[step].sparsity, regrow=plan[step].regrow, optimizer=optimizer)
                optimizer.step()
                if due:
                    mask_(model)
                schedule.step()
                optimizer.zero_grad()
            if step == args.steps:
                break

    score = accuracy(accelerator, wrapped, tests)
    accelerator.wait_for_everyone()
    model = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    dense = sum(parameter.numel() for parameter in model.parameters())
    compress_(model)
    if accelerator.is_main_process:
        model.save_pretrained(args.output_dir)
        packed = AutoModelForImageClassification.from_pretrained(args.output_dir)
        left = sum(parameter.numel() for parameter in packed.parameters()) / dense
        print(f"processes: {accelerator.num_processes}, accuracy: {score:.4f}, parameters left: {left:.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
