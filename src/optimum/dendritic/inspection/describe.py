"""A description of each layer in words, also of those that keep a gather or a scatter, or stay dense."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from torch import nn

from ..layout.records import Follower, Form, Group, Record, Recurrent, Segments, Skipped, Stack
from ..nn import DendriticLayer
from ..state import layout_of
from ..structure.readers import READERS

DENSE = "dense: not a target"


def describe(model: nn.Module) -> dict[str, str]:
    """For each module that multiplies by a weight of its own, what it is at present; embeddings are left out.

    Works on stock, injected, packed and loaded models alike.

    Returns:
        By full name: for example `"plain: 16 -> 8"` (a stock layer of smaller shape), `"gather: 8 of 16 -> 24"` (it
        picks the inputs that it reads from a tensor that stays wide), `"gather, scatter: 8 of 16 -> 24 of 48"` (and
        puts the rows that are left into a wide tensor of zeros), `"injected: 3 of 4 segments"`, `"dense: not a
        target"`.
    """
    layout = layout_of(model)
    return described(model, {} if layout is None else layout.modules)


def described(model: nn.Module, records: Mapping[str, Record]) -> dict[str, str]:
    """As `describe`, of a model whose changed modules have these records."""
    words = {name: _words(module, records[name]) for name, module in model.named_modules() if name in records}
    words |= dict.fromkeys(dense_layers(model, records), DENSE)
    return {name: words[name] for name, _ in model.named_modules() if name in words}


def dense_layers(model: nn.Module, records: Mapping[str, Record]) -> list[str]:
    """Names of the modules that multiply by a weight of their own and have no record."""
    return [name for name, module in model.named_modules() if name not in records and _multiplies(module)]


def summary(
    forms: Mapping[str, Form | Recurrent], shrunk: Iterable[str], groups: Iterable[Group], dense: Iterable[str]
) -> str:
    """Which layers became plain smaller ones, which did not, and why not; like names are shown as one, with `*`.

    Args:
        forms: the form of every packed layer.
        shrunk: the names of those that are smaller than they were.
        groups: the groups from before packing; a consumer that keeps a gather reads a tensor that could not shrink.
        dense: the names of other layers.
    """
    readers, smaller = {group.host for group in groups}, set(shrunk)
    unpruned = [name for name in forms if name not in smaller]
    plain = [name for name, form in forms.items() if form.plain and name in smaller]
    gather = [name for name, form in forms.items() if form.gather]
    scatter = [name for name, form in forms.items() if form.scatter]
    lists = {
        "gather, from a tensor that is not theirs alone": [name for name in gather if name not in readers],
        "gather, from a tensor that cannot shrink (split, reshaped, added)": [n for n in gather if n in readers],
        "scatter, into a tensor that cannot shrink": scatter,
        "as large as before": unpruned,
        "no target": list(dense),
    }
    counts = f"{len(plain)} plain and smaller, {len(gather)} with a gather, {len(scatter)} with a scatter, "
    lines = [f"{what}: {together(names)}" for what, names in lists.items() if names]
    return "\n  ".join([f"{counts}{len(unpruned)} as large as before", *lines])


def together(names: Iterable[str]) -> str:
    """Names that differ in numbers only as one, with the count.

    >>> together(["layer.0.query", "layer.1.query", "pooler"])
    'layer.*.query (2), pooler'
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[re.sub(r"(?<![^.])\d+(?![^.])", "*", name)].append(name)
    return ", ".join(f"{like} ({len(names)})" if len(names) > 1 else names[0] for like, names in alike.items())


def _words(module: nn.Module, record: Record) -> str:
    match record:
        case Segments():
            assert isinstance(module, DendriticLayer)
            if not record.segments:
                return "injected: no segments of its own"
            return f"injected: {int(module.dendrite_mask.sum())} of {module.dendrite_mask.numel()} segments"
        case Stack():
            assert isinstance(module, DendriticLayer)
            return f"injected: {int(module.dendrite_mask.sum())} of {module.dendrite_mask.numel()} blocks"
        case Skipped():
            return "skipped: returns what it is given"
        case Follower():
            return f"plain: {record.channels} channels"
        case Recurrent():
            return f"{'scatter: ' if record.scatter else 'plain: '}{record.kept} of {record.hidden} hidden units"
        case Form():
            parts = [part for part in ("gather", "scatter", "sprout") if getattr(record, part)]
            kept = f"{record.kept} of {record.inputs}" if record.gather else f"{record.inputs}"
            rows = f"{sum(record.arbors)} of {record.outputs}" if record.scatter else f"{record.outputs}"
            each = f" for each of {len(record.arbors)} arbors" if len(record.arbors) > 1 else ""
            return f"{', '.join(parts) or 'plain'}: {kept}{each} -> {rows}"


def _multiplies(module: nn.Module) -> bool:
    """Whether a module owns a matrix; experts keep theirs outside any layer. Lookup tables are not counted."""
    if isinstance(module, READERS):
        return True
    matrices = [p.shape for p in module.parameters(recurse=False) if p.dim() > 1]
    table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
    return not table and any(shape[0] > 1 and sum(size > 1 for size in shape) > 1 for shape in matrices)
