"""Several sizes of one model in one checkpoint: that of the largest, with the scores by which smaller ones are cut."""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import has_file

from ...compress import compress_
from ...config import DendriticConfig
from ...errors import invalid
from ...layout.layout import Layout
from ...nn import Gates
from ...state import gates_in, injected_layout, layers_in, layout_of, set_layout
from ...structure.goal import check_reachable
from ...structure.labelled_batches import as_batches
from ...structure.ranking import Ranking, ranking_of
from ...wake import settle_norms_
from .auto_class import load

logger = logging.get_logger(__name__)
FOLDER = "sizes"  # in the output folder of a training


def save_all(model: PreTrainedModel, folder: str | os.PathLike[str]) -> Path:
    """Write an injected model, from which `load_at` cuts its sizes, to `folder / "sizes"`."""
    path = Path(folder) / FOLDER
    model.save_pretrained(path)
    logger.info(f"{path} has all sizes of {type(model).__name__}: load_at({str(path)!r}, sparsity=...) cuts one out.")
    return path


def load_sizes(path: str | os.PathLike[str], *, dtype: str = "auto", trust_remote_code: bool = False) -> Any:
    """The injected model of all sizes in a folder or on the Hub, or in the subfolder that a training leaves there.

    Raises:
        DendriticError: what is there has one size.
        OSError: nothing is there.
    """
    place = os.fspath(path)
    model = load(place, subfolder=subfolder_in(place), dtype=dtype, trust_remote_code=trust_remote_code)
    layout = layout_of(model)
    if layout is None or layout.packed or not layout.config.sizes:
        rule = "is not a checkpoint of several sizes"
        raise invalid("path", place, rule, "Train one with DendriticConfig(sparsity=(0.5, 0.8)).")
    return model


def subfolder_in(place: str) -> str:
    """Where in a folder or repository the checkpoint of all sizes is."""
    try:
        return FOLDER if has_file(place, f"{FOLDER}/config.json") else ""
    except (HFValidationError, OSError):  # whoever loads it says what is wrong
        return ""


def load_at(
    path: str | os.PathLike[str],
    sparsity: float,
    *,
    batches: Any = None,
    example_inputs: Any = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The packed model of one size, cut out of a checkpoint of several: `DendriticConfig(sparsity=(0.5, 0.8, 0.9))`.

    The masks of all sizes are beginnings of one ranking, so that each is inside of the next larger one (Yu et al. 2019,
    slimmable networks). A size between those that were trained can be cut, too.

    Args:
        path: the output folder of a training, the folder `sizes` in it, or an id on the Hub that has either.
        sparsity: that of the size, from that of the largest one on.
        batches: some batches of training inputs for models with BatchNorm layers, whose statistics are those of the
            largest size until they are taken anew.
        example_inputs: as those of `compress_`.
        dtype: as that of `from_pretrained`.
        trust_remote_code: as that of `from_pretrained`.

    Returns:
        The packed model, in eval mode; it is saved, pushed and exported as any other.

    Raises:
        DendriticError: the checkpoint is not injected, or the sparsity is not one that it can be cut to.
        OSError: it is not there.
    """
    model = load_sizes(path, dtype=dtype, trust_remote_code=trust_remote_code)
    return cut_(model, sparsity, batches=batches, example_inputs=example_inputs)


@torch.no_grad()
def cut_(model: Any, sparsity: float, *, batches: Any = None, example_inputs: Any = None) -> Any:
    """Make a model of several sizes, as `load_sizes` returns it, the packed model of one of them; as `load_at`."""
    layout, gates, ranking = _ranked(model)
    one = _config_at(layout, ranking, sparsity)
    for name, mask in ranking.choose(sparsity).items():
        gates[name].dendrite_mask.copy_(mask)
        gates[name].mask_()
    set_layout(model, replace(layout, config=one))
    compress_(model, example_inputs)
    if batches is not None:
        settle_norms_(model, as_batches(batches))
    return model.eval()


def check_can_be_cut(model: Any, sparsities: Collection[float]) -> None:
    """Raises `DendriticError` for a sparsity that a model of several sizes cannot be cut to."""
    layout, _, ranking = _ranked(model)
    for sparsity in sparsities:
        _config_at(layout, ranking, sparsity)


def _ranked(model: Any) -> tuple[Layout, dict[str, Gates], Ranking]:
    layout = injected_layout(model)
    layers = layers_in(model, layout)
    gates = gates_in(model, layout, layers)
    return layout, gates, ranking_of(model, layout, layers, gates)


def _config_at(layout: Layout, ranking: Ranking, sparsity: float) -> DendriticConfig:
    one = replace(layout.config, sparsity=sparsity, sizes=())  # refuses what is not a fraction
    _check_smaller(layout.config, one)
    check_reachable(ranking, sparsity)
    return one


def _check_smaller(trained: DendriticConfig, one: DendriticConfig) -> None:
    if trained.removed is None or one.removed is None or one.removed < trained.removed:
        rule = f"is below that of the largest size, {trained.sparsity}, of which nothing more is left"
        raise invalid("sparsity", one.sparsity, rule, f"The sizes trained are {[trained.sparsity, *trained.sizes]}.")
