"""What is known of how a model came to be: its data, its training, its scores. Ready for JSON, and free of paths.

`DendriticCallback` fills it in while a Trainer runs. It is kept on the model, beside the layout, and outlives the
process in `efficiency.json`. A score belongs to weights and not to a model object: each carries a fingerprint of the
weights that were scored, so that a model which was trained on is never published with the scores that it had before.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import SchedulerType, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames

from ...state import Source, base_of
from .dataset import Data, data_of

ATTRIBUTE = "dendritic_facts"
POINTS = 500  # of a training curve that are kept; more cannot be seen
SAMPLED = 256  # elements of a tensor that its fingerprint reads
CURVE = ("step", "epoch", "loss", "learning_rate", "sparsity", "regrown", "phase")
CONTROL = "0" * 64  # stands for the fingerprint of a dense control, which is another model, trained as long
CLOCKS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of some weights.

    Attributes:
        metrics: The scores by the names of their metrics.
        weights: The fingerprint of the weights that were scored.
        step: The step of the training after which they were scored; None outside of a training.
        sparsity: The fraction of the budget that had been removed by then; None if it is not known.
        data: The dataset that they were scored on; None if it is not known.
    """

    metrics: dict[str, float]
    weights: str
    step: int | None = None
    sparsity: float | None = None
    data: Data | None = None


@dataclass
class Facts:
    """What is known of one model.

    Attributes:
        base: The dense model that it was made from; None if it is not known.
        teacher: The teacher that it learnt from; None without one.
        data: The dataset that it was trained or calibrated on; None if it is not known.
        hyperparameters: The settings of its training by name.
        history: The Trainer's own log, entry by entry, to which the training goes on adding.
        evaluations: Its evaluations, in the order in which they were made.
    """

    base: Source | None = None
    teacher: Source | None = None
    data: Data | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, numbers finite, nothing that is unknown; `from_dict` reads it."""
        known = dataclasses.asdict(self) | {"history": curve(self.history)}
        return {name: value for name, value in present(known).items() if value}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Facts":
        """Raises `TypeError` for fields that `to_dict` does not write."""
        entries = [dict(**entry) for entry in fields.get("evaluations", [])]
        evaluations = [Evaluation(**entry | {"data": _read(Data, entry.get("data"))}) for entry in entries]
        read = {name: _read(kind, fields.get(name)) for name, kind in _PARTS.items()}
        return cls(**{**fields, **read, "evaluations": evaluations})


_PARTS: dict[str, type] = {"base": Source, "teacher": Source, "data": Data}


def facts_of(model: nn.Module) -> Facts:
    """What is known of `model`, kept on it from now on."""
    facts = model.__dict__.setdefault(ATTRIBUTE, Facts())
    facts.base = facts.base or base_of(model)
    return facts


def note_training(
    model: nn.Module, args: TrainingArguments, state: TrainerState, data: Any, teacher: Source | None
) -> None:
    """Record the data, the hyperparameters and the log of a run that begins; the log grows with the run."""
    facts = facts_of(model)
    facts.data, facts.teacher = data_of(data), teacher
    facts.hyperparameters, facts.history = _hyperparameters(args, state), state.log_history


def note_evaluation(
    model: nn.Module,
    metrics: Mapping[str, Any],
    *,
    step: int | None = None,
    sparsity: float | None = None,
    data: Any = None,
) -> None:
    """Record scores of the present weights: the numbers among `metrics`, without those of the Trainer's own speed."""
    numbers = _scores(metrics)
    facts, weights, seen = facts_of(model), fingerprint(model), data_of(data)
    facts.evaluations.append(Evaluation(metrics=numbers, weights=weights, step=step, sparsity=sparsity, data=seen))


def note_control(model: nn.Module, metrics: Mapping[str, Any]) -> None:
    """Record the scores of a dense model that was trained as long as this one, on the data that this one is scored on.
    They take the place of earlier ones."""
    facts = facts_of(model)
    facts.evaluations = [entry for entry in facts.evaluations if entry.weights != CONTROL]
    facts.evaluations.append(Evaluation(metrics=_scores(metrics), weights=CONTROL, sparsity=0.0))


def transfer_scores(model: nn.Module, before: str) -> None:
    """Record that the weights with the fingerprint `before` have been packed: their scores stay the same."""
    facts, now = facts_of(model), fingerprint(model)
    facts.evaluations = [dataclasses.replace(e, weights=now) if e.weights == before else e for e in facts.evaluations]


def fingerprint(model: nn.Module) -> str:
    """A digest of the weights: of evenly spaced elements of every tensor, whatever its name and device. A step of an
    optimizer changes it, saving and loading does not."""
    digests = sorted(_digest(tensor) for tensor in model.state_dict().values() if not tensor.is_meta)
    return sha256(b"".join(digests)).hexdigest()


def curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a Trainer's log that tell of training, evenly thinned to `POINTS`, the first and the last kept."""
    entries = [{name: entry[name] for name in CURVE if name in entry} for entry in history if "loss" in entry]
    if len(entries) > POINTS:
        entries = [entries[i * (len(entries) - 1) // (POINTS - 1)] for i in range(POINTS)]
    return entries


def present(value: Any) -> Any:
    """`value` without fields that are None or no finite number."""
    if isinstance(value, Mapping):
        return {name: present(each) for name, each in value.items() if not _absent(each)}
    if isinstance(value, list | tuple):
        return [present(each) for each in value]
    return value


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among metrics, without those of the Trainer's own speed."""
    scores = {name.removeprefix("eval_"): value for name, value in metrics.items() if not name.endswith(CLOCKS)}
    return {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}


def _digest(tensor: Tensor) -> bytes:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    flat = local.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLED)].cpu().contiguous()
    values = sample.view(torch.uint8).numpy().tobytes()
    return sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + values).digest()


def _read(kind: type, fields: Mapping[str, Any] | None) -> Any:
    return None if fields is None else kind(**fields)


def _hyperparameters(args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
    return {
        "steps": state.max_steps,
        "epochs": state.num_train_epochs,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "lr_scheduler": SchedulerType(args.lr_scheduler_type).value,
        "warmup_steps": args.get_warmup_steps(state.max_steps),
        "optimizer": OptimizerNames(args.optim).value,
        "weight_decay": args.weight_decay,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "processes": args.world_size,
        "seed": args.seed,
    }
