"""What every command begins with: the user's modules, and a model by the Auto class that builds its architecture."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ..huggingface.checkpoint.auto_class import load
from ..structure.example_inputs import example_inputs_for, longest_text, of_length

OWN_ARCHITECTURE = "If the architecture is your own, name the module that registers it: --import my_module"


class Refusal(Exception):
    """A mistake of the user's, told in a sentence and without a traceback."""


def check_json(args: Namespace) -> None:
    """Refuse `--json` before anything is computed that could then not be written."""
    check_folder("--json", args.json)


def check_folder(option: str, file: str | None) -> None:
    """Refuse a file to write whose folder does not exist."""
    if file is not None and not Path(file).absolute().parent.is_dir():
        raise Refusal(f"{option} {file}: its folder does not exist. Create the folder first.")


def write_json(args: Namespace, figures: dict[str, Any]) -> None:
    """Write the figures where `--json` asks for them."""
    if args.json is not None:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


def import_modules(names: list[str]) -> None:
    """Import what `--import` names, from the present folder too."""
    sys.path.insert(0, "")  # as for `python -m`
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Refusal(f"--import {name}: {error}. Name a module of the present folder or of PYTHONPATH.") from error


def load_model(name: str, args: Namespace) -> PreTrainedModel:
    """The model of a folder or Hub id, on the device and in the dtype that the arguments ask for."""
    try:
        model: Any = load(name, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refusal(f"cannot load {name!r}: {error}\n{OWN_ARCHITECTURE}") from error
    try:
        return model.to(torch.device(args.device))
    except (AssertionError, RuntimeError) as error:  # torch built without CUDA asserts
        raise Refusal(f"--device {args.device}: {error}. Name a device that this machine has, such as cpu.") from error


def processor_beside(name: str, args: Namespace) -> Any:
    """The tokenizer, image processor, ... that is kept beside a model; None where there is none."""
    try:
        processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError, ImportError):
        return None
    knows_words = not isinstance(processor, PreTrainedTokenizerBase) or len(processor) > len(
        processor.all_special_tokens
    )
    return processor if knows_words else None


def example_inputs(model: PreTrainedModel, length: int) -> dict[str, Tensor]:
    """One sample; text is repeated or cut to `length` tokens."""
    try:
        inputs = example_inputs_for(model)
    except ValueError as error:
        raise Refusal(f"{error}\nFor such a model call optimum.dendritic from Python.") from error
    if model.main_input_name != "input_ids":
        return inputs
    most = longest_text(model)
    if most is not None and length > most:
        raise Refusal(f"--sequence-length {length}: the model takes at most {most} tokens. Give {most} or fewer.")
    return of_length(inputs, length)
