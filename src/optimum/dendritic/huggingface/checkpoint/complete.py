"""The check that no weight is left at random: the files must hold all that the class that was saved has."""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Set

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...errors import DendriticError
from ...layout.layout import LARGEST
from ...layout.strict_json import bad
from ...process_state import alone
from ...unofficial import classes_of, optional_keys
from .auto_class import auto_class_for


def check_config(config: PreTrainedConfig) -> None:
    """Whether config.json is of a size that is looked through, and what it calls the model are words: transformers
    looks them up, and takes nothing else.

    Raises:
        CheckpointError: it is not.
    """
    size = len(json.dumps(config.to_dict(), default=str, skipkeys=True))
    if size > LARGEST:
        raise bad("config.json", f"{size} characters", f"must be at most {LARGEST}")
    if not isinstance(config.model_type, str):
        raise bad("model_type", config.model_type, "must be a word")
    names = config.architectures
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise bad("architectures", names, "must be a list of words")


def check_complete(model: PreTrainedModel, expected: Mapping[str, Tensor], found: Set[str]) -> None:
    """Refuse to leave weights at random. Only what the class that was saved does not have may be new: another head.

    Where no Auto class knows that class, only a part beside the body may be new, and only as a whole. A buffer alone in
    its module may be missing: its module makes it, perhaps since a later version of transformers.

    Args:
        expected: the skeleton's state dict.
        found: the names in the skeleton of all that the files hold.

    Raises:
        CheckpointError: a tensor is missing, or the config does not say which class was saved.
    """
    if not model.config.architectures:
        raise bad("architectures", model.config.architectures, "must name the class that was saved")
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    holders = {name.rpartition(".")[0] for name in found}
    optional = [re.compile(pattern) for pattern in optional_keys(model)]
    missing = [
        name
        for name in sorted(expected.keys() - found - model.all_tied_weights_keys.keys())
        if (name in parameters or name.rpartition(".")[0] in holders)
        and not any(pattern.search(name) for pattern in optional)
    ]
    if missing and type(model).__name__ not in model.config.architectures:
        missing = list(_saved(model, missing, found))
    for name in missing:
        raise bad(name, "missing", f"must be in the files of a {model.config.architectures[0]}")


def _saved(model: PreTrainedModel, missing: list[str], found: Set[str]) -> Iterator[str]:
    """The missing names that the class that was saved has."""
    body, is_body = f"{model.base_model_prefix}.", model.base_model is model
    names = _names_in_saved_class(model)
    for name in missing:
        if names is None:
            beside = not is_body and not name.startswith(body)
            new = beside and not any(_top(known) == _top(name) for known in found)
        else:
            new = not names & {name, body + name, name.removeprefix(body)}
        if not new:
            yield name


def _names_in_saved_class(model: PreTrainedModel) -> Set[str] | None:
    """The names in the state dict of the class that the config names, which is built on the meta device; None where no
    Auto class knows it. Nothing is imported, because the class is one of those that the Auto class has."""
    config = copy.deepcopy(model.config)
    try:
        classes = classes_of(auto_class_for(config), type(config))
    except DendriticError:
        return None
    saved = next((each for each in classes if each.__name__ in (config.architectures or ())), None)
    if saved is None:
        return None
    config.__dict__.pop("quantization_config", None)
    with alone(), torch.device("meta"):
        return saved(config).state_dict().keys()


def _top(name: str) -> str:
    return name.partition(".")[0]
