"""The tasks that models are compressed for: their batches with labels, and their scores."""

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
)

from ..errors import invalid
from ..structure.labelled_batches import on_device
from ..unofficial import classes_of
from .data import draw, image_column, label_column, text_columns
from .loading import knows_words, told

if TYPE_CHECKING:
    from datasets import Dataset

Batches = list[dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What models of one kind need: how to load them, how to make batches with labels, and how to score them.

    Attributes:
        auto_class: The Auto class that loads such a model.
        processor_class: The Auto class that loads its tokenizer or image processor.
        batches: Takes the model, its processor, a split, the number of samples to draw from it, and the arguments.
        metric: The name of the score.
        score: Takes the model and batches, and returns the score.
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
            remedy = f"Save the {kind} beside the model."
            raise invalid("MODEL", name, f"has no {kind} that can be loaded ({told(error)})", remedy) from error
        if not knows_words(processor):
            rule = f"has no {kind}: the one that was loaded has only special tokens"
            raise invalid("MODEL", name, rule, "Save the tokenizer beside the model.")
        return processor


def task_of(model: PreTrainedModel) -> Task:
    """The task of a model by its class. Raises `DendriticError` for other kinds."""
    for task in TASKS:
        if type(model) in classes_of(task.auto_class, type(model.config)):
            return task
    kinds = "sequence classification, image classification and causal language models"
    rule = f"only {kinds} are compressed from the command line"
    raise invalid("MODEL", type(model).__name__, rule, "Call optimum.dendritic.prune_ from Python.")


def text_batches(model: PreTrainedModel, processor: Any, dataset: "Dataset", samples: int, args: Namespace) -> Batches:
    """Texts or pairs of texts, tokenized and padded batch by batch, with their class."""
    columns = text_columns(dataset, args.text_column, most=2)
    label = label_column(dataset, args.label_column)
    batches = []
    for rows in draw(dataset, samples, args):
        texts = [rows[column] for column in columns]
        length = {"padding": True, "truncation": True, "max_length": args.sequence_length}
        encoded = _processed(processor, *texts, option="--text-column", column=columns, return_tensors="pt", **length)
        batches.append({**encoded, "labels": _classes(model, rows[label], label)})
    return batches


def image_batches(model: PreTrainedModel, processor: Any, dataset: "Dataset", samples: int, args: Namespace) -> Batches:
    """Images, processed as the model was trained on, with their class."""
    column, label = image_column(dataset, args.image_column), label_column(dataset, args.label_column)
    batches = []
    for rows in draw(dataset, samples, args):
        images = [_pixels(image, model.config.to_dict().get("num_channels", 3), column) for image in rows[column]]
        encoded = _processed(processor, images=images, option="--image-column", column=column, return_tensors="pt")
        pixels = encoded["pixel_values"].to(model.dtype)
        batches.append({"pixel_values": pixels, "labels": _classes(model, rows[label], label)})
    return batches


def language_batches(
    model: PreTrainedModel, processor: Any, dataset: "Dataset", samples: int, args: Namespace
) -> Batches:
    """Texts one after the other, cut to blocks of equal length, so that nothing is padded; labels are the tokens."""
    if args.sequence_length < 2:
        raise invalid("--sequence-length", args.sequence_length, "a token is predicted from another", "Give 2 or more.")
    (column,) = text_columns(dataset, args.text_column, most=1)
    tokens: list[int] = []
    end = [] if processor.eos_token_id is None else [processor.eos_token_id]
    for rows in draw(dataset, len(dataset), args):
        encoded = _processed(processor, rows[column], option="--text-column", column=column)
        tokens += [token for ids in encoded["input_ids"] for token in [*ids, *end]]
        if len(tokens) >= samples * args.sequence_length:
            break
    length = min(args.sequence_length, len(tokens))
    if length < 2:
        raise invalid("--text-column", column, "holds no text", "Name another column or another --split.")
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
    Task(
        auto_class=AutoModelForSequenceClassification,
        processor_class=AutoTokenizer,
        batches=text_batches,
        metric="accuracy",
        score=accuracy,
    ),
    Task(
        auto_class=AutoModelForImageClassification,
        processor_class=AutoImageProcessor,
        batches=image_batches,
        metric="accuracy",
        score=accuracy,
    ),
    Task(
        auto_class=AutoModelForCausalLM,
        processor_class=AutoTokenizer,
        batches=language_batches,
        metric="perplexity",
        score=perplexity,
    ),
)


def _classes(model: PreTrainedModel, labels: list[Any], column: str) -> Tensor:
    """Labels as class numbers; names are looked up in the model's config."""
    known = {str(name): int(number) for name, number in (model.config.label2id or {}).items()}
    numbers = [known.get(label, -1) if isinstance(label, str) else label for label in labels]
    for label, number in zip(labels, numbers, strict=True):
        if not isinstance(number, int) or not 0 <= number < len(model.config.id2label or ()):
            rule = f"holds {label!r}, which is not a class of the model; it knows {', '.join(known)}"
            raise invalid("--label-column", column, rule, "Name another column, or a --split that has labels.")
    return torch.tensor(numbers)


def _pixels(image: Any, channels: int, column: str) -> Any:
    """An image with the model's channels, whatever its file held."""
    if isinstance(image, list):
        return np.asarray(image, np.uint8)
    if type(image).__module__.split(".")[0] != "PIL":
        rule = f"holds a {type(image).__name__}, which is not an image"
        raise invalid("--image-column", column, rule, "Name the column of images.")
    return image.convert("RGB" if channels == 3 else "L")


def _processed(processor: Any, *samples: Any, option: str, column: str | list[str], **options: Any) -> Any:
    """What a tokenizer or image processor makes of samples. Raises `DendriticError` if it does not take them."""
    try:
        return processor(*samples, **options)
    except Exception as error:  # a missing padding token, a missing text: each tokenizer raises what it likes
        rule = f"the {type(processor).__name__} does not take it ({told(error)})"
        raise invalid(
            option, column, rule, "Name another column, or correct the processor beside the model."
        ) from error
