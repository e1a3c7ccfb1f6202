"""Train a small GPT-2 that ends up half its size, next to a dense control that is trained exactly as long.

    python examples/language_modeling.py
    python examples/language_modeling.py --dataset my_text.txt --steps 3000
    python examples/language_modeling.py --model openai-community/gpt2 --dataset Salesforce/wikitext/wikitext-2-raw-v1 \
        --learning_rate 5e-5 --length 512 --batch_size 8 --distillation 1
    accelerate launch examples/language_modeling.py

The default needs no download: the text is the language reference that comes with Python, read byte pair by byte pair.
`--dataset` is a text file, or a folder or Hub id (with its configuration) that has a column "text".
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from datasets import Dataset, load_dataset
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from optimum.dendritic import DendriticCallback, DendriticConfig, last_checkpoint, measure


@dataclass
class Arguments:
    model: str | None = None  # None: a small GPT-2 from scratch
    dataset: str = "reference"
    sparsity: float = 0.5
    distillation: float = 0.0  # above 0 the model as it is at the start is the teacher, so give a trained one
    steps: int = 600
    length: int = 128
    batch_size: int = 16
    learning_rate: float = 2e-3
    seed: int = 0
    prompt: str = "The "
    output_dir: str = "runs/language_modeling"
    resume: bool = False  # go on from the last complete checkpoints in output_dir


def load_text(name: str) -> str:
    if name == "reference":
        return "\n".join(topics.values())
    if Path(name).is_file():
        return Path(name).read_text("utf-8")
    path, configuration = name.rsplit("/", 1) if name.count("/") == 2 else (name, None)
    return "\n".join(load_dataset(path, configuration, split="train")["text"])


def load_model(args: Arguments, text: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained model with its tokenizer, or a small GPT-2 and a vocabulary made from the text."""
    if args.model is not None:
        return AutoModelForCausalLM.from_pretrained(args.model), AutoTokenizer.from_pretrained(args.model)
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator([text], vocab_size=512, special_tokens=["<end>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs._tokenizer, eos_token="<end>", pad_token="<end>")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=args.length,
        n_embd=128,
        n_layer=4,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config), tokenizer


def windows(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """The text cut into windows of `length` tokens; each is its own labels."""
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    rows = tokens[: len(tokens) // length * length].view(-1, length)
    return Dataset.from_dict({"input_ids": rows, "labels": rows}).with_format("torch")


def train(name: str, model: nn.Module, args: Arguments, data: dict[str, Dataset], callbacks: list) -> Trainer:
    """Train and save one model in a stock Trainer."""
    set_seed(args.seed)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{args.output_dir}/{name}",
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            seed=args.seed,
            logging_steps=100,
            save_strategy="steps",
            save_steps=100,
            save_total_limit=1,
            report_to="none",
            prediction_loss_only=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir) if args.resume else None)
    trainer.save_model()
    return trainer


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # pyright: ignore[reportArgumentType]
    set_seed(args.seed)
    text = load_text(args.dataset)
    parts = {"train": text[: len(text) * 9 // 10], "validation": text[len(text) * 9 // 10 :]}
    model, tokenizer = load_model(args, parts["train"])
    data = {name: windows(part, tokenizer, args.length) for name, part in parts.items()}

    dense = train("dense", copy.deepcopy(model), args, data, [])
    config = DendriticConfig(sparsity=args.sparsity, distillation=args.distillation)
    packed = train("packed", model, args, data, [DendriticCallback(config)])
    losses = [trainer.evaluate()["eval_loss"] for trainer in (dense, packed)]
    if not packed.is_world_process_zero():
        return

    per_character = data["validation"].num_rows * args.length / len(parts["validation"]) / math.log(2)
    baseline, model = (trainer.accelerator.unwrap_model(trainer.model).cpu().eval() for trainer in (dense, packed))
    print(measure(model, {"input_ids": data["validation"][:16]["input_ids"]}, baseline=baseline).table())
    print(f"\nbits per character: dense {losses[0] * per_character:.3f}, packed {losses[1] * per_character:.3f}")
    start = tokenizer(args.prompt, return_tensors="pt")
    tokens = model.generate(
        **start, max_new_tokens=args.length // 2, do_sample=True, pad_token_id=tokenizer.eos_token_id
    )
    print(f"the packed model writes: {tokenizer.decode(tokens[0])!r}")


if __name__ == "__main__":
    main()
