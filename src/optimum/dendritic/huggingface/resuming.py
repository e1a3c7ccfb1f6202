"""Going on after a crash: the newest checkpoint that is complete, and what a resumed run must have in common with it.

The Trainer writes a checkpoint in place, file by file: weights, optimizer, scheduler, random states and, last of its
process, `trainer_state.json`; then it deletes older checkpoints. `resume_from_checkpoint=True` takes the newest folder,
also one that was being written when the process died, and fails on it. `last_checkpoint` takes the newest whole one.
"""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerState, TrainingArguments
from transformers.utils import logging

from ..config import DendriticConfig
from ..errors import CheckpointError, invalid
from ..prune import Update
from ..record import layout_of
from .checkpoint import read_headers

logger = logging.get_logger(__name__)

CALLBACK = "DendriticCallback"  # under which the Trainer keeps what the callback notes
STATE = "trainer_state.json"
FOLDER = re.compile(r"checkpoint-(\d+)")
TORCH = re.compile(r"(pytorch_model|adapter_model|optimizer|scheduler|scaler|rng_state|training_args)\S*\.(pt|pth|bin)")
WEIGHTS = re.compile(r"(pytorch_model|model|adapter_model)\S*\.(bin|safetensors)(\.index\.json)?")
OPTIMIZER = re.compile(r"optimizer\.(pt|bin)")
DIRECTORY_OF_SHARDS = ".metadata"  # torch.distributed.checkpoint writes it when all shards are there


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest complete checkpoint of a run, to be passed as `trainer.train(resume_from_checkpoint=...)`.

    Every newer one that was cut short is named in a warning, with what it lacks. Nothing is loaded or deleted: files
    are checked by presence, length and structure, which is all that the death of a process can harm.

    Args:
        output_dir: of the `TrainingArguments`; it need not exist.

    Returns:
        Its folder; None where there is none, which starts the training from the beginning.
    """
    parts = Path(output_dir).iterdir() if Path(output_dir).is_dir() else ()
    found = {int(name[1]): path for path in parts if path.is_dir() and (name := FOLDER.fullmatch(path.name))}
    for step in sorted(found, reverse=True):
        fault = _fault(found[step])
        if fault is None:
            return str(found[step])
        logger.warning(f"{found[step]} was cut short and is passed over: {fault}.")
    return None


def noted(config: DendriticConfig, state: TrainerState) -> dict[str, Any]:
    """What the callback had noted when the checkpoint that `state` resumes was written; empty for a run that starts.

    Raises:
        DendriticError: the checkpoint was written without the callback, or with another config.
    """
    if not state.global_step:
        return {}
    saved = _own(state.stateful_callbacks)
    if saved is None:
        rule = f"step {state.global_step} was reached without DendriticCallback, so it has neither masks nor scores"
        remedy = "Load its model with from_pretrained and start a new run, without resume_from_checkpoint."
        raise invalid("resume_from_checkpoint", CALLBACK, rule, remedy)
    was, now = saved["args"]["config"], config.to_dict()
    changed = {name: now[name] for name in now if name not in was or was[name] != now[name]}
    if changed or was.keys() - now.keys():
        former = {name: was.get(name) for name in changed or was}
        rule = f"the run up to step {state.global_step} had {former}"
        raise invalid("config", changed, rule, "Resume with the same config, or start a new run from the dense model.")
    return saved["attributes"]


def planned_steps(notes: dict[str, Any], state: TrainerState) -> int:
    """The `max_steps` that the masks' schedule is made for: those that the run began with, however far it now goes."""
    steps = notes.get("max_steps") or state.max_steps
    if type(steps) is not int or steps < 1:
        raise invalid(
            f"{STATE}.max_steps", steps, "must be a number of steps", "Use another checkpoint.", CheckpointError
        )
    return steps


def check_length(steps: int, plan: dict[int, Update], state: TrainerState) -> None:
    """A resumed run may be longer than planned (more recovery) or shorter, but not end before its mask is final."""
    if not plan or steps == state.max_steps:
        return
    if state.max_steps < max(plan):
        rule = f"ends before the mask of the resumed run is final, at step {max(plan)} of {steps}"
        raise invalid("max_steps", state.max_steps, rule, "Train longer, or start a new run.")
    logger.warning(
        f"The run began with max_steps = {steps} and is resumed with {state.max_steps}: the masks keep their schedule, "
        f"final at step {max(plan)}, and the recovery after it is as long as what is left."
    )


