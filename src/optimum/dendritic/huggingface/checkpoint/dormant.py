"""What is dormant in a packed model, in a file of its own beside the core's: `dormant.safetensors`.

The core loads without it. A tensor of the awake model that has just what the core has on a grid is stored without that:
as the entries off the grid, in their order, beside the entries of the core along each axis, `name#0`, `name#1`, ….
Others are stored whole; those that are the core's are not stored. The layout of the awake model is in the header.
"""

import copy
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...efficiency.wakeful import wakeful_of
from ...errors import invalid
from ...functional.dormant import LEVELS, inside
from ...layout.layout import LARGEST, Layout
from ...layout.records import Record
from ...layout.strict_json import bad, only
from ...nn.dormant import Dormant, dormant_of, holds
from ...nn.waking import attach_
from ...process_state import alone
from ...state import layout_of, set_layout
from .build import put_in
from .dormant_tensors import fill_
from .fitting import fit_, same_names
from .tensors import BOOKKEEPING, FLOATING, NAMES, check_values, read_headers

FILE, KEY, VERSION = "dormant.safetensors", "dendritic_dormant", 1
FIELDS = {"version", "layout", "segment_size", "core", "dtype"}
MARGINS, NORMS = "#margins", "#norms"


def save_dormant(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write what is dormant in a packed model beside the core, which `save_pretrained` writes.

    Returns:
        The path of the file.

    Raises:
        DendriticError: nothing is dormant, or the model is not a `PreTrainedModel`.
    """
    dormant, model = dormant_of(model), _pretrained(model)
    core, layout, tensors = model.state_dict(), layout_of(dormant.awake), dict[str, Tensor]()
    assert layout is not None
    seen, used = set[int](), []
    for name, tensor in dormant.own().items():
        if id(tensor) in seen:
            continue  # a tied one
        seen.add(id(tensor))
        tensor, grid = tensor.detach(), dormant.grids.get(name)
        if grid is not None and name in core and holds(core[name], tensor, grid):
            used.append(name)
            tensors |= {f"{name}#{axis}": entries.contiguous() for axis, entries in enumerate(grid)}
            tensor = tensor[~inside(tensor.shape, grid).to(tensor.device)]
        tensors[name] = tensor.contiguous().clone()
    if dormant.margins is not None:
        tensors[MARGINS] = dormant.margins
    for name, each in dormant.norms.items():
        tensors |= {f"{name}{NORMS}{pack}": values for pack, values in enumerate(each)}
    fields = {
        "version": VERSION,
        "layout": layout.to_dict(),
        "segment_size": dormant.segment_size,
        "core": _digest(core, used),
        "dtype": str(model.dtype),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{FILE}.{os.getpid()}.tmp"
    try:
        save_file(tensors, beside, metadata={KEY: json.dumps(fields)})
        beside.replace(folder / FILE)
    finally:
        beside.unlink(missing_ok=True)
    return folder / FILE


def load_dormant_(
    model: nn.Module,
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> nn.Module:
    """Give a packed model, as `from_pretrained` loaded it, what is dormant in it; it sleeps until a rate is set.

    Args:
        model: the core.
        source: the folder or the id on the Hub that it was loaded from.
        revision: the branch, tag or commit on the Hub.
        token: the token to read with.

    Returns:
        `model`.

    Raises:
        DendriticError: the model is not packed, or has something dormant already.
        CheckpointError: the file contradicts itself or the core; nothing of it was run.
        OSError: there is no such file.
    """
    model = _pretrained(model)
    present = layout_of(model)
    if present is None or not present.packed or wakeful_of(model) is not None:
        rule = "is not a packed model" if wakeful_of(model) is None else "has something dormant already"
        raise invalid("model", type(model).__name__, rule, "Load it with from_pretrained, and call this once.")
    path = Path(source) / FILE
    if not Path(source).is_dir():
        path = Path(hf_hub_download(str(source), FILE, revision=revision, token=token))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    stored = {entry.key: entry for entry in read_headers([str(path)])}
    for key, entry in stored.items():
        if entry.dtype not in (*FLOATING, *NAMES.values()):
            raise bad(key, entry.dtype, "must be a tensor of numbers, indices or a mask")
    fields = _fields(path)
    layout = Layout.from_dict(fields["layout"])
    if not layout.packed:
        raise bad("layout", "injected", "must be that of a packed model")
    awake = _skeleton(model, layout)
    tensors = load_file(path)
    grids = fill_(awake, model, tensors)
    if fields["dtype"] == str(model.dtype) and fields["core"] != _digest(model.state_dict(), list(grids)):
        raise bad(FILE, fields["core"][:12], "belongs to another core: the model was trained or replaced since")
    for name, record in layout.modules.items():
        _check(name, record, awake.get_submodule(name))
    dormant = Dormant(awake, grids, fields["segment_size"])
    dormant.margins, dormant.norms = _calibration(tensors)
    set_layout(awake, layout)
    attach_(model, dormant)
    return model


def _pretrained(model: nn.Module) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        rule = "only a PreTrainedModel has the config that the awake model is built from"
        raise invalid("model", type(model).__name__, rule, "Keep it in memory, or pack it without dormant.")
    return model


def _fields(path: Path) -> dict[str, Any]:
    with safe_open(str(path), framework="pt") as opened:
        text = (opened.metadata() or {}).get(KEY, "")
    if len(text) > LARGEST:
        raise bad(KEY, f"{len(text)} characters", f"must be at most {LARGEST}")
    try:
        fields = only(json.loads(text), FIELDS, KEY)
    except (ValueError, RecursionError) as error:
        raise bad(KEY, text[:100], f"must be a JSON object with the fields {', '.join(sorted(FIELDS))}") from error
    if fields["version"] != VERSION or type(fields["segment_size"]) is not int or fields["segment_size"] < 1:
        raise bad(KEY, fields["version"], f"must have version {VERSION} and a segment_size of at least 1")
    if not isinstance(fields["core"], str) or not isinstance(fields["dtype"], str):
        raise bad(KEY, fields["core"], "must have a digest and a dtype")
    return fields


def _skeleton(model: PreTrainedModel, layout: Layout) -> PreTrainedModel:
    """The awake model on the meta device, as its layout records it."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    with alone(), torch.device("meta"):
        awake = type(model)(config)
    put_in(awake, fit_(awake, layout, same_names))
    return awake


def _check(name: str, record: Record, module: nn.Module) -> None:
    state = module.state_dict()
    check_values(name, record, {key: state[key].cpu() for key in BOOKKEEPING if key in state})


def _calibration(tensors: Mapping[str, Tensor]) -> tuple[Tensor | None, dict[str, list[Tensor]]]:
    norms: dict[str, list[Tensor]] = {}
    for key in sorted(key for key in tensors if NORMS in key or key == MARGINS):
        values = tensors[key]
        if values.shape != (LEVELS,) or not values.is_floating_point() or not bool((values.diff() >= 0).all()):
            raise bad(key, tuple(values.shape), f"must be {LEVELS} quantiles that ascend")
        if key != MARGINS:
            norms.setdefault(key.rpartition(NORMS)[0], []).append(values)
    return tensors.get(MARGINS), norms


def _digest(core: Mapping[str, Tensor], names: list[str]) -> str:
    """A digest of what is taken from the core."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(core[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
