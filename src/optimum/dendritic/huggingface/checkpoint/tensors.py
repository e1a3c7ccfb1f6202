"""The tensors of a checkpoint, read without being loaded, and the rules that they must keep.

Names, shapes and dtypes come from safetensors headers; of the values only masks, scores and indices are read, because a
mask says what is left of a layer and an index says where a kernel reads and writes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import CheckpointError, invalid
from ...layout.layout import Layout
from ...layout.records import Form, Record, Recurrent, Segments
from ...layout.strict_json import bad
from ...nn import Gates

FLOATING = ("F64", "F32", "F16", "BF16")
NAMES = {torch.bool: "BOOL", torch.int64: "I64"}
BOOKKEEPING = ("dendrite_mask", "dendrite_score", "dendrite_activity", "inputs", "outputs")
FACTORS = ("table", "up")  # the modules inside of an embedding that is two factors
T = TypeVar("T")
# a key in a file -> the keys in the model, and whether they are made by fusing or splitting
Rename = Callable[[str], tuple[tuple[str, ...], bool]]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a safetensors file, as its header declares it.

    Attributes:
        file: The path of the file.
        key: The name of the tensor in the file.
        dtype: The name of its dtype, in the words of safetensors.
        shape: The shape of the tensor.
    """

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]


def read_headers(files: Iterable[str]) -> list[Stored]:
    """Every tensor in the files, by their headers.

    Raises:
        CheckpointError: a file is not a safetensors file (nothing is ever unpickled), or is truncated or corrupt.
    """
    stored: list[Stored] = []
    for file in files:
        if not file.endswith(".safetensors"):
            rule = "only safetensors files are read, since others could run code"
            raise invalid("checkpoint file", file, rule, "Save the model again with save_pretrained.", CheckpointError)
        try:
            with safe_open(file, framework="pt") as opened:
                slices = {key: opened.get_slice(key) for key in opened.keys()}
                for key, part in slices.items():
                    shape = tuple(part.get_shape())
                    stored.append(Stored(file=file, key=key, dtype=part.get_dtype(), shape=shape))
        except (SafetensorError, OSError) as error:
            raise bad("checkpoint file", file, f"cannot be read as safetensors ({error})") from error
    return stored


def sort_by_name(stored: Iterable[Stored], rename: Rename) -> tuple[dict[str, list[Stored]], set[str]]:
    """What the files hold, by names in the model; and the names that are made by fusing or splitting while loading."""
    found: dict[str, list[Stored]] = defaultdict(list)
    fused: set[str] = set()
    for entry in stored:
        names, made = rename(entry.key)
        if made:
            fused.update(names)
        else:
            found[names[0]].append(entry)
    return found, fused


def check_files(
    layout: Layout,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Sequence[Stored]],
    fused: Set[str],
    tied: Set[str] = frozenset(),
) -> None:
    """Hold every recorded module's tensors, as declared, and the values that steer kernels against the skeleton.

    Args:
        expected: the skeleton's state dict; only shapes and dtypes count.
        found: all that the files hold, by names in the skeleton.
        fused: names that are made from other tensors while loading, so that no header declares them.
        tied: names of tensors that may be absent, since another module brings them.

    Raises:
        CheckpointError: they do not fit.
    """
    absent = tied - found.keys()
    own = {name: _below(name, expected) for name in layout.modules}
    own = {name: {key: value for key, value in keys.items() if key not in absent} for name, keys in own.items()}
    _check_declared(
        {name: expected[name] for name in layout.parameters}, {n: found.get(n, ()) for n in layout.parameters}
    )
    factors = [f"{name}.{factor}" for name in layout.factored for factor in FACTORS]
    own |= {name: _below(name, expected) for name in factors}
    for name, record in layout.modules.items():
        if isinstance(record, Form | Recurrent) and fused & own[name].keys():
            rule = "the file fuses it with other tensors, whose packed shapes differ"
            remedy = "Save it again with save_pretrained(…, save_original_format=False)."
            raise invalid(sorted(fused & own[name].keys())[0], "fused", rule, remedy, CheckpointError)
    for name, keys in own.items():
        _check_declared({key: keys[key] for key in keys.keys() - fused}, _below(name, found))
    steering = {key: found[key][0] for keys in own.values() for key in keys.keys() - fused if key.endswith(BOOKKEEPING)}
    values = _read_tensors(steering)
    for name, record in layout.modules.items():
        check_values(name, record, {key.removeprefix(f"{name}."): value for key, value in _below(name, values).items()})


