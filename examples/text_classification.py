"""Fine-tune a text classifier, then compress it with its dense self as teacher, next to a dense control.

    python examples/text_classification.py
    python examples/text_classification.py --model sentence-transformers/all-MiniLM-L6-v2 --dataset stanfordnlp/sst2 \
        --learning_rate 5e-5 --epochs 2

The default needs no download: a small BERT learns from scratch which library a docstring on this machine comes from.
`--model` and `--dataset` are folders or Hub ids; the dataset has the columns "sentence" (or "text") and "label".
"""

import ast
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from optimum.dendritic import DendriticCallback, DendriticConfig, last_checkpoint, measure
from optimum.dendritic.metrics import accuracy

LIBRARIES = ["matplotlib", "numpy", "pandas", "sklearn"]


@dataclass
class Arguments:
    model: str | None = None  # None: a small BERT from scratch
    dataset: str = "docstrings"
    sparsity: float = 0.6
    distillation: float = 1.0
    epochs: float = 4  # of fine-tuning, and as many again of compression
    batch_size: int = 32
    learning_rate: float = 5e-4
    seed: int = 0
    output_dir: str = "runs/text_classification"
    resume: bool = False  # go on from the last complete checkpoints in output_dir


def docstrings(library: str) -> Iterator[str]:
    """First sentences of the docstrings in an installed library, which is read and not run."""
    for file in sorted(Path(str(files(library))).rglob("*.py")):
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                yield " ".join(text.split("\n\n")[0].split())


def load_texts(name: str) -> DatasetDict:
    """The splits "train" and "validation", with the columns "sentence" and "label"."""
    if name != "docstrings":
        found = load_dataset(name)
        return found.rename_column("text", "sentence") if "text" in found["train"].column_names else found
    texts = [(text, label) for label, lib in enumerate(LIBRARIES) for text in sorted({*islice(docstrings(lib), 1000)})]
    sentences, labels = zip(*texts, strict=True)
    dataset = Dataset.from_dict({"sentence": sentences, "label": labels})
    split = dataset.cast_column("label", ClassLabel(names=LIBRARIES)).train_test_split(test_size=0.2, seed=0)
    return DatasetDict({"train": split["train"], "validation": split["test"]})


def load_model(name: str | None, data: DatasetDict) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A pretrained model with its tokenizer, or a small BERT and a vocabulary made from the training data."""
    names = dict(enumerate(data["train"].features["label"].names))
    if name is not None:
        model = AutoModelForSequenceClassification.from_pretrained(name, id2label=names)
        return model, AutoTokenizer.from_pretrained(name)
    pairs = ByteLevelBPETokenizer(lowercase=True)  # the same in every process, which word pieces are not
    pairs.train_from_iterator(data["train"]["sentence"], 4000, special_tokens=["[PAD]"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs._tokenizer, pad_token="[PAD]")
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=4)
    config.update({"intermediate_size": 512, "id2label": names})
    return BertForSequenceClassification(config), tokenizer


def train(name: str, model: nn.Module, args: Arguments, data: DatasetDict, tokenizer, callbacks: list) -> Trainer:
    """Train and save one model in a stock Trainer."""
    set_seed(args.seed)
    model.accepts_loss_kwargs = False  # pyright: ignore  # BERT's is a plain mean; two GPUs would double it
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{args.output_dir}/{name}",
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=128,
            learning_rate=args.learning_rate,
            warmup_steps=0.1,
            seed=args.seed,
            train_sampling_strategy="group_by_length",
            logging_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir) if args.resume else None)
    trainer.save_model()
    return trainer


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # pyright: ignore[reportArgumentType]
    set_seed(args.seed)
    data = load_texts(args.dataset)
    model, tokenizer = load_model(args.model, data)
    data = data.map(lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=64), batched=True)
    tuned = train("tuned", model, args, data, tokenizer, []).model
    assert tuned is not None
    dense = train("dense", copy.deepcopy(tuned), args, data, tokenizer, [])  # the control, trained as long in all
    config = DendriticConfig(sparsity=args.sparsity, distillation=args.distillation)
    packed = train("packed", copy.deepcopy(tuned), args, data, tokenizer, [DendriticCallback(config)])
    scores = [trainer.evaluate()["eval_accuracy"] for trainer in (dense, packed)]
    if not packed.is_world_process_zero():
        return
    model, baseline = (trainer.accelerator.unwrap_model(trainer.model).cpu().eval() for trainer in (packed, dense))
    batch = tokenizer(data["validation"]["sentence"][:32], padding=True, truncation=True, return_tensors="pt")
    print(measure(model, dict(batch), baseline=baseline).table())
    print(f"\naccuracy: dense {scores[0]:.4f}, packed {scores[1]:.4f}")


if __name__ == "__main__":
    main()
