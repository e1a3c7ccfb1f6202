"""Finding the newest checkpoint that is complete.

The Trainer writes a checkpoint in place, file by file: weights, optimizer, scheduler, random states and, last of its
process, `trainer_state.json`; then it deletes older checkpoints. `resume_from_checkpoint=True` takes the newest folder,
also one that was being written when the process died, and fails on it. `last_checkpoint` takes the newest whole one.

`DendriticCallback` writes checksums beside what a checkpoint is resumed from. They tell of flipped bits and of tails of
zeros, which a machine that lost its power leaves in files of the right length.
"""

import hashlib
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

from ...errors import CheckpointError, invalid
from ..checkpoint.files import replace
from ..checkpoint.tensors import read_headers

logger = logging.get_logger(__name__)

STATE = "trainer_state.json"
FOLDER = re.compile(r"checkpoint-(\d+)")
TORCH = re.compile(r"(pytorch_model|adapter_model|optimizer|scheduler|scaler|rng_state|training_args)\S*\.(pt|pth|bin)")
WEIGHTS = re.compile(r"(pytorch_model|model|adapter_model)\S*\.(bin|safetensors)(\.index\.json)?")
OPTIMIZER = re.compile(r"optimizer\.(pt|bin)")
SHARDS = re.compile(r"(pytorch_model_fsdp|optimizer)_\d+|global_step\d+")  # folders, of FSDP and DeepSpeed
CHECKSUMS = "checksums.json"
SUMMED = re.compile(rf"{WEIGHTS.pattern}|{OPTIMIZER.pattern}|scheduler\.pt|config\.json")
DIRECTORY_OF_SHARDS = ".metadata"  # torch.distributed.checkpoint writes it when all shards are there


def last_checkpoint(output_dir: str | os.PathLike[str] | None) -> str | None:
    """The newest complete checkpoint of a run, to be passed as `trainer.train(resume_from_checkpoint=...)`.

    Every newer one that was cut short is named in a warning, with what it lacks. Nothing is loaded or deleted: files
    are checked by presence, length and structure, and by their checksums where those were written.

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


def write_checksums(folder: Path) -> None:
    """Put the SHA-256 of the weights, of the optimizer's and scheduler's state and of the config beside them."""
    sums = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if _is_summed(path)}
    replace(folder / CHECKSUMS, json.dumps({"sha256": sums}, indent=2) + "\n")


def check_checksums(folder: Path) -> None:
    """Raises `CheckpointError` where a file is not what it was when the checkpoint was written."""
    fault = _checksum_fault(folder)
    if fault is not None:
        remedy = "Resume from last_checkpoint(output_dir), which passes it over."
        raise invalid("resume_from_checkpoint", folder.name, f"is damaged: {fault}", remedy, CheckpointError)


def _fault(folder: Path) -> str | None:
    """What a checkpoint lacks or where it is broken, None for a complete one."""
    try:
        return _fault_of(folder)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:  # JSON of another form than it should be
        return f"its files contradict each other ({type(error).__name__})"


def _fault_of(folder: Path) -> str | None:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    state = _json(folder / STATE)
    if not _is_state(state):
        return f"{STATE}, which is written last, is {'incomplete' if STATE in names else 'missing'}"
    folders = [path for path in folder.iterdir() if path.is_dir()]
    for path in folders:
        if path.suffix in (".json", ".safetensors", ".pt", ".pth", ".bin"):
            return f"{path.name} is a folder"
    sharded = [path for path in folders if SHARDS.fullmatch(path.name)]
    if not sharded:
        if not any(WEIGHTS.fullmatch(name) for name in names):
            return "its weights are missing"
        if not any(OPTIMIZER.fullmatch(name) for name in names) or "scheduler.pt" not in names:
            return "the state of its optimizer or scheduler is missing (so it is with save_only_model=True)"
    for path in sharded:
        shards = list(path.glob("*.distcp"))
        if shards and not (path / DIRECTORY_OF_SHARDS).exists():
            return f"{path.name}/{DIRECTORY_OF_SHARDS} is missing"
        empty = [each for each in (*shards, *path.glob(DIRECTORY_OF_SHARDS)) if not each.stat().st_size]
        if empty:
            return f"{path.name}/{empty[0].name} is empty"
    structure = (fault for name in [*names, *_required(state, folder)] if (fault := _file_fault(folder / name)))
    return next(structure, None) or _checksum_fault(folder)


def _is_state(state: Any) -> bool:
    """Whether a JSON value has what a Trainer reads when it resumes."""
    if not isinstance(state, dict):
        return False
    kinds = {"global_step": int, "max_steps": int, "log_history": list, "stateful_callbacks": dict}
    return all(isinstance(state.get(name), kind) for name, kind in kinds.items())


def _is_summed(path: Path) -> bool:
    return path.is_file() and SUMMED.fullmatch(path.name) is not None


def _checksum_fault(folder: Path) -> str | None:
    """The file that is not what it was when the checksums were written; None without checksums, too."""
    path = folder / CHECKSUMS
    if not path.exists():
        return None
    content = _json(path)
    sums = content.get("sha256") if isinstance(content, dict) else None
    if not isinstance(sums, dict):
        return f"{CHECKSUMS} is incomplete"
    for name, expected in sums.items():
        if not SUMMED.fullmatch(name) or not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != expected:
            return f"{name} is not what was written"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _required(state: dict[str, Any], folder: Path) -> list[str]:
    """The files that must exist beside the others: random states of all processes, shards of the weights."""
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
    if TORCH.fullmatch(path.name) and not _is_whole_zip(path):
        return f"{path.name} is incomplete"
    if path.suffix == ".json" and _json(path) is None:
        return f"{path.name} is incomplete"
    return None


def _is_whole_zip(path: Path) -> bool:
    """Whether the directory at its end is there, and what it lists has the checksums that stand there."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError):
        return False


def _json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
