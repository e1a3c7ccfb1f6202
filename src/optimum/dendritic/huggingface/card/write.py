"""`write_card`: the model card of a compressed model, with its figures and `efficiency.json`, beside its weights.

All that the card says comes from the content of `efficiency.json`, which is put together first: from the layout in the
model's config, from what is known of its training, and from a measurement beside its dense baseline.
"""

import copy
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedModel
from transformers.utils import logging

from ...efficiency import EfficiencyReport
from ...efficiency.conditions import own_version
from ...efficiency.words import in_words
from ...errors import DendriticError, invalid
from ...state import source_named
from ..checkpoint.auto_class import auto_class_for
from ..checkpoint.files import replace
from . import escape, text
from .dense_baseline import measure_beside_dense
from .efficiency_json import FILE, recall, record_of, report_as_dict
from .figures import draw
from .metadata import earlier_metadata, metadata_of, pipeline_of
from .provenance import facts_of, note_control, note_evaluation

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("card.md")
DENSE_BASELINE = (
    "a model of the same class and config with random weights: what a forward pass costs does not depend on them"
)
PROCESSORS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
MOST_LABELS = 20  # that a card lists
GIVEN = "the model that this one was measured beside"


def write_card(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    report: EfficiencyReport | None = None,
    repo_id: str | None = None,
    example_inputs: Any = None,
    metrics: Mapping[str, float] | None = None,
    measuring: Mapping[str, Any] | bool = True,
    baseline_metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> dict[str, Any]:
    """Write `README.md`, `efficiency.json` and `figures/*.png` into a folder that holds the saved model.

    The license, the language and the tags of a card that is there already stay. What is unknown is left out. Figures
    need matplotlib, the extra `plots`.

    Args:
        model: injected, packed or (its card then tells of nothing removed) dense; as it was saved.
        folder: where `model.save_pretrained` wrote it.
        report: what it costs. Default: as an earlier `efficiency.json` of these very weights has it, else measured now
            beside the dense baseline.
        repo_id: under which the card will stand on the Hub.
        example_inputs: to measure with; default: one sample made from the model's config.
        metrics: scores of these weights, beside those that `DendriticCallback` saw.
        measuring: options of `measure` with which to measure anew; False measures nothing.
        baseline_metrics: scores of a dense model that was trained as long, on the data that this one is scored on.
        license: of the model, as the Hub calls it. Default: that of an earlier card, else of the base model on the Hub.
        base_model: the id on the Hub of the model that this one was made from, where its folder's name does not say it.

    Returns:
        The content of `efficiency.json`.

    Raises:
        DendriticError: the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise invalid("folder", folder.name, "is not a folder", "Call model.save_pretrained(folder) first.")
    if metrics is not None:
        note_evaluation(model, metrics)
    earlier = recall(model, folder)
    if baseline_metrics is not None:
        note_control(model, baseline_metrics)
    if base_model is not None:
        facts_of(model).base = source_named(base_model)
    efficiency = earlier.get("efficiency")
    if report is not None:
        efficiency = report_as_dict(report, GIVEN)
    elif measuring is not False and (efficiency is None or measuring is not True):
        report = measure_beside_dense(model, example_inputs, **({} if measuring is True else measuring))
        efficiency = efficiency if report is None else report_as_dict(report, DENSE_BASELINE)
    record = record_of(model, efficiency, earlier)
    beside = any(os.path.exists(folder / file) for file in PROCESSORS)
    write_record(model, record, folder, repo_id=repo_id, license=license, has_processor=beside)
    return record


def write_record(
    model: PreTrainedModel,
    record: Mapping[str, Any],
    folder: Path,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    has_processor: bool = False,
) -> None:
    """Write the card, the figures and `efficiency.json` that have this content.

    Args:
        model: of the class and with the labels that the card names; its weights are not looked at.
        record: the content of `efficiency.json`.
        has_processor: whether its tokenizer or image processor lies beside it.
    """
    figures = draw(record)
    paths = {name: path for name, (path, _) in figures.items()}
    card = _card(model, record, paths, folder, repo_id, license, has_processor)
    numbers = json.dumps(record, indent=2, allow_nan=False) + "\n"
    for path, image in figures.values():
        (folder / path).parent.mkdir(exist_ok=True)
        replace(folder / path, image)
    replace(folder / FILE, numbers)
    replace(folder / "README.md", card)


def _card(
    model: PreTrainedModel,
    record: Mapping[str, Any],
    figures: Mapping[str, str],
    folder: Path,
    repo_id: str | None,
    license: str | None,
    has_processor: bool = False,
) -> str:
    title = (repo_id or folder.resolve().name).rpartition("/")[2]
    auto_class = _auto_class(model)
    pipeline_tag = pipeline_of(auto_class)
    metadata = metadata_of(record, name=title, pipeline_tag=pipeline_tag, earlier=earlier_metadata(folder))
    if license is not None:
        metadata.license = license
    filters = {"code": escape.code, "identifier": escape.identifier, "python": escape.python}
    environment = jinja2.Environment(finalize=escape.words)  # whatever is not Markdown is escaped
    environment.filters |= filters
    content = environment.from_string(TEMPLATE.read_text("utf-8")).render(
        card_data=escape.Markdown(metadata.to_yaml()),
        title=title,
        place=repo_id or f"path/to/{title}",
        model_class=type(model).__name__,
        auto_class=auto_class,
        **_code(model),
        pipeline_tag=pipeline_tag,
        has_processor=has_processor,
        labels=_labels(model),
        version=own_version(),
        **_compression(record),
        **_costs(record, repo_id),
        **_scores(record),
        **_training(record),
        **{f"{name}_figure": figures.get(name) for name in ("density", "training", "evaluations")},
    )
    return re.sub(r"\n{3,}", "\n\n", content).rstrip() + "\n"


def _labels(model: PreTrainedModel) -> str | None:
    """The names of the classes, where they have names of their own and are few."""
    names = list((model.config.id2label or {}).values())
    named = [str(name) for name in names if not str(name).startswith("LABEL_")]
    return ", ".join(named) if 0 < len(named) == len(names) <= MOST_LABELS else None


def _compression(record: Mapping[str, Any]) -> dict[str, Any]:
    base = text.source_words(record.get("base"))
    compression = record.get("compression")
    if compression is None:
        return {"compressed": False, "base": base}
    config, layers = compression["config"], compression.get("layers", {})
    return {
        "compressed": True,
        "native": config.get("native", False) and compression["packed"],
        "base": base,
        "packed": compression["packed"],
        "smallest": max([compression["config"].get("sparsity") or 0, *config.get("sizes", ())]),
        "sizes": None if compression["packed"] else text.sizes_words(config),
        "removed": text.percent(compression["removed"]) if "removed" in compression else None,
        "layers": f"its {len(layers)} target layers" if layers else "its target layers",
        "config": text.config_words(config),
        "asked": text.asked_words(config),
        "forms": text.form_counts(layers),
        "gathers": any("gather" in layer["form"] for layer in layers.values()),
    }


def _costs(record: Mapping[str, Any], repo_id: str | None) -> dict[str, Any]:
    report = record.get("efficiency")
    if report is None:
        return {"costs": None}
    return {
        "costs": text.table(text.cost_rows(report)),
        "in_words": escape.Markdown(in_words(report.get("ratios", {}))),
        "dense": report.get("dense"),
        "context": report["context"],
        "shapes": text.shapes_of(report),
        "energy": text.energy_words(report),
        "command": _command(report, repo_id) if report.get("dense") == DENSE_BASELINE and repo_id is not None else None,
    }


def _command(report: Mapping[str, Any], repo_id: str) -> escape.Markdown:
    """The command that repeats the measurement on another machine."""
    context = report["context"]
    text_shape = context["input_shapes"].get("input_ids")
    options = {
        "--threads": context["threads"],
        "--batch-size": text.batches(report)[-1],
        "--sequence-length": None if text_shape is None else text_shape[-1],
    }
    given = " ".join(f"{option} {escape.argument(value)}" for option, value in options.items() if value is not None)
    return escape.Markdown(f"optimum-cli dendritic card {escape.argument(repo_id)} --output card {given}")


def _scores(record: Mapping[str, Any]) -> dict[str, Any]:
    rows, dense = text.score_rows(record), text.dense_evaluation(record)
    return {
        "scores": text.table(rows) if rows else None,
        "intervals": any(" … " in cell for row in rows[1:] for cell in row),
        "dense_scored": dense is not None,
        "dense_step": None if dense is None else dense.get("step"),
        "control": dense is not None and text.is_control(dense),
    }


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    training = record.get("training", {})
    return {
        "data": text.data_words(training.get("data")),
        "teacher": text.source_words(training.get("teacher")),
        "hyperparameters": text.hyperparameter_words(training.get("hyperparameters", {})),
    }


def _auto_class(model: PreTrainedModel) -> str | None:
    config = copy.copy(model.config)
    config.architectures = [type(model).__name__]
    try:
        return auto_class_for(config).__name__
    except DendriticError:
        return None


def _code(model: PreTrainedModel) -> dict[str, Any]:
    """The module of an architecture that transformers does not have, or the option that loads it."""
    module = type(model).__module__
    if module.startswith("transformers."):
        return {"own_code": None, "options": escape.Markdown()}
    if module.startswith("transformers_modules."):
        return {"own_code": None, "options": escape.Markdown(", trust_remote_code=True")}
    return {"own_code": "your_code" if module == "__main__" else module, "options": escape.Markdown()}
