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

from ..efficiency.batch import Batch
from ..errors import invalid
from ..huggingface.checkpoint.auto_class import load
from ..structure.example_inputs import of_length
from ..structure.made_inputs import example_inputs_for, longest_text


def output_folder(path: str | Path) -> Path:
    """The folder of `--output`, created."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise invalid("--output", str(path), f"cannot be created ({error})", "Name another folder.") from error
    return Path(path)


def write_json(args: Namespace, figures: dict[str, Any]) -> None:
    """Write the figures where `--json` asks for them."""
    if args.json is not None:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


def import_modules(names: list[str]) -> None:
    """Import the modules that `--import` names, from the present folder too."""
    sys.path.insert(0, "")  # as for `python -m`
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # the module's own code runs
            remedy = "Name a module of the present folder or of PYTHONPATH that can be imported."
            raise invalid("--import", name, told(error), remedy) from error


def load_model(name: str, args: Namespace, option: str = "MODEL") -> PreTrainedModel:
    """The model of a folder or Hub id, on the device and in the dtype that the arguments ask for.

    Raises:
        DendriticError: it cannot be loaded, or the device does not exist; `option` names the argument.
    """
    try:
        model: Any = load(name, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    except Exception as error:  # the code of the architecture runs, on a config and weights that may be damaged
        remedy = "If the architecture is your own, name the module that registers it: --import my_module."
        if not Path(name).exists():
            rule = f"there is no such folder, and from the Hub it cannot be loaded ({told(error)})"
            raise invalid(option, name, rule, "Name a folder that exists, or an id on the Hub.") from error
        raise invalid(option, name, f"cannot be loaded ({told(error)})", remedy) from error
    remedy = "Name a device that this machine has, such as cpu."
    try:
        device = torch.device(args.device)
        if device.type == "meta":
            raise invalid("--device", args.device, "holds no values, so that nothing can run on it", remedy)
        return model.to(device)
    except (AssertionError, ImportError, RuntimeError) as error:  # torch built without CUDA asserts
        raise invalid("--device", args.device, told(error), remedy) from error


def processor_beside(name: str, args: Namespace) -> Any:
    """The tokenizer, image processor, … that is saved beside a model; None if there is not one."""
    try:
        processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError, ImportError):
        return None
    return processor if knows_words(processor) else None


def knows_words(processor: Any) -> bool:
    """False for a tokenizer that has only special tokens, as transformers makes one if a folder has none."""
    return not isinstance(processor, PreTrainedTokenizerBase) or len(processor) > len(processor.all_special_tokens)


def example_inputs(model: PreTrainedModel, length: int) -> dict[str, Tensor]:
    """One sample; text is repeated or cut to `length` tokens.

    Raises:
        DendriticError: the kind of input is not known, or the model does not take as many tokens.
    """
    inputs = example_inputs_for(model)
    if model.main_input_name != "input_ids":
        return inputs
    most = longest_text(model)
    if most is not None and length > most:
        rule = f"the model takes at most {most} tokens"
        raise invalid("--sequence-length", length, rule, f"Give {most} or fewer.")
    return of_length(inputs, length)


def check_runs(model: PreTrainedModel, inputs: dict[str, Tensor], option: str, name: str) -> None:
    """Refuse a model whose forward fails on `inputs`, before it is measured or compressed."""
    try:
        with torch.no_grad():
            Batch.of(inputs).to(model.device, model.dtype).run(model)
    except Exception as error:  # the model's own code runs, on inputs that may not suit it
        shapes = ", ".join(f"{each} {tuple(tensor.shape)}" for each, tensor in inputs.items())
        remedy = "Name a model that takes them, or call optimum.dendritic from Python with inputs of your own."
        raise invalid(option, name, f"does not run on the inputs {shapes} ({told(error)})", remedy) from error


def told(error: BaseException) -> str:
    """The class and the text of another library's error, without a full stop, to stand in a rule of ours."""
    return f"{type(error).__name__}: {error}".rstrip(": .")
