"""The config of a model that `export_vllm` wrote; this file lies beside it, and needs nothing but `transformers`."""

from typing import Any

from transformers import PretrainedConfig


class Numbers(dict[str, Any]):
    """A dictionary whose entries are attributes, too, as the readers of `block_configs` expect."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class DeciConfig(PretrainedConfig):
    """The fields of a `LlamaConfig`, and in each block its own numbers.

    Attributes:
        block_configs: For each block `attention` (`no_op`, `n_heads_in_group`) and `ffn` (`no_op`,
            `intermediate_size`).
    """

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [
            Numbers({part: Numbers(numbers) for part, numbers in block.items()}) for block in block_configs or ()
        ]
