"""A subset of the Hub's rules for the metadata of a card: enough to refuse a malformed one, not the real validator."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"^\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(\r?\n|$)", re.DOTALL)
MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def faults_of_card(text: str) -> list[str]:
    """What the Hub would refuse README.md for."""
    match = FRONT_MATTER.match(text)
    try:
        metadata = (yaml.safe_load(match[1]) if match else None) or {}
    except yaml.YAMLError as error:
        return [str(error)]
    return list(_faults(metadata)) if isinstance(metadata, dict) else ["metadata must be a mapping"]


def _faults(metadata: dict[str, Any]) -> Iterator[str]:
    for key in ("license", "library_name", "pipeline_tag"):
        if not isinstance(metadata.get(key, ""), str):
            yield f'"{key}" must be a string'
    tags = metadata.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        yield '"tags" must be an array of strings'
    base = metadata.get("base_model", [])
    for name in [base] if isinstance(base, str) else base:
        if not MODEL_ID.fullmatch(str(name)):
            yield f'"base_model" with value "{name}" is not valid. Use a model id from https://hf.co/models.'
    for entry in metadata.get("model-index", []):
        if not entry.get("name") or not isinstance(entry.get("results"), list):
            yield '"model-index" needs a name and results'
            continue
        for result in entry["results"]:
            yield from _result_faults(result)


def _result_faults(result: dict[str, Any]) -> Iterator[str]:
    if not result.get("task", {}).get("type"):
        yield '"model-index" results need "task.type"'
    if not all(result.get("dataset", {}).get(key) for key in ("type", "name")):
        yield '"model-index" results need "dataset.type" and "dataset.name"'
    metrics = result.get("metrics") or []
    if not metrics or any(metric.get(key) is None for metric in metrics for key in ("type", "value")):
        yield '"model-index" results need metrics with "type" and "value"'
