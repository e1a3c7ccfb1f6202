"""The loader: `from_pretrained` finds it in the quantizer registry and it rebuilds the skeleton before weights load.

`register_quantizer` is the public interface of transformers for checkpoints whose modules are not the stock ones.
Nothing is quantized: once the weights are in, the model is an ordinary one, so that half, float, Trainer and
save_pretrained behave. All that depends on how transformers loads is in this file and in `key_mapping`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...errors import CheckpointError, invalid
from ...layout.layout import METHOD, METHODS, Layout
from ...layout.strict_json import bad
from ...state import gates_in, layers_in, layout_of, set_layout
from ...unofficial import forget_quantized_, is_dispatched, is_loaded
from .build import put_in, renamed, with_cost
from .complete import check_complete, check_config
from .key_mapping import renames, resolver, tied_keys
from .tensors import BOOKKEEPING, check_files, check_kinds, check_mask, check_values, read_headers, sort_by_name


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
        """The dtype to load as, which is none for masks and indices: a cast could make a valid one of other numbers."""
        if dtype is None or not dtype.is_floating_point:
            return None
        return super().get_new_dtype(converter, param, dtype, *args)

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, *args: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        """Swap in the recorded modules, on meta, once the layout and the files have been found sound."""
        check_config(model.config)
        with torch.device("cpu"):  # transformers builds under the meta device; what is read here has values
            stored = read_headers(checkpoint_files or ())
            self.layout = renamed(self.recorded, resolver(model, {entry.key for entry in stored}))
            put_in(model, self.layout)
            self.expected = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
            if checkpoint_files is not None:
                found, fused = sort_by_name(stored, renames(model, self.expected))
                check_files(self.layout, self.expected, found, fused, tied_keys(model))
                check_complete(model, self.expected, found.keys() | fused)
                _check_sortable(entry.key for entry in stored)
            # last: its costs are computed from masks as large as the layout says, which the files now bear out
            whole = len(self.layout.modules) == len(self.recorded.modules)
            self.layout = with_cost(model, self.layout, trusted=whole, tied=tied_keys(model))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """Check the tensors in memory, since those of `state_dict=` are in no file, and leave an ordinary model."""
        check_kinds(self.expected, model.state_dict())
        for name, record in self.layout.modules.items():
            module = model.get_submodule(name)
            tensors = {key: tensor for key, tensor in module.state_dict(keep_vars=True).items() if not tensor.is_meta}
            if not is_dispatched(module):  # accelerate's dispatch makes new tensors without the mark
                _check_loaded(name, tensors)
            check_values(name, record, {key: tensors[key].cpu() for key in BOOKKEEPING if key in tensors})
            _copy_empty(tensors)
        if self.layout.modules and not self.layout.packed:
            for name, gates in gates_in(model, self.layout, layers_in(model, self.layout)).items():
                check_mask(name, gates, gates.dendrite_mask, gates.segmented())
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                forget_quantized_(part.config)
        self.remove_quantization_config(model)
        if self.layout.modules:  # else only the head was compressed, and this model is the dense body
            set_layout(model, self.layout)
        return model


def check_saved(model: PreTrainedModel, folder: Path) -> None:
    """Check the files that `model` was saved as by the loader's rules.

    The files of a stock model, and of one of native form, are not checked, because the loader does not read them.

    Raises:
        CheckpointError: `from_pretrained` would refuse the folder.
    """
    layout = layout_of(model)
    if layout is not None and not (layout.packed and layout.config.native):
        expected = model.state_dict()
        stored = read_headers(str(file) for file in sorted(folder.glob("model*.safetensors")))
        found, fused = sort_by_name(stored, renames(model, expected))
        check_files(layout, expected, found, fused, tied_keys(model))


def _check_sortable(keys: Iterable[str]) -> None:
    """Refuse keys that early versions of transformers 5 cannot sort: they compare the parts `0` and `dendrite_gate`."""
    try:
        sorted(keys, key=dot_natural_key)
    except TypeError as error:
        rule = "cannot load a checkpoint from the middle of a native compression"
        remedy = "Upgrade transformers, or resume the training in a Trainer."
        raise invalid("transformers", transformers.__version__, rule, remedy, CheckpointError) from error


def _check_loaded(name: str, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not is_loaded(tensor):
            raise bad(f"{name}.{key}", "missing", "must be among the tensors that are loaded")


def _copy_empty(tensors: Mapping[str, Tensor]) -> None:
    """Copy empty tensors: in a mapped file they have the address of the next tensor, and `torch.save` refuses two
    dtypes at one address."""
    for tensor in tensors.values():
        if not tensor.numel():
            tensor.data = tensor.data.clone()


for method in METHODS:
    register_quantization_config(method)(DendriticLayoutConfig)
    register_quantizer(method)(DendriticLoader)
