"""`save_sizes`: a checkpoint of several sizes becomes a folder for each, with a card of its own."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...state import injected_layout
from ..checkpoint.save import save
from ..checkpoint.sizes import check_can_be_cut, cut_, load_sizes, subfolder_in
from .efficiency_json import recall
from .provenance import ATTRIBUTE, CONTROL, facts_of, fingerprint, transfer_scores
from .write import write_card


def save_sizes(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    sparsities: Collection[float] | None = None,
    evaluate: Callable[[PreTrainedModel], Mapping[str, float]] | None = None,
    processor: Any = None,
    batches: Any = None,
    example_inputs: Any = None,
    measuring: Mapping[str, Any] | bool = True,
    license: str | None = None,
    base_model: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> dict[float, Path]:
    """Cut every size out of a checkpoint of several, and save each, packed, with its own card and `efficiency.json`.

    Args:
        path: the output folder of a training, the folder `sizes` in it, or an id on the Hub that has either.
        folder: where `sparsity-0.5`, `sparsity-0.8`, … are written, each a folder that `from_pretrained` loads.
        sparsities: those of the sizes. Default: those that were trained.
        evaluate: scores of a packed model, for its card: such as `lambda model: make_trainer(model).evaluate()`.
        processor: tokenizer, image processor, … to save beside each: anything with `save_pretrained`.
        batches: as those of `load_at`.
        example_inputs: keyword arguments of `model.forward`, with which each is packed and measured.
        measuring: options of `measure` for the cards; False measures nothing.
        license: of the models, as the Hub calls it.
        base_model: the id on the Hub of the model that they were made from.
        dtype: as that of `from_pretrained`.
        trust_remote_code: as that of `from_pretrained`.

    Returns:
        The folder of each size, by its sparsity.

    Raises:
        DendriticError: the checkpoint is of one size, or cannot be cut to one of the sparsities; nothing is written.
        OSError: it is not there.
    """
    loading: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    model = load_sizes(path, **loading)
    config = injected_layout(model).config
    assert config.removed is not None
    trained = (config.removed, *config.sizes)
    chosen = trained if sparsities is None else tuple(sparsities)
    check_can_be_cut(model, chosen)
    recall(model, Path(path), subfolder_in(os.fspath(path)))
    made = {sparsity: Path(folder) / f"sparsity-{sparsity:g}" for sparsity in chosen}
    for sparsity, place in made.items():
        small = cut_(load_sizes(path, **loading), sparsity, batches=batches, example_inputs=example_inputs)
        _inherit(small, model, trained, largest=sparsity == config.removed)
        save(small, place, processor=processor)
        told: dict[str, Any] = {"license": license, "base_model": base_model, "measuring": measuring}
        told["metrics"] = None if evaluate is None else evaluate(small)
        write_card(small, place, example_inputs=example_inputs, **told)
    return made


def _inherit(small: PreTrainedModel, model: PreTrainedModel, trained: Collection[float], *, largest: bool) -> None:
    """Let a size know what is known of the training of all; scores are those of the largest."""
    facts = facts_of(model)
    sizes = ", ".join(f"{sparsity:g}" for sparsity in trained)
    known = replace(facts, hyperparameters=facts.hyperparameters | ({"sizes": sizes} if facts.hyperparameters else {}))
    if not largest:
        known.evaluations = [each for each in facts.evaluations if each.weights == CONTROL or each.sparsity == 0]
    small.__dict__[ATTRIBUTE] = known
    if largest:
        transfer_scores(small, fingerprint(model))
