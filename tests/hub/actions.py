"""What the tests let a client of the local Hub do; imports are inside, since one client may not import the package."""

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any


@dataclass
class Outcome:
    """What came of an action: its result, or the error; and all that was logged, from INFO on."""

    result: Any = None
    error: str = ""  # "Type: text"
    traceback: str = ""
    chain: list[str] = field(default_factory=list)  # what it was raised from or while, as a debugger shows it
    log: list[str] = field(default_factory=list)

    def shown(self) -> str:
        """Everything that a user could have seen."""
        return "\n".join([repr(self.result), self.error, self.traceback, *self.chain, *self.log])


@contextmanager
def logged(lines: list[str]) -> Iterator[None]:
    """Every record once, whether or not these libraries let theirs through to the root logger."""
    handler, seen = logging.Handler(logging.INFO), []

    def emit(record: logging.LogRecord) -> None:
        if not any(record is other for other in seen):
            seen.append(record)
            lines.append(handler.format(record))

    handler.emit = emit
    loggers = [logging.getLogger(name) for name in (None, "optimum", "transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def chained(error: BaseException | None) -> list[str]:
    """An error, what caused it and what it was raised while handling, whether or not a traceback shows that."""
    if error is None:
        return []
    return [f"{error!r} {error}", *chained(error.__cause__), *chained(error.__context__)]


def attempt(action: Callable[..., Any], *args: Any, **kwargs: Any) -> Outcome:
    """Do it, without the waits between attempts, and tell all about it."""
    import optimum.dendritic.huggingface.hub.retry as retry

    retry.FIRST_WAIT = 0.01
    outcome = Outcome()
    with logged(outcome.log):
        try:
            outcome.result = action(*args, **kwargs)
        except Exception as error:
            outcome.error, outcome.traceback = f"{type(error).__name__}: {error}", traceback.format_exc()
            outcome.chain = chained(error)
    return outcome


@cache
def packed(name: str = "bert") -> Any:
    """A packed model of that name, or the injected BERT, and inputs for it."""
    from helpers.checkpoints import saved

    form = "injected" if name == "injected" else "packed"
    return saved(Path(mkdtemp()), "bert" if form == "injected" else name, form)


@cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "good", "bad", "film"]
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="[UNK]", pad_token="[PAD]")


@cache
def report() -> Any:
    """A measurement, without the peak memory, which takes processes of its own."""
    from optimum.dendritic import measure

    return measure(*packed(), memory=False, large_batch=2, seconds=0.01)


def push(repo_id: str, name: str = "bert", **options: Any) -> str:
    """Push a packed model with a tokenizer; returns the commit's sha."""
    from optimum.dendritic import push_to_hub

    model, _ = packed(name)
    return push_to_hub(model, repo_id, processor=tokenizer(), report=report(), **options).oid


def logits(name: str = "bert") -> list[list[float]]:
    """What the pushed model answers."""
    from helpers.models import outputs

    model, inputs = packed(name)
    return outputs(model, inputs).tolist()


def load(repo_id: str, register: bool = True, auto_class: str = "", **options: Any) -> list[list[float]]:
    """What the model on the Hub answers to the same inputs.

    Args:
        register: whether to import this package first.
    """
    if register:
        import optimum.dendritic  # noqa: F401
    import transformers
    from helpers.models import outputs, text

    auto = getattr(transformers, auto_class or "AutoModelForSequenceClassification")
    model = auto.from_pretrained(repo_id, **options)
    assert ("optimum.dendritic" in sys.modules) or not register
    if auto_class == "AutoModel":
        return [list(model.encoder.layer[0].intermediate.dense.weight.shape)]
    return outputs(model, text()).tolist()


def classify(repo_id: str, sentence: str, **options: Any) -> float:
    """The pipeline's score."""
    from transformers import pipeline

    import optimum.dendritic  # noqa: F401

    return pipeline("text-classification", repo_id, **options)(sentence)[0]["score"]


def classify_here(sentence: str) -> float:
    """The score of the model that was pushed."""
    from transformers import pipeline

    return pipeline("text-classification", packed("bert")[0], tokenizer=tokenizer())(sentence)[0]["score"]


def push_dormant(repo_id: str, **options: Any) -> list[list[list[float]]]:
    """Push a model with something dormant; what it answers asleep and awake, and what the loaded one does."""
    from helpers.models import build, outputs
    from transformers import AutoModelForSequenceClassification

    from optimum.dendritic import (
        DendriticConfig,
        compress_,
        inject_,
        load_dormant_,
        push_to_hub,
        score_,
        set_wake_rate,
        update_,
    )

    model, inputs = build("bert")
    config = DendriticConfig(sparsity=0.6, dormant=0.3, importance="magnitude", segment_size=4)
    inject_(model, config, example_inputs=inputs)
    score_(model)
    update_(model, 0.6)
    compress_(model, inputs)
    push_to_hub(model, repo_id, **options)
    core = outputs(model, inputs).tolist()
    awake = outputs(set_wake_rate(model, 1.0), inputs).tolist()
    loaded = AutoModelForSequenceClassification.from_pretrained(repo_id)
    alone = outputs(loaded, inputs).tolist()
    load_dormant_(loaded, repo_id)
    return [core, awake, alone, outputs(set_wake_rate(loaded, 1.0), inputs).tolist()]


def push_folder(repo_id: str, folder: str, place: str, token: str) -> str:
    """Push a folder as a subfolder, as a Trainer pushes those in its own."""
    from huggingface_hub import HfApi

    return HfApi(token=token).upload_folder(repo_id=repo_id, folder_path=folder, path_in_repo=place).oid


def load_at(repo_id: str, sparsity: float) -> list[list[float]]:
    """What a size that is cut out of a checkpoint on the Hub answers."""
    from helpers.models import outputs, text

    import optimum.dendritic

    return outputs(optimum.dendritic.load_at(repo_id, sparsity), text()).tolist()
