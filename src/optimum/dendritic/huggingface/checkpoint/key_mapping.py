"""The names that transformers gives to keys in files and to modules in layouts, which differ between its versions."""

from collections.abc import Callable, Iterable, Set
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ...errors import CheckpointError, invalid
from .tensors import Rename


def renames(model: PreTrainedModel, known: Iterable[str]) -> Rename:
    """What transformers makes of a key of a file: the keys in `model`, and whether by fusing or splitting tensors.

    Args:
        known: the keys of the model's state dict.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    targets = {source: entry.target_patterns for entry in converters for source in entry.source_patterns}
    present = dict.fromkeys(known, True)

    def rename(key: str) -> tuple[tuple[str, ...], bool]:
        new, source = rename_source_key(key, renamings, converters, model.base_model_prefix, present)
        if new not in present and key in present:
            return (key,), False
        if source is None:
            return (new,), False
        return tuple(new.replace(targets[source][0], target) for target in targets[source]), True

    return rename


def rename_on_load_state_dict(model: PreTrainedModel) -> None:
    """Let `model.load_state_dict` read the names in files, as `from_pretrained` does.

    A Trainer resumes and restores its best model by `load_state_dict`, which skips every tensor whose name in the file
    differs (all of ViT's encoder) with only a warning, masks and scores included (transformers issue 43701).
    """
    model.register_load_state_dict_pre_hook(_rename_keys)


def _rename_keys(model: PreTrainedModel, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
    rename = renames(model, model.state_dict())
    for key in [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]:
        names, made = rename(key)
        if names != (key,) and not made:
            state_dict[prefix + names[0]] = state_dict.pop(prefix + key)


def resolver(model: PreTrainedModel, keys: Set[str]) -> Callable[[str], str | None]:
    """How modules that a layout names are called in `model`; None for one that `model` does not have: another head, or
    the pooler that its task does without. transformers reports their tensors as unexpected, as of a dense checkpoint.

    Names differ where a base model is loaded from a checkpoint with a head or the other way round, and where another
    version of transformers named modules differently; its renaming rules for keys then tell. Where they do not, tensors
    of the body are missing, which `check_complete` refuses.

    Args:
        keys: of the tensors in the files, which tell a module of the saved model from a name that means nothing.
    """
    modules = {name for name, _ in model.named_modules() if name}
    rename = renames(model, (f"{name}.weight" for name in modules))

    def is_block(name: str) -> bool:
        """Whether a module that is not there would stand in a list of blocks, which has fewer of them."""
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return isinstance(model.get_submodule(name), nn.ModuleList)

    prefix = f"{model.base_model_prefix}."

    def resolve(name: str) -> str | None:
        if name in modules:
            return name
        (new, *_), fused = rename(f"{name}.weight")
        if not fused and new.removesuffix(".weight") in modules:
            return new.removesuffix(".weight")
        places = (new.removesuffix(".weight"), name.removeprefix(prefix), prefix + name)
        if not any(map(is_block, places)) and any(key.startswith(f"{name}.") for key in keys):
            return None
        rule, saved_as = f"is not a module of {type(model).__name__}", model.config.architectures
        remedy = f"Load it as {saved_as}, with at least the version of transformers that saved it."
        raise invalid("quantization_config.modules", name, rule, remedy, CheckpointError)

    return resolve


def tied_keys(model: PreTrainedModel) -> set[str]:
    """Names of tensors that files leave out, since they are those of other modules."""
    return set(model.all_tied_weights_keys)
