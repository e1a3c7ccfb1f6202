"""What a model is asked: how samples become batches with labels, and how well the model answers."""

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..one_shot.calibration import on_device
from ..unofficial import classes_of
from .data import draw, image_column, label_column, text_columns
from .loading import Refusal

if TYPE_CHECKING:
    from datasets import Dataset

Batches = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """A kind of model: the Auto class that knows it, its processor, its batches with labels, and its score.

    `batches` takes the model, its processor, a split, how many samples to draw from it, and the arguments.
    """

    auto_class: Any
    processor_class: Any
    batches: Callable[[PreTrainedModel, Any, "Dataset", int, Namespace], Batches]
    metric: str
    score: Callable[[PreTrainedModel, Batches], float]

    def load_processor(self, name: str, args: Namespace) -> Any:
        """The tokenizer or image processor beside the model."""
        kind = self.processor_class.__name__.removeprefix("Auto")
        try:
            processor = self.processor_class.from_pretrained(name, trust_remote_code=args.trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            raise Refusal(f"{name!r} has no {kind} that could be loaded: {error}") from error
        if isinstance(processor, PreTrainedTokenizerBase) and len(processor) <= len(processor.all_special_tokens):
            raise Refusal(
                f"{name!r} has no {kind}: what was loaded knows no words. Save the tokenizer beside the model."
            )
        return processor


def task_of(model: PreTrainedModel) -> Task:
    """The task of a model by its class; `Refusal` for other kinds."""
    for task in TASKS:
        if type(model) in classes_of(task.auto_class, type(model.config)):
            return task
    raise Refusal(
        f"{type(model).__name__} is none of the kinds that are compressed from the command line: sequence "
        "classification, image classification, causal language model. Call optimum.dendritic.prune_ from Python."
    )


def text_batches(model: PreTrainedModel, processor: Any, dataset: "Dataset", samples: int, args: Namespace) -> Batches:
    """Texts or pairs of texts, tokenized and padded batch by batch, with their class."""
    columns, label = text_columns(dataset, args.text_column), label_column(dataset, args.label_column)
    batches = []
    for rows in draw(dataset, samples, args):
        texts = [rows[column] for column in columns]
        encoded = processor(*texts, padding=True, truncation=True, max_length=args.sequence_length, return_tensors="pt")
        batches.append({**encoded, "labels": _classes(model, rows[label], label)})
    return batches


def image_batches(model: PreTrainedModel, processor: Any, dataset: "Dataset", samples: int, args: Namespace) -> Batches:
    """Images, processed as the model was trained on, with their class."""
    column, label = image_column(dataset, args.image_column), label_column(dataset, args.label_column)
    batches = []
    for rows in draw(dataset, samples, args):
        images = [_pixels(image, model.config.to_dict().get("num_channels", 3)) for image in rows[column]]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(model.dtype)
        batches.append({"pixel_values": pixels, "labels": _classes(model, rows[label], label)})
    return batches


def language_batches(
    model: PreTrainedModel, processor: Any, dataset: "Dataset", samples: int, args: Namespace
) -> Batches:
    """Texts one after the other, cut to blocks of equal length, so that nothing is padded; labels are the tokens."""
    (column,) = text_columns(dataset, args.text_column)[:1]
    tokens: list[int] = []
    end = [] if processor.eos_token_id is None else [processor.eos_token_id]
    for rows in draw(dataset, len(dataset), args):
        tokens += [token for ids in processor(rows[column])["input_ids"] for token in [*ids, *end]]
        if len(tokens) >= samples * args.sequence_length:
            break
    length = min(args.sequence_length, len(tokens))
    if length < 2:
        raise Refusal(f"--dataset {args.dataset}: its column {column!r} holds no text.")
    blocks = torch.tensor(tokens[: min(samples, len(tokens) // length) * length]).view(-1, length)
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        for ids in blocks.split(args.batch_size)
    ]


@torch.inference_mode()
def accuracy(model: PreTrainedModel, batches: Batches) -> float:
    """Fraction of the samples whose largest logit is that of their class."""
    right = [model(**on_device(model, b)).logits.argmax(-1).cpu() == b["labels"] for b in batches]
    return torch.cat(right).double().mean().item()


@torch.inference_mode()
def perplexity(model: PreTrainedModel, batches: Batches) -> float:
    """`exp` of the mean loss of a token."""
    losses = [(model(**on_device(model, batch)).loss.item(), len(batch["labels"])) for batch in batches]
    mean = sum(loss * size for loss, size in losses) / sum(size for _, size in losses)
    return math.exp(mean) if mean < 700 else math.inf


TASKS = (
    Task(AutoModelForSequenceClassification, AutoTokenizer, text_batches, "accuracy", accuracy),
    Task(AutoModelForImageClassification, AutoImageProcessor, image_batches, "accuracy", accuracy),
    Task(AutoModelForCausalLM, AutoTokenizer, language_batches, "perplexity", perplexity),
)


def _classes(model: PreTrainedModel, labels: list[Any], column: str) -> Tensor:
    """Labels as class numbers; names are looked up in the model's config."""
    known = {str(name): int(number) for name, number in (model.config.label2id or {}).items()}
    numbers = [known.get(label, -1) if isinstance(label, str) else label for label in labels]
    for label, number in zip(labels, numbers, strict=True):
        if not isinstance(number, int) or not 0 <= number < len(model.config.id2label or ()):
            raise Refusal(
                f"the column {column!r} holds {label!r}, which is no class of the model; it knows {', '.join(known)}."
            )
    return torch.tensor(numbers)


def _pixels(image: Any, channels: int) -> Any:
    """An image with the model's channels, whatever its file held."""
    if isinstance(image, list):
        return np.asarray(image, np.uint8)
    return image.convert("RGB" if channels == 3 else "L")