def random_states(args: TrainingArguments) -> list[str]:
    """The files of random states that the processes of this node write beside a checkpoint, each its own."""
    if args.world_size <= 1:
        return ["rng_state.pth"]
    count = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    return [f"rng_state_{rank}.pth" for rank in range(args.process_index, args.process_index + count)]


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in _tensors(model)}


@torch.no_grad()
def put_back_(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Undo what has happened to the parameters and buffers since `values_of`."""
    for name, tensor in _tensors(model):
        tensor.copy_(values[name])


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def refuse_other_masks(model: nn.Module) -> None:
    """Let `model.load_state_dict`, by which a Trainer resumes, refuse the masks of another config or of a packed model
    by name."""
    model.register_load_state_dict_pre_hook(_check_masks)


def _check_masks(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
    layout, own = layout_of(model), model.state_dict()
    masks = {name: mask for name, mask in state_dict.items() if name.endswith("dendrite_mask")}
    for name, mask in masks.items() if layout is not None else ():
        field, shape = f"checkpoint {name}", tuple(mask.shape)
        if layout is not None and layout.packed:
            remedy = "Build the Trainer anew, on the dense model, and resume there."
            raise invalid(field, shape, "is of a run before packing, but the model is packed", remedy, CheckpointError)
        if name not in own or own[name].shape != mask.shape:
            remedy = "Resume with the same config, or start a new run from the dense model."
            rule = "does not fit: the run had another config"
            raise invalid(field, shape, rule, remedy, CheckpointError)


def _own(callbacks: dict[str, Any]) -> dict[str, Any] | None:
    """What the Trainer saved of the callback (of the first one, if there are several)."""
    saved = callbacks.get(CALLBACK)
    return saved[0] if isinstance(saved, list) else saved


def _fault(folder: Path) -> str | None:
    """What a checkpoint lacks or where it is broken, None for a complete one."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    state = _json(folder / STATE)
    if not isinstance(state, dict) or "global_step" not in state:
        return f"{STATE}, which is written last, is {'incomplete' if STATE in names else 'missing'}"
    sharded = [path for path in folder.iterdir() if path.is_dir()]  # by FSDP or DeepSpeed, each in its own way
    if not sharded:
        if not any(WEIGHTS.fullmatch(name) for name in names):
            return "its weights are missing"
        if not any(OPTIMIZER.fullmatch(name) for name in names) or "scheduler.pt" not in names:
            return "the state of its optimizer or scheduler is missing (so it is with save_only_model=True)"
    for path in sharded:
        if any(path.glob("*.distcp")) and not (path / DIRECTORY_OF_SHARDS).exists():
            return f"{path.name}/{DIRECTORY_OF_SHARDS} is missing"
    return next((fault for name in [*names, *_due(state, folder)] if (fault := _file_fault(folder / name))), None)


def _due(state: dict[str, Any], folder: Path) -> list[str]:
    """The files that must stand beside the others: random states of all processes, shards of the weights."""
    own = _own(state.get("stateful_callbacks", {}))
    due = list(own["attributes"].get("random_states", ())) if own else []
    for index in folder.glob("*.index.json"):
        listed = _json(index)
        due += sorted(set(listed["weight_map"].values())) if isinstance(listed, dict) else [index.name]
    return due


def _file_fault(path: Path) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.suffix == ".safetensors":
        try:
            read_headers([str(path)])
        except CheckpointError:
            return f"{path.name} is incomplete"
    if TORCH.fullmatch(path.name) and not zipfile.is_zipfile(path):  # its directory stands at its end
        return f"{path.name} is incomplete"
    if path.name.endswith(".index.json") and _json(path) is None:
        return f"{path.name} is incomplete"
    return None


def _json(path: Path) -> Any:
    """The content of a JSON file; None where it is missing or cut short."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
