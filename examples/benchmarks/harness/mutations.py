"""Hostile edits of a checkpoint, drawn at random: its layout, its config, its tensors' headers and values, its files.

What a checkpoint computes may lawfully be changed by whoever writes it: weights, an activation function, the number of
attention heads, or an index that still keeps its rules. Such edits are not drawn, so that a model that loads must
answer as the original does.
"""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import mutations_config
from .mutations_config import HUGE, JUNK, Edit

MASKS = ("dendrite_mask", "dendrite_awake", "dendrite_gate")
STEERING = (*MASKS, "dendrite_score", "dendrite_activity", ".inputs", ".outputs")
FLOATS = [torch.float16, torch.bfloat16, torch.float64]  # a weight may lawfully be saved in any of them
OTHERS = [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
KINDS_OF_HEADER = ["F32", "F16", "I64", "I32", "BOOL", "U8", "F8_E4M3", "C64", "X", 3, None]


def weights_file(chance: random.Random, folder: Path) -> Path:
    return chance.choice(sorted(folder.glob("*.safetensors")))


def header(chance: random.Random, folder: Path) -> str:
    """An entry of a header: another dtype, shape or place."""
    file = weights_file(chance, folder)
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    name = chance.choice(sorted(entries))
    field = chance.choice(sorted(entries[name]))
    old = entries[name][field]
    new: Any = chance.choice(KINDS_OF_HEADER if field == "dtype" else JUNK)
    if isinstance(old, list) and old and chance.random() < 0.7:
        new = list(old)
        new[chance.randrange(len(new))] += chance.choice([-8, -4, -1, 1, 4, 8, HUGE, 2**40])
    entries[name][field] = new
    written = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :])
    return f"{name}.{field} = {new!r:.60}"


def header_bit(chance: random.Random, folder: Path) -> str:
    file = weights_file(chance, folder)
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    place, bit = chance.randrange(8 if chance.random() < 0.1 else 8 + length), chance.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(bytes(content))
    return f"bit {bit} of byte {place}"


def length(chance: random.Random, folder: Path) -> str:
    file = weights_file(chance, folder)
    content = file.read_bytes()
    end = chance.choice([0, 1, 7, 8, 9, chance.randrange(len(content)), len(content) - 1, len(content) - 4])
    more = chance.choice([b"", b"\0" * chance.randint(1, 64)])
    file.write_bytes(content[:end] if not more else content + more)
    return f"{file.name}: {f'{len(more)} more' if more else f'{end} of {len(content)}'} bytes"


def tensors(edit: Callable[[random.Random, dict[str, Tensor]], str]) -> Edit:
    """An edit of the tensors of one file, which is written anew."""

    def apply(chance: random.Random, folder: Path) -> str:
        file = weights_file(chance, folder)
        found = load_file(file)
        said = edit(chance, found)
        save_file({name: each.contiguous() for name, each in found.items()}, file, metadata={"format": "pt"})
        return said

    return apply


def name_of(chance: random.Random, found: dict[str, Tensor]) -> str:
    """Of a tensor; half of the time of one that steers."""
    steering = [name for name in sorted(found) if name.endswith(STEERING)]
    return chance.choice(steering if steering and chance.random() < 0.5 else sorted(found))


def drop(chance: random.Random, found: dict[str, Tensor]) -> str:
    name = name_of(chance, found)
    del found[name]
    return f"without {name}"


def rename(chance: random.Random, found: dict[str, Tensor]) -> str:
    name = name_of(chance, found)
    ends = ["", f"x.{name}", f"model.{name}", name.rpartition(".")[2], name.upper(), f"{name}.weight", f"{name}\u202e"]
    new = chance.choice(ends)
    found[new] = found.pop(name) if chance.random() < 0.7 else found[name].clone()
    return f"{name} as {new!r}"