def _below(module: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """The entries that belong to one module, by full name."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{module}.")}


def _read_tensors(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The values of some stored tensors under the names given, on the CPU; each file is opened once."""
    tensors = {}
    for file in sorted({entry.file for entry in stored.values()}):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(s.key) for name, s in stored.items() if s.file == file}
    return tensors


def _check_declared(expected: Mapping[str, Tensor], found: Mapping[str, Sequence[Stored]]) -> None:
    """Compare one module's tensors with what the headers declare."""
    for name in sorted(found.keys() - expected.keys()):
        raise bad(name, found[name][0].shape, "is not a tensor of its module's recorded form")
    for name, tensor in expected.items():
        entries = found.get(name, ())
        if len(entries) != 1:
            raise bad(name, [entry.key for entry in entries], "must be in the files exactly once")
        allowed = FLOATING if tensor.is_floating_point() else (NAMES[tensor.dtype],)
        if entries[0].dtype not in allowed:
            raise bad(name, entries[0].dtype, f"must have the dtype {' or '.join(allowed)}")
        if entries[0].shape != tuple(tensor.shape):
            raise bad(name, entries[0].shape, f"must have the shape {tuple(tensor.shape)} that config.json records")


def check_kinds(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
    """Compare loaded tensors with the skeleton's: the same shapes, and integers and masks of exactly the same dtype."""
    for name in sorted(expected.keys() & actual.keys()):
        tensor, found = expected[name], actual[name]
        if found.shape != tensor.shape:
            raise bad(name, tuple(found.shape), f"must have the shape {tuple(tensor.shape)} that config.json records")
        same = found.is_floating_point() if tensor.is_floating_point() else found.dtype == tensor.dtype
        if not same:
            raise bad(name, found.dtype, f"must have the dtype {tensor.dtype}")


def check_values(name: str, record: Record, tensors: Mapping[str, Tensor]) -> None:
    """Check the masks, scores and indices of one module before any kernel sees them.

    Args:
        name: the module's, for the error.
        record: its record in the layout.
        tensors: its `BOOKKEEPING` tensors by their own names, those that it has, in the recorded shapes and dtypes.

    Raises:
        CheckpointError: arbors keep different numbers of segments, a score is not finite, or an index repeats,
            descends or is out of range.
    """
    for tensor, rule in _faults(record, tensors):
        raise bad(f"{name}.{tensor}", _excerpt(tensors[tensor]), rule)


def check_mask(name: str, layer: Gates, mask: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Compare the weights of an injected layer, or of all that reads a group, with the mask: pruned means zero.

    Args:
        tensors: those of the layer that hold its tiles, by their own names; one that is not loaded (meta) is left out.

    Raises:
        CheckpointError: the mask prunes what is not zero. Packing would drop it and change what the model answers.
    """
    if mask.is_meta or any(tensor.is_meta for tensor in tensors.values()):
        return
    if not layer.pruned_is_zero(mask, tensors):
        raise bad(f"{name}.dendrite_mask", _excerpt(mask), "contradicts the weights: what it prunes must be zero")


def _faults(record: Record, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """The tensor and the rule of whatever is wrong."""
    match record:
        case Segments():
            yield from _segments_faults(tensors)
        case Form():
            yield from _index_faults({"inputs": record.inputs // record.span, "outputs": record.outputs}, tensors)
        case Recurrent():
            yield from _index_faults({"outputs": record.hidden}, tensors)


def _segments_faults(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    if "dendrite_mask" in tensors and len(set(tensors["dendrite_mask"].sum(1).tolist())) > 1:
        yield "dendrite_mask", "every arbor must keep equally many segments"
    for score in ("dendrite_score", "dendrite_activity"):
        if score in tensors and not bool(tensors[score].isfinite().all()):
            yield score, "must be finite"
    if "dendrite_activity" in tensors and bool((tensors["dendrite_activity"] < 0).any()):
        yield "dendrite_activity", "must not be negative"


def _index_faults(limits: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    for index, below in limits.items():
        if index in tensors and not ascending(tensors[index], below):
            yield index, f"must ascend strictly within [0, {below})"


def ascending(index: Tensor, below: int) -> bool:
    """Whether the last axis of an int64 index ascends strictly within `[0, below)`."""
    inside = bool(((index >= 0) & (index < below)).all())
    return inside and bool((index[..., 1:] > index[..., :-1]).all())


def _excerpt(tensor: Tensor) -> list[object]:
    return tensor.flatten()[:16].tolist()
