"""Hostile edits of a checkpoint's config.json, drawn at random: of its layout, of a field, of its bytes."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Edit = Callable[[random.Random, Path], str]  # edits a folder, and says what it did
HUGE = 2**31 - 1
JUNK: list[Any] = [None, True, False, *range(-1, 5), 8, 12, 16, 24, 0.5, -0.5, 1e308, HUGE, 2**63, 2**70]
JUNK += ["", "0", "bert", "../..", "a" * 5000, "\u202e", "\ud800"]
JUNK += [[], [0], [8], [[]], {}, {"a": 1}, {"import": "os"}, [1] * 3000]
PATTERNS = ["(a+)+$", "(.*)*(.*)*(.*)*x", "(?:a|a)*b", "[", "(?P<a>", "\\", "a{4294967296}", "(" * 3000, ".*" * 500]
STRUCTURE = ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "architectures", "model_type"]
STRUCTURE += ["n_embd", "n_layer", "n_inner", "hidden_sizes", "depths", "embedding_size", "cell", "bidirectional"]
BLOCKS = ("num_hidden_layers", "n_layer", "depths")
STRUCTURE += ["image_size", "patch_size", "max_position_embeddings", "id2label", "auto_map", "transformers_version"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value, as paths."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def layout(edit: Callable[[random.Random, dict[str, Any]], str]) -> Edit:
    """An edit of the layout alone."""

    def apply(chance: random.Random, folder: Path) -> str:
        config = json.loads((folder / "config.json").read_text())
        said = edit(chance, config["quantization_config"])
        (folder / "config.json").write_text(json.dumps(config))
        return said

    return apply


def junk(chance: random.Random) -> Any:
    """Something that does not belong there; a copy, since a later edit may change it."""
    return copy.deepcopy(chance.choice(JUNK))


def some_place(chance: random.Random, found: dict[str, Any]) -> tuple[Any, ...]:
    return chance.choice([path for path in places(found) if path != ("quant_method",)])


def value(chance: random.Random, found: dict[str, Any]) -> str:
    path, new = some_place(chance, found), junk(chance)
    at(found, path[:-1])[path[-1]] = new
    return f"{path} = {new!r:.60}"


def number(chance: random.Random, found: dict[str, Any]) -> str:
    """A number that is only a little off."""
    path = chance.choice([path for path in places(found) if type(at(found, path)) is int])
    new = at(found, path) + chance.choice([-2, -1, 1, 2, 4, 8])
    at(found, path[:-1])[path[-1]] = new
    return f"{path} = {new}"


def values(chance: random.Random, found: dict[str, Any]) -> str:
    return "; ".join(chance.choice([value, number])(chance, found) for _ in range(chance.randint(2, 5)))


def key(chance: random.Random, found: dict[str, Any]) -> str:
    holders = [()] + [path for path in places(found) if isinstance(at(found, path), dict) and at(found, path)]
    holder = at(found, chance.choice(holders))
    name = chance.choice([key for key in holder if key != "quant_method"] or ["new"])
    new = chance.choice(["", "new", name.upper(), f"{name} ", f"model.{name}", "__class__", "\u202e" + name])
    what = chance.choice(["delete", "add", "rename"])
    content = holder.pop(name, 1) if what != "add" else holder.get(name, 1)
    if what != "delete":
        holder[new] = content
    return f"{what} {name} {new!r}"


def swap(chance: random.Random, found: dict[str, Any]) -> str:
    """Two values of one kind change places."""
    first = some_place(chance, found)
    kind = type(at(found, first))
    second = chance.choice([path for path in places(found) if type(at(found, path)) is kind])
    if first == second[: len(first)] or second == first[: len(second)]:
        return "nothing"
    one, other = at(found, first), at(found, second)
    at(found, first[:-1])[first[-1]], at(found, second[:-1])[second[-1]] = other, one
    return f"{first} <-> {second}"


def pattern(chance: random.Random, found: dict[str, Any]) -> str:
    field, new = chance.choice(["target_modules", "exclude_modules"]), chance.choice(PATTERNS)
    found["config"][field] = chance.choice([new, [new], [new] * 1000])
    return f"{field} = {new!r:.40}"


def text(chance: random.Random, folder: Path) -> str:
    """The file of the config, as bytes."""
    file = folder / "config.json"
    content = file.read_bytes()
    point = chance.randrange(len(content))
    parts = [
        b"",
        b"\0",
        b"\xff\xfe",
        b"{",
        b"}",
        b",",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"[" * 100_000,
        b"9" * 5000,
        b'"',
    ]
    new = chance.choice(parts)
    file.write_bytes(content[:point] + new + content[point + chance.choice([0, 1, len(new)]) :])
    return f"{new!r:.20} at {point}"


def stock(chance: random.Random, folder: Path) -> str:
    """A field of the config that the layout must agree with.

    A number of blocks is never large: transformers builds them all before it asks anyone, as of any model.
    """
    config = json.loads((folder / "config.json").read_text())
    name = chance.choice([name for name in STRUCTURE if name in config])
    words = [*JUNK, 32, 48, ["BertModel"], ["GPT2LMHeadModel"], "gpt2", [8, 8], {"0": "a"}]
    if name in BLOCKS:
        words = [word for word in words if not isinstance(word, int | list) or word in (0, 1, 2, 3, 4, 48, [8, 8], [])]
    new = copy.deepcopy(chance.choice(words))
    if chance.random() < 0.2:
        config.pop(name)
    else:
        config[name] = new
    (folder / "config.json").write_text(json.dumps(config))
    return f"{name} = {new!r:.60}"


EDITS: dict[str, Edit] = {
    **{f"layout, {edit.__name__}": layout(edit) for edit in (value, number, values, key, swap, pattern)},
    "config, a field": stock,
    "config, its bytes": text,
}