def shape(chance: random.Random, found: dict[str, Tensor]) -> str:
    name = name_of(chance, found)
    old = found[name]
    forms = [old.flatten(), old[None], old.flatten()[:0]]
    forms += [old.flatten()[0]] if old.numel() else []
    forms += [old.mT, old[:-1], torch.cat([old, old])] if old.dim() > 1 else []
    found[name] = chance.choice([form for form in forms if form.shape != old.shape]).clone()
    return f"{name} of {tuple(found[name].shape)}"


def dtype(chance: random.Random, folder: Path) -> str:
    """Another dtype for a tensor that the layout tells of; others are cast, as in any checkpoint."""
    modules = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]

    def edit(chance: random.Random, found: dict[str, Tensor]) -> str:
        names = [name for name in sorted(found) if any(f"{name}.".startswith(f"{module}.") for module in modules)]
        if not names:
            return drop(chance, found)
        name = chance.choice(names)
        kinds = OTHERS if found[name].is_floating_point() else FLOATS + OTHERS
        found[name] = found[name].to(chance.choice([kind for kind in kinds if kind != found[name].dtype]))
        return f"{name} in {found[name].dtype}"

    return tensors(edit)(chance, folder)


def steering(chance: random.Random, found: dict[str, Tensor]) -> str:
    """Values of a mask, a score or an index that break a rule, or that mean nothing."""
    names = [name for name in sorted(found) if name.endswith(STEERING) and found[name].numel()]
    if not names:
        return drop(chance, found)
    name = chance.choice(names)
    new = found[name].clone()
    flat, place = new.view(-1), chance.randrange(new.numel())
    if new.dtype == torch.int64:  # an index: out of range, or twice in its row
        twice = int(flat[place - 1]) if place % new.shape[-1] else -1
        flat[place] = chance.choice([-1, -(2**63), 2**63 - 1, HUGE, 10**6, twice])
    elif new.dtype == torch.bool and chance.random() < 0.5:
        flat.view(torch.uint8)[place] = chance.choice([2, 3, 127, 128, 255])
    elif new.dtype == torch.bool:
        share = chance.random()
        flat[:] = torch.tensor([chance.random() < share for _ in flat])
    else:
        flat[place] = chance.choice([float("nan"), float("inf"), -float("inf"), -1.0, 1e38, 0.0, 0.5])
    found[name] = new
    return f"{name}[{place}]"


def files(chance: random.Random, folder: Path) -> str:
    """A file is not there, is empty, or is a folder, a pickle or a link to somewhere else."""
    file = chance.choice(sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors")))
    what = chance.choice(["gone", "empty", "folder", "pickle", "link", "loop", "other"])
    content = file.read_bytes()
    file.unlink()
    if what == "empty":
        file.touch()
    elif what == "folder":
        file.mkdir()
    elif what == "pickle":
        torch.save({"a": torch.ones(1)}, file.with_name("pytorch_model.bin"))
    elif what == "link":
        file.symlink_to("/dev/null")
    elif what == "loop":
        file.symlink_to(file.name)
    elif what == "other":
        file.with_name(file.name.upper()).write_bytes(content)
    return f"{file.name} {what}"


def index(chance: random.Random, folder: Path) -> str:
    """Where the shards are; where there are none, another edit."""
    file = folder / "model.safetensors.index.json"
    if not file.exists():
        return files(chance, folder)
    found = json.loads(file.read_text())
    name = chance.choice(sorted(found["weight_map"]))
    new = chance.choice([*JUNK, "../model.safetensors", "/dev/zero", "model-00001-of-00099.safetensors", "config.json"])
    if chance.random() < 0.2:
        del found["weight_map"][name]
    else:
        found["weight_map"][name] = new
    file.write_text(json.dumps(found))
    return f"{name} in {new!r:.40}"


EDITS: dict[str, Edit] = mutations_config.EDITS | {
    "header, an entry": header,
    "header, a bit": header_bit,
    "weights, their length": length,
    **{f"tensor, {edit.__name__}": tensors(edit) for edit in (drop, rename, shape, steering)},
    "tensor, dtype": dtype,
    "a file": files,
    "the index of shards": index,
}
