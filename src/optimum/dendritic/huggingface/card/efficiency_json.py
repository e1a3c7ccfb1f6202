"""`efficiency.json`: all that is known of a compressed model, for machines; the card shows the same to people.

Its form is `efficiency.schema.json` beside this file, by which whatever is read is checked. What was measured or
scored earlier is read back from it, for the weights that it was measured on and for no others.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from ...efficiency import EfficiencyReport
from ...errors import DendriticError
from ...inspection.density import density
from ...layout.layout import Layout
from ...state import base_of, layout_of
from ...unofficial import commit_of
from .escape import shown
from .provenance import ATTRIBUTE, Facts, facts_of, fingerprint, present
from .schema import first_fault

logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
FILE = "efficiency.json"
LARGEST = 2**24  # bytes of a file that is read


def record_of(
    model: PreTrainedModel, efficiency: Mapping[str, Any] | None, earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `efficiency.json`: plain JSON types; what is unknown is absent.

    Args:
        efficiency: an `EfficiencyReport` as a dict, with the field `dense`, which says what its baseline was.
        earlier: what `recall` found; how a model of the native form was compressed stands nowhere else.
    """
    facts = facts_of(model)
    known = facts.to_dict()
    training = {name: known.pop(name) for name in ("data", "teacher", "hyperparameters", "history") if name in known}
    layout = layout_of(model)
    parts = {
        "compression": earlier.get("compression") if layout is None else _compression(model, layout),
        "efficiency": efficiency,
        "training": training,
    }
    return {
        "format_version": FORMAT_VERSION,
        "model": {"class": type(model).__name__, "weights": fingerprint(model)},
        **known,
        **{name: present(part) for name, part in parts.items() if part},
    }


def report_as_dict(report: EfficiencyReport, dense: str) -> dict[str, Any]:
    """`report` as it is kept; `dense` says what its baseline was."""
    return report.to_dict() | ({} if report.baseline is None else {"dense": dense})


def recall(model: PreTrainedModel, folder: Path, subfolder: str = "") -> dict[str, Any]:
    """The content of an `efficiency.json` that was written for these very weights, in `folder` or where the model was
    loaded from (in a `subfolder` there); empty where there is none. Its facts are recorded on the model, unless it has
    facts already."""
    places: list[tuple[str, str | None]] = [(str(folder), None)]
    if base_of(model) is None and model.name_or_path:  # it was loaded compressed
        places.append((model.name_or_path, commit_of(model.config)))
    weights = fingerprint(model)
    earlier = next((record for place in places if (record := _read(*place, subfolder, weights)) is not None), None)
    if earlier is not None and ATTRIBUTE not in model.__dict__:
        model.__dict__[ATTRIBUTE] = _facts_in(earlier)
    return earlier or {}


def _compression(model: PreTrainedModel, layout: Layout) -> dict[str, Any]:
    compression = {"config": present(layout.config.to_dict()), "packed": layout.packed}
    if layout.config.native and layout.packed:  # its config says what it is, and no longer what it was
        if layout.config.counted != "params" or layout.config.counts_model or not layout.dense_cost:
            return compression
        left = sum(p.numel() for name in layout.modules for p in model.get_submodule(name).parameters())
        return compression | {"removed": 1 - left / layout.dense_cost}
    try:
        found = density(model)
    except DendriticError as error:  # its config does not say what it was
        logger.warning(f"What each layer has lost is not told: {error}")
        return compression
    left, dense = found.target_parameters()
    layers = {
        layer.name: {
            "parameters": layer.parameters,
            "dense_parameters": layer.dense_parameters,
            "kept": layer.share,
            "form": layer.words,
        }
        for layer in found.layers
    }
    groups = {"groups": [asdict(each) for each in found.groups]} if found.groups else {}
    return compression | {"removed": 1 - left / dense, "layers": layers} | groups


def _read(place: str, revision: str | None, subfolder: str, weights: str) -> dict[str, Any] | None:
    """The record in a folder or on the Hub, if it is of these weights; a damaged one is logged and ignored."""
    try:
        file = cached_file(place, FILE, revision=revision, subfolder=subfolder)
        if file is None:
            return None
        if Path(file).stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        record = json.loads(Path(file).read_text(encoding="utf-8"))
    except Exception as error:  # whoever wrote the file, and a Hub that answers strangely, can make it any
        logger.info(f"No {FILE} could be read from {place}: {shown(error)}")
        return None
    fault = first_fault(record)
    if fault is not None:
        logger.info(f"The {FILE} of {place} is not read: it breaks the rule {shown(fault)}")
        return None
    return record if record["model"]["weights"] == weights else None


def _facts_in(record: Mapping[str, Any]) -> Facts:
    """Raises `TypeError` for a record of another form than `record_of` gives it."""
    known = {name: record[name] for name in ("base", "evaluations") if name in record}
    return Facts.from_dict(known | dict(**record.get("training", {})))
