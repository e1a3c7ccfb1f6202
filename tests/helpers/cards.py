"""A small model with half of it gone, for the tests of its card; and what a file of JSON holds."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from optimum.dendritic import DendriticConfig, compress_, inject_, score_, update_


def tiny_bert(**changes: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=12, **shape | changes))


def pruned(model: PreTrainedModel, pack: bool = True) -> PreTrainedModel:
    """Half of it gone, without a Trainer."""
    inject_(model, DendriticConfig(sparsity=0.5, segment_size=8, importance="magnitude"))
    score_(model)
    update_(model, 0.5)
    return compress_(model) if pack else model


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, *path, key)
