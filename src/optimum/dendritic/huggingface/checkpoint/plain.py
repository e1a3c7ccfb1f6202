"""Compressed models that are not a `PreTrainedModel`, in a folder of two files: tensors and layout. No pickle."""

import copy
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from ...errors import CheckpointError, invalid
from ...layout.layout import LARGEST, Layout
from ...layout.strict_json import bad
from ...state import gates_in, layers_in, layout_of, set_layout
from .build import put_in, with_cost
from .files import replace
from .fitting import fit_, same_names
from .tensors import BOOKKEEPING, check_files, check_kinds, check_mask, check_values, read_headers, sort_by_name

LAYOUT, TENSORS = "dendritic_layout.json", "model.safetensors"


def save(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write an injected or packed module to a folder: its tensors as safetensors, its layout as JSON.

    A `PreTrainedModel` has `save_pretrained`, which writes its config, too.

    Raises:
        DendriticError: the module is neither injected nor packed.
    """
    layout = layout_of(model)
    if layout is None:
        rule = "is neither injected nor packed"
        raise invalid("model", type(model).__name__, rule, "Save its state_dict() as that of any module.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / TENSORS))
    replace(folder / LAYOUT, json.dumps(layout.to_dict(), indent=2) + "\n")


def load(folder: str | os.PathLike[str], dense: nn.Module) -> nn.Module:
    """The module that `save` wrote.

    Args:
        dense: A module of the class and the sizes that the saved one had before it was injected; it is left as it was.

    Returns:
        A new module, on the device and in the mode of `dense`.

    Raises:
        CheckpointError: the files contradict each other or the dense module; nothing of them was run.
        OSError: a file is not there.
    """
    if layout_of(dense) is not None:
        raise invalid("dense", type(dense).__name__, "is injected or packed", "Pass a new module of its class.")
    file, layout = Path(folder) / TENSORS, _layout(Path(folder) / LAYOUT)
    model = copy.deepcopy(dense)
    layout = fit_(model, layout, same_names)
    put_in(model, layout)
    expected = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    found, fused = sort_by_name(read_headers([str(file)]), lambda key: ((key,), False))
    check_files(layout, expected, found, fused)
    layout = with_cost(model, layout, trusted=True)
    try:
        load_model(model, str(file))
    except RuntimeError as error:
        rule = "does not hold the tensors of the module that dendritic_layout.json describes"
        raise invalid("file", file.name, f"{rule} ({error})", "Save it again.", CheckpointError) from error
    check_kinds(expected, model.state_dict())
    _check_loaded(model, layout)
    set_layout(model, layout)
    return model


def _layout(file: Path) -> Layout:
    if file.stat().st_size > LARGEST:
        raise bad(file.name, file.stat().st_size, f"must have at most {LARGEST} bytes")
    try:
        return Layout.from_dict(json.loads(file.read_text("utf-8")))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise bad(file.name, str(error), "must be JSON") from error


@torch.no_grad()
def _check_loaded(model: nn.Module, layout: Layout) -> None:
    for name, record in layout.modules.items():
        module = model.get_submodule(name)
        tensors = module.state_dict(keep_vars=True)
        check_values(name, record, {key: tensors[key].cpu() for key in BOOKKEEPING if key in tensors})
    if not layout.packed:
        for name, gates in gates_in(model, layout, layers_in(model, layout)).items():
            check_mask(name, gates, gates.dendrite_mask, gates.segmented())
