"""The loader: `from_pretrained` finds it in the quantizer registry and it rebuilds the skeleton before weights load.

`register_quantizer` is the public interface of transformers for checkpoints whose modules are not the stock ones.
Nothing is quantized: once the weights are in, the model is an ordinary one, so that half, float, Trainer and
save_pretrained behave. What it does with a model is in `rebuild`, which is imported when there is one, because
transformers reads its registry before it has defined models.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...errors import invalid
from ...layout.layout import METHOD, METHODS, Layout
from ...layout.records import Form


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
        self.heads: dict[str, Form] = {}
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
        self, model: Any, *args: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        """Swap in the recorded modules, on meta, once the layout and the files have been found sound."""
        from .rebuild import put_in_recorded

        self.layout, self.heads, self.expected = put_in_recorded(model, self.recorded, checkpoint_files)

    def _process_model_after_weight_loading(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Check the tensors in memory, since those of `state_dict=` are in no file, and leave an ordinary model."""
        from .rebuild import check_loaded, make_ordinary

        check_loaded(model, self.layout, self.expected)
        self.remove_quantization_config(model)
        make_ordinary(model, self.layout, self.heads)
        return model


for method in METHODS:
    register_quantization_config(method)(DendriticLayoutConfig)
    register_quantizer(method)(DendriticLoader)
