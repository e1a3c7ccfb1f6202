"""The loader: `from_pretrained` finds it in the quantizer registry and it rebuilds the skeleton before weights load.

`register_quantizer` is the public door of transformers for checkpoints whose modules are not the stock ones. Nothing is
quantized behind it: once the weights are in, the model is an ordinary one, so that half, float, Trainer and
save_pretrained behave. All that depends on how transformers loads is in this file.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import CheckpointError, invalid
from ..layout import METHOD, Form, Layout
from ..record import set_layout
from ..surgery import swap
from .checkpoint import (
    BOOKKEEPING,
    Stored,
    broken,
    check_declared,
    check_kinds,
    check_values,
    read_headers,
    read_tensors,
)
from .skeleton import build, renamed, with_cost

T = TypeVar("T")
Rename = Callable[[str], tuple[str, bool]]


class DendriticLayoutConfig(QuantizationConfigMixin):
    """A layout as `from_pretrained` carries it from config.json to the loader."""

    def __init__(self, layout: Layout) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.layout = layout

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Raises `CheckpointError` for anything that `Layout.to_dict` would not have written."""
        config = cls(Layout.from_dict(config_dict))
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        return self.layout.to_dict()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()


class DendriticLoader(HfQuantizer):
    """Rebuilds injected and packed models. Its hooks take `*args, **kwargs`, since transformers adds to them."""

    requires_calibration = True
    is_trainable = True  # type: ignore[assignment]
    is_qat_trainable = True  # type: ignore[assignment]
    is_compileable = True  # type: ignore[assignment]

    def __init__(self, quantization_config: DendriticLayoutConfig, **kwargs: Any) -> None:
        if not kwargs.get("pre_quantized", True):
            remedy = "Load it without quantization_config, then call inject_(model, config) or use DendriticCallback."
            raise invalid("quantization_config", METHOD, "a dense checkpoint cannot be pruned while it loads", remedy)
        super().__init__(quantization_config, **kwargs)
        self.recorded = self.layout = quantization_config.layout
        self.expected: dict[str, Tensor] = {}

    def validate_environment(self, *args: Any, weights_only: bool = True, **kwargs: Any) -> None:
        if not weights_only:
            rule = "a compressed checkpoint is never unpickled"
            raise invalid("weights_only", weights_only, rule, "Leave it at True.")

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None, *args: Any) -> torch.dtype | None:
        """No cast makes a mask or an index out of numbers that are none: they stay what they are, and are refused."""
        if dtype is None or not dtype.is_floating_point:
            return None
        return super().get_new_dtype(converter, param, dtype, *args)

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, *args: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        """Swap in the recorded modules, on meta, once the layout and the files have been found sound."""
        with torch.device("cpu"):  # transformers builds under the meta device; what is read here has values
            stored = read_headers(checkpoint_files or ())
            keys = {entry.key for entry in stored}
            self.layout = renamed(self.recorded, lambda name: _resolve(model, name, keys))
            swap(model, build(model, self.layout))
            self.layout = with_cost(model, self.layout, trusted=len(self.layout.modules) == len(self.recorded.modules))
            if checkpoint_files is not None:
                _check_files(model, self.layout, stored)
        self.expected = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}

    def _process_model_after_weight_loading(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """Check what is in memory now (a `state_dict=` comes from no file), then leave an ordinary model behind."""
        check_kinds(self.expected, model.state_dict())
        for name, record in self.layout.modules.items():
            module = model.get_submodule(name)
            tensors = {key: tensor for key, tensor in module.state_dict(keep_vars=True).items() if not tensor.is_meta}
            if "_hf_hook" not in module.__dict__:  # accelerate's dispatch makes new tensors without the mark
                _check_loaded(name, tensors)
            check_values(name, record, {key: tensors[key].cpu() for key in BOOKKEEPING if key in tensors})
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                part.config.__dict__.pop("_is_quantized", None)
        self.remove_quantization_config(model)
        if self.layout.modules:  # else only the head was compressed, and this model is the dense body
            set_layout(model, self.layout)
        return model


def _renames(model: PreTrainedModel, known: Iterable[str]) -> Rename:
    """How transformers renames a key of a file for `model`, and whether the tensor is then made by fusing or splitting.

    Args:
        known: the keys of the model's state dict.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    present = dict.fromkeys(known, True)

    def rename(key: str) -> tuple[str, bool]:
        new, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, present)
        if new not in present and key in present:
            return key, False
        return new, pattern is not None

    return rename


def _resolve(model: PreTrainedModel, name: str, keys: set[str]) -> str | None:
    """The name in `model` of the module that a layout calls `name`; None for a head that `model` does not have.

    Names differ where a base model is loaded from a checkpoint with a head or the other way round, and where another
    version of transformers named modules differently; its renaming rules for keys then tell.
    """
    modules = {known for known, _ in model.named_modules()}
    if name in modules and name:
        return name
    new, fused = _renames(model, (f"{known}.weight" for known in modules))(f"{name}.weight")
    if not fused and new.removesuffix(".weight") in modules:
        return new.removesuffix(".weight")
    body = f"{model.base_model_prefix}."
    headed = any(key.startswith(body) for key in keys)
    if headed and not name.startswith(body) and f"{name}.weight" in keys:
        return None
    raise broken("quantization_config.modules", name, f"is no module of {type(model).__name__}")


def _check_files(model: PreTrainedModel, layout: Layout, stored: list[Stored]) -> None:
    """Hold what the files declare, and the values that steer kernels, against the skeleton."""
    expected = model.state_dict()
    rename = _renames(model, expected)
    found: dict[str, list[Stored]] = defaultdict(list)
    fused = set()
    for entry in stored:
        name, made = rename(entry.key)
        found[name].append(entry)
        fused |= {name} if made else set()
    own = {name: _below(name, expected) for name in layout.modules}
    for name, record in layout.modules.items():
        if isinstance(record, Form) and fused & own[name].keys():
            rule = "the file fuses it with other tensors, whose packed shapes differ"
            raise invalid(f"{name}.weight", "fused", rule, "Save with save_original_format=False.", CheckpointError)
        check_declared(own[name], _below(name, found), fused)
    if type(model).__name__ in (model.config.architectures or ()) and not fused:
        _check_complete(model, expected, found.keys())
    steering = {key: found[key][0] for keys in own.values() for key in keys if key.endswith(BOOKKEEPING)}
    values = read_tensors(steering)
    for name, record in layout.modules.items():
        check_values(name, record, {key.removeprefix(f"{name}."): value for key, value in _below(name, values).items()})


def _check_complete(model: PreTrainedModel, expected: Mapping[str, Tensor], found: Set[str]) -> None:
    """Refuse to leave weights at random where the class is the one that was saved, so that nothing may be missing.

    A buffer alone in its module may be missing: its module makes it, perhaps since a later version of transformers.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    holders = {name.rpartition(".")[0] for name in found}
    optional = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    for name in expected.keys() - found - model.all_tied_weights_keys.keys():
        needed = name in parameters or name.rpartition(".")[0] in holders
        if needed and not any(pattern.search(name) for pattern in optional):
            raise broken(name, "missing", f"must be in the files of a {type(model).__name__}")


def _below(module: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """The entries that belong to one module, by full name."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{module}.")}


def _check_loaded(name: str, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not tensor.__dict__.get("_is_hf_initialized", False):
            raise broken(f"{name}.{key}", "missing", "must be among the tensors that are loaded")


register_quantization_config(METHOD)(DendriticLayoutConfig)
register_quantizer(METHOD)(DendriticLoader)
