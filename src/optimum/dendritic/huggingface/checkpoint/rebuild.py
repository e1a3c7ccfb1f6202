"""What the loader does with a model: the recorded modules go in before its weights load, and are checked after it."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from ...errors import CheckpointError, invalid
from ...layout.layout import Layout
from ...layout.strict_json import bad
from ...state import gates_in, layers_in, layout_of, set_layout
from ...unofficial import forget_quantized_, is_dispatched, is_loaded
from .build import put_in, with_cost
from .complete import check_complete, check_config
from .fitting import fit_
from .key_mapping import renames, resolver, tied_keys
from .new_heads import Forms, labelling, put_new_heads_, too_wide, without
from .tensors import (
    BOOKKEEPING,
    FACTORS,
    check_files,
    check_kinds,
    check_mask,
    check_values,
    read_headers,
    sort_by_name,
)


def put_in_recorded(
    model: PreTrainedModel, recorded: Layout, checkpoint_files: Sequence[str] | None
) -> tuple[Layout, Forms, dict[str, Tensor]]:
    """Swap in the recorded modules, on meta, once the layout and the files have been found sound.

    Returns:
        The layout in the names of this model; records of the layers of a new head, whose tensors are not those of the
        files; and the tensors that its state dict has to come to, on meta.

    Raises:
        CheckpointError: the files are not those that the layout describes, or do not belong to this model.
    """
    check_config(model.config)
    with torch.device("cpu"):  # transformers builds under the meta device; what is read here has values
        stored = read_headers(checkpoint_files or ())
        keys = {entry.key for entry in stored}
        layout = fit_(model, recorded, lambda model: resolver(model, keys))
        labels = labelling(model, layout)
        fitting = without(layout, too_wide(layout, labels))
        put_in(model, fitting)
        heads = put_new_heads_(model, fitting, labels)
        layout = without(layout, heads)
        expected = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
        if checkpoint_files is not None:
            found, fused = sort_by_name(stored, renames(model, expected))
            check_files(layout, expected, found, fused, tied_keys(model))
            check_complete(model, expected, found.keys() | fused)
            _check_sortable(entry.key for entry in stored)
        # last: its costs are computed from masks as large as the layout says, which the files now bear out
        same = not layout.config.counts_model or type(model).__name__ in (model.config.architectures or ())
        whole = same and len(layout.modules) == len(recorded.modules)
        layout = with_cost(model, layout, trusted=whole, tied=tied_keys(model))
    return layout, heads, expected


def check_loaded(model: PreTrainedModel, layout: Layout, expected: Mapping[str, Tensor]) -> None:
    """Check the tensors in memory, since those of `state_dict=` are in no file.

    Raises:
        CheckpointError: one is missing, of another kind, or has values that no model of ours has.
    """
    check_kinds(expected, model.state_dict())
    for name in (f"{each}.{factor}" for each in layout.factored for factor in FACTORS):
        if name not in layout.modules and not is_dispatched(module := model.get_submodule(name)):
            _check_loaded(name, module.state_dict(keep_vars=True))
    for name, record in layout.modules.items():
        module = model.get_submodule(name)
        tensors = {key: tensor for key, tensor in module.state_dict(keep_vars=True).items() if not tensor.is_meta}
        if not is_dispatched(module):  # accelerate's dispatch makes new tensors without the mark
            _check_loaded(name, tensors)
        check_values(name, record, {key: tensors[key].cpu() for key in BOOKKEEPING if key in tensors})
    if layout.modules and not layout.packed:
        for name, gates in gates_in(model, layout, layers_in(model, layout)).items():
            check_mask(name, gates, gates.dendrite_mask, gates.segmented())


def make_ordinary(model: PreTrainedModel, layout: Layout, heads: Forms) -> None:
    """Leave a model that saves, converts and trains like any other, with its layout on it, new heads included."""
    for name in layout.modules:
        _copy_empty_(model.get_submodule(name))
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            forget_quantized_(part.config)
    if layout.modules:  # else only the head was compressed, and this model is the dense body
        set_layout(model, dataclasses.replace(layout, modules={**layout.modules, **heads}))


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


def _copy_empty_(module: nn.Module) -> None:
    """Copy empty tensors: in a mapped file they have the address of the next tensor, and `torch.save` refuses two
    dtypes at one address."""
    for tensor in module.state_dict(keep_vars=True).values():
        if not tensor.is_meta and not tensor.numel():
            tensor.data = tensor.data.clone()
