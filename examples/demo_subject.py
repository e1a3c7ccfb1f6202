"""The model of the demo's page: in each of its sizes, at each setting of its wake dial, and its groups of units."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from optimum.dendritic import DendriticError, load_at, load_dormant_, set_wake_rate, wake_rate
from optimum.dendritic.inspection.density import density

KINDS = {
    "ForSequenceClassification": ("text", AutoModelForSequenceClassification, AutoTokenizer),
    "ForImageClassification": ("image", AutoModelForImageClassification, AutoImageProcessor),
}
PASSES = 5  # of which the latency is the median
STEP = 0.05  # of the wake dial


@dataclass(frozen=True)
class Answer:
    """What a model makes of one input.

    Attributes:
        scores: The probability of each class, by its name.
        milliseconds: The median time of a forward pass.
        woke: Whether what is dormant was awake.
    """

    scores: dict[str, float]
    milliseconds: float
    woke: bool = False

    @property
    def best(self) -> str:
        """The likeliest class."""
        return max(self.scores, key=lambda name: self.scores[name])


@dataclass(frozen=True)
class Group:
    """A group of units: those that are always computed, and those that are while everything is awake."""

    name: str
    units: int
    kept: int
    awake: int


class Subject:
    """The model of a page, in each of its sizes, and what prepares its inputs.

    Attributes:
        kind: `"text"` or `"image"`.
        sizes: The sparsities of its sizes; empty where it has one.
        step: That of its wake dial, from 0 to 1; None where nothing is dormant.
    """

    def __init__(self, name: str, processor: str | None = None) -> None:
        config = _config(name)
        fields = (config.to_dict().get("quantization_config") or {}).get("config", {})
        self.kind, self._auto, auto_processor = kind_of(config.architectures or [])
        self.name, self.processor = name, auto_processor.from_pretrained(processor or name)
        self.sizes = (fields["sparsity"], *fields["sizes"]) if fields.get("sizes") else ()
        self._loaded = cache(self._load)
        try:
            self.model()
        except DendriticError:  # of several sizes the largest alone is here, packed
            if not self.sizes:
                raise
            self.sizes = ()
        self.step = self._dial() if fields.get("dormant") else None

    def model(self, sparsity: float | None = None) -> PreTrainedModel:
        """The model of a size, by default of the largest; it is loaded once."""
        return self._loaded(self.sizes[0] if self.sizes and sparsity is None else sparsity)

    def _load(self, sparsity: float | None) -> PreTrainedModel:
        return load_at(self.name, sparsity) if sparsity is not None else self._auto.from_pretrained(self.name).eval()

    def _dial(self) -> float | None:
        try:
            model = load_dormant_(self.model(), self.name)
        except OSError:
            return None  # the core alone is here
        try:
            set_wake_rate(model, STEP)
        except DendriticError:
            return 1.0  # it was not calibrated: all or nothing
        return STEP

    def inputs(self, given: str | Image.Image) -> dict[str, torch.Tensor]:
        """The tensors that the model reads of a sentence or an image."""
        if self.kind == "text":
            return dict(self.processor(given, return_tensors="pt", truncation=True))
        assert isinstance(given, Image.Image)
        return dict(self.processor(given.convert("RGB"), return_tensors="pt"))

    def answer(self, given: str | Image.Image, sparsity: float | None = None, rate: float = 0.0) -> Answer:
        """What the model of a size answers, at a rate of the wake dial."""
        model = self.model(sparsity)
        if self.step is None:
            return answer_of(model, self.inputs(given))
        set_wake_rate(model, rate)
        return replace(answer_of(model, self.inputs(given)), woke=wake_rate(model) > 0)

    def parameters(self, sparsity: float | None = None) -> str:
        """How many parameters a size has."""
        count = sum(parameter.numel() for parameter in self.model(sparsity).parameters())
        return f"{count:,}" if self.step is None else f"{count:,} + dormant"

    def groups(self, sparsity: float | None = None) -> list[Group]:
        """The groups of units of a size, in the model's order."""
        found = density(self.model(sparsity))
        awake = {(each.kind, each.first, each.last): each.kept for each in found.awake}
        return [
            Group(
                name=f"{each.kind} · {each.first if each.first == each.last else f'{each.first} … {each.last}'}",
                units=each.units,
                kept=each.kept,
                awake=awake.get((each.kind, each.first, each.last), each.kept),
            )
            for each in found.groups
        ]


def kind_of(architectures: Sequence[str]) -> tuple[str, Any, Any]:
    """What a class of transformers reads, and the Auto classes of it and of its processor."""
    for suffix, found in KINDS.items():
        if any(name.endswith(suffix) for name in architectures):
            return found
    raise SystemExit(f"{', '.join(architectures)} is not a classifier of text or images, which this page is for.")


@torch.inference_mode()
def answer_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Answer:
    """What a model answers, and the median time of some passes after a first one."""
    seconds = []
    logits = model(**inputs).logits
    for _ in range(PASSES):
        begin = time.perf_counter()
        logits = model(**inputs).logits
        seconds.append(time.perf_counter() - begin)
    chances = logits[0].softmax(-1).tolist()
    known: dict[Any, str] = model.config.id2label or {}
    scores = {str(known.get(index, index)): chance for index, chance in enumerate(chances)}
    return Answer(scores, 1000 * statistics.median(seconds))


def _config(name: str) -> Any:
    """The config of a model, or that of all sizes, where a training saved no more."""
    try:
        return AutoConfig.from_pretrained(name)
    except OSError:
        return AutoConfig.from_pretrained(name, subfolder="sizes")
