"""How large a model is: its parameters, and its bytes on disk.

The bytes are those of a real safetensors file, header included, so that the figure is the size of the download and not
`parameters * 4`: index buffers of packed layers count, tied tensors count once.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping

from safetensors.torch import save_file
from torch import Tensor, nn

from .wakeful import wakeful_of


def count_parameters(model: nn.Module) -> int:
    """Elements of the unique parameters; a parameter that two modules share counts once, and one that a model holds
    beside its modules, too."""
    besides = wakeful_of(model)
    return sum(p.numel() for p in model.parameters()) + (0 if besides is None else besides.parameters())


def serialised_bytes(model: nn.Module) -> int:
    """Size in bytes of the model's state dict, and of what it holds besides, as one safetensors file."""
    with tempfile.TemporaryDirectory(prefix="dendritic-") as folder:
        path = os.path.join(folder, "model.safetensors")
        # The metadata that `save_pretrained` writes, so that the header is as long as in the file that users receive.
        besides = wakeful_of(model)
        held = model.state_dict() | ({} if besides is None else besides.tensors())
        save_file(_untied(held), path, metadata={"format": "pt"})
        return os.path.getsize(path)


def largest_header(tensors: Mapping[str, Tensor], indices: Iterable[str] = ()) -> int:
    """The bytes that the header of a safetensors file of these tensors, or of smaller ones, takes at most.

    Args:
        indices: names of vectors and matrices of int64 that are perhaps saved beside them.
    """
    end = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()} | dict.fromkeys(indices, [10**6, 10**6])
    entries = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [end, end]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":"), ensure_ascii=False)
    return 8 + -(-len(text.encode()) // 8) * 8


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without second names of one tensor, and with no two tensors in one storage (safetensors refuses that)."""
    unique: dict[str, Tensor] = {}
    views, storages = set(), set()
    for name, tensor in state.items():
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        view = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() > 0 and view in views:
            continue
        unique[name] = tensor.clone() if storage in storages else tensor.contiguous()
        views.add(view)
        storages.add(storage)
    return unique
