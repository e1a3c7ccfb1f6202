"""Finding the newest checkpoint that is complete.

The Trainer writes a checkpoint in place, file by file: weights, optimizer, scheduler, random states and, last of its
process, `trainer_state.json`; then it deletes older checkpoints. `resume_from_checkpoint=True` takes the newest folder,
also one that was being written when the process was killed, and fails on it. `last_checkpoint` takes the newest
complete one.
"""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

from ...errors import CheckpointError
from ..checkpoint.tensors import read_headers

logger = logging.get_logger(__name__)

STATE = "trainer_state.json"
FOLDER = re.compile(r"checkpoint-(\d+)")
TORCH = re.compile(r"(pytorch_model|adapter_model|optimizer|scheduler|scaler|rng_state|training_args)\S*\.(pt|pth|bin)")
WEIGHTS = re.compile(r"(pytorch_model|model|adapter_model)\S*\.(bin|safetensors)(\.index\.json)?")
OPTIMIZER = re.compile(r"optimizer\.(pt|bin)")
DIRECTORY_OF_SHARDS = ".metadata"  # torch.distributed.checkpoint writes it when all shards are there


def last_checkpoint(output_dir: str | os.PathLike[str] | None) -> str | None:
    """The newest complete checkpoint of a run, to be passed as `trainer.train(resume_from_checkpoint=...)`.

    Every newer one that was cut short is named in a warning, with what it lacks. Nothing is loaded or deleted: files
    are checked by presence, length and structure, which is all that killing a process can damage.

    Args:
        output_dir: the `output_dir` of the `TrainingArguments`; it need not exist.

    Returns:
        The folder of the checkpoint; None if there is not one, which starts the training from the beginning.
    """
    parts = Path(output_dir).iterdir() if output_dir is not None and Path(output_dir).is_dir() else ()
    found = {int(name[1]): path for path in parts if path.is_dir() and (name := FOLDER.fullmatch(path.name))}
    for step in sorted(found, reverse=True):
        fault = _fault(found[step])
        if fault is None:
            return str(found[step])
        logger.warning(f"{found[step]} was cut short and is passed over: {fault}.")
    return None


def random_states(args: TrainingArguments) -> list[str]:
    """The files of random states that the processes of this node write beside a checkpoint, each its own."""
    if args.world_size <= 1:
        return ["rng_state.pth"]
    count = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    return [f"rng_state_{rank}.pth" for rank in range(args.process_index, args.process_index + count)]


def first(saved: Any) -> dict[str, Any] | None:
    """What the Trainer saved of one callback: of the first one, if there are several of its class."""
    return saved[0] if isinstance(saved, list) else saved


def _fault(folder: Path) -> str | None:
    """What a checkpoint lacks or which of its files is incomplete; None for a complete one."""
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
    notes = [first(saved) or {} for saved in state.get("stateful_callbacks", {}).values()]
    due = [name for note in notes for name in note.get("attributes", {}).get("random_states", ())]
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
    if TORCH.fullmatch(path.name) and not zipfile.is_zipfile(path):  # the directory of a zip file is at its end
        return f"{path.name} is incomplete"
    if path.name.endswith(".index.json") and _json(path) is None:
        return f"{path.name} is incomplete"
    return None


def _json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
