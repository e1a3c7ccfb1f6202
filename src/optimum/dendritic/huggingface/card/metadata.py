"""The metadata of a card: tags, base model, datasets, and the `model-index` of scores and costs that the Hub reads."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from transformers.modelcard import infer_metric_tags_from_eval_results
from transformers.pipelines import SUPPORTED_TASKS
from transformers.utils import logging

from .escape import on_hub, plain, shown
from .text import FIGURES, batches, shapes_of

logger = logging.get_logger(__name__)

TAGS = ("optimum-dendritic", "dendritic", "pruned")  # of a compressed model
UNITS = {"bytes": " (bytes)", "peak_memory_bytes": " (bytes)", "energy_joules": " (J)"}
LICENSE_TIMEOUT_SECONDS = 10.0
KEPT = ("license", "license_name", "license_link", "language")


def pipeline_of(auto_class: str | None) -> str | None:
    """The pipeline that an Auto class serves, as the Hub calls it."""
    tasks = SUPPORTED_TASKS.items()
    return next((task for task, of in tasks if auto_class in [each.__name__ for each in of["pt"]]), None)


def metadata_of(
    record: Mapping[str, Any], *, name: str, pipeline_tag: str | None, earlier: ModelCardData | None
) -> ModelCardData:
    """The metadata block of the card, between its `---` lines.

    Args:
        record: the content of `efficiency.json`.
        name: of the model, for its `model-index`.
        pipeline_tag: a task of the Hub; without it the results are filed under "other".
        earlier: the metadata of the card that is replaced: its license, language and tags stay.
    """
    base = record.get("base", {})
    base_model = base["name"] if base and on_hub(base) else None
    kept: dict[str, Any] = {field: None if earlier is None else plain(earlier.get(field)) for field in KEPT}
    if kept["license"] is None and base_model is not None:
        kept["license"] = _license_of(base_model)
    data = [record.get("training", {}).get("data"), *(entry.get("data") for entry in scores_in(record))]
    datasets = list(dict.fromkeys(each["name"] for each in data if on_hub(each)))
    scores = {metric: value for entry in scores_in(record) for metric, value in entry["metrics"].items()}
    task = pipeline_tag or "other"
    results = [*_task_results(record, task), *_efficiency_results(record, task)]
    tags = None if earlier is None else plain(earlier.tags)
    kept_tags = tags if isinstance(tags, list) else []
    relation: dict[str, Any] = {} if base_model is None else {"base_model_relation": "finetune"}
    return ModelCardData(
        base_model=base_model,
        datasets=datasets or None,
        eval_results=results or None,
        library_name="transformers",
        metrics=list(infer_metric_tags_from_eval_results(scores)) or None,
        model_name=shown(name) if results else None,
        pipeline_tag=pipeline_tag,
        tags=[*(TAGS if "compression" in record else TAGS[:1]), *kept_tags],
        **kept,
        **relation,
    )


def earlier_metadata(folder: Path) -> ModelCardData | None:
    """The metadata of the card in `folder`; None if there is not one that can be read."""
    try:
        data = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data
        assert isinstance(data, ModelCardData)
        return data
    except Exception as error:  # a YAML parser runs on a file that anyone may have written
        logger.debug(f"No earlier card in {folder.name}: {shown(error)}")
        return None


def scores_in(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evaluations of the present weights; of several on the same data, the last."""
    own = [entry for entry in record.get("evaluations", []) if entry["weights"] == record["model"]["weights"]]
    return list({str(entry.get("data")): entry for entry in own}.values())


def _task_results(record: Mapping[str, Any], task: str) -> Iterator[EvalResult]:
    """Scores on data that has a name; the Hub refuses a result without one."""
    for entry in scores_in(record):
        data = entry.get("data")
        if data is None:
            continue
        for metric, value in entry["metrics"].items():
            yield EvalResult(
                task_type=task,
                dataset_type=shown(data["name"]),
                dataset_name=shown(data["name"]),
                dataset_config=plain(data.get("config")),
                dataset_split=plain(data.get("split")),
                metric_type=shown(metric),
                metric_name=shown(metric),
                metric_value=value,
            )


def _efficiency_results(record: Mapping[str, Any], task: str) -> Iterator[EvalResult]:
    report = record.get("efficiency")
    if report is None:
        return
    latencies = {f"latency_ms_batch_{size}": report["latency_ms"][size]["median"] for size in batches(report)}
    figures = {**{name: report.get(name) for name in FIGURES}, **latencies}
    names = {**FIGURES, **{f"latency_ms_batch_{size}": f"latency, batch {size} (ms)" for size in batches(report)}}
    values = {name: (value, names[name] + UNITS.get(name, "")) for name, value in figures.items() if value is not None}
    for name, ratio in report.get("ratios", {}).items():
        values[f"{name}_ratio"] = (ratio, f"{names.get(name, name)}, share of dense")
    for name, (value, words) in values.items():
        yield EvalResult(
            task_type=task,
            dataset_type="synthetic",
            dataset_name=shown(f"one sample, {shapes_of(report)}"),
            metric_type=shown(name),
            metric_name=shown(words),
            metric_value=value,
        )


def _license_of(base_model: str) -> str | None:
    """The license of a model on the Hub; None where it cannot be asked."""
    try:
        tags = HfApi().model_info(base_model, timeout=LICENSE_TIMEOUT_SECONDS).tags or []
    except Exception as error:  # offline, refused, no such model; what the transport raises differs between clients
        logger.info(f"The license of {base_model} is unknown: {type(error).__name__}")
        return None
    return next((shown(tag.removeprefix("license:")) for tag in tags if tag.startswith("license:")), None)
