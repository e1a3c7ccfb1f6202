"""The part of JSON Schema that `efficiency.schema.json` uses, to check an `efficiency.json` that was published."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("efficiency.schema.json")
Schema = Mapping[str, Any]
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}


def first_fault(value: Any) -> str | None:
    """Where a JSON value breaks the schema, and which of its rules; None where it keeps them all."""
    root = json.loads(FILE.read_text("utf-8"))
    return next(_faults(value, root, root, "efficiency.json"), None)


def _faults(value: Any, schema: Schema, root: Schema, where: str) -> Iterator[str]:
    if "$ref" in schema:
        yield from _faults(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, where)
    for part in schema.get("allOf", ()):
        yield from _faults(value, part, root, where)
    if "anyOf" in schema and all(next(_faults(value, part, root, where), None) for part in schema["anyOf"]):
        yield f"{where}: anyOf"
    names = schema.get("type", ())
    if names and not any(_is(value, name) for name in ([names] if isinstance(names, str) else names)):
        yield f"{where}: type"
        return
    for rule, holds in _RULES.items():
        if rule in schema and not holds(value, schema[rule]):
            yield f"{where}: {rule}"
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        for name, child in value.items():
            inner = properties.get(name, others)
            if inner is False:
                yield f"{where}: additionalProperties"
                continue
            yield from _faults(name, schema.get("propertyNames", {}), root, where)
            yield from _faults(child, inner, root, f"{where}.{name}"[:200])
    if isinstance(value, list) and "items" in schema:
        for child in value:
            yield from _faults(child, schema["items"], root, f"{where}[]")


def _is(value: Any, name: str) -> bool:
    """Whether `value` is of a type; a number is finite and no boolean."""
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name]) and (not isinstance(value, int | float) or _finite(value))


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


_RULES: dict[str, Callable[[Any, Any], bool]] = {
    "const": lambda value, only: type(value) is type(only) and value == only,
    "enum": lambda value, among: any(type(value) is type(one) and value == one for one in among),
    "required": lambda value, names: not isinstance(value, dict) or value.keys() >= set(names),
    "maxItems": lambda value, most: not isinstance(value, list) or len(value) <= most,
    "pattern": lambda value, pattern: not isinstance(value, str) or re.search(pattern, value) is not None,
    "minLength": lambda value, least: not isinstance(value, str) or len(value) >= least,
    "maxLength": lambda value, most: not isinstance(value, str) or len(value) <= most,
    "minimum": lambda value, least: not isinstance(value, int | float) or value >= least,
    "maximum": lambda value, most: not isinstance(value, int | float) or value <= most,
    "exclusiveMinimum": lambda value, least: not isinstance(value, int | float) or value > least,
}
