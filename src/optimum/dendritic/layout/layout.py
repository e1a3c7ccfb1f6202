"""The layout: a versioned JSON record of every touched module's present shape and of the groups that they form.

It travels in `config.json` under `quantization_config` and is all that a loader needs to rebuild the skeleton. Reading
one is strict: an unknown version, field or shape raises `CheckpointError` before a module is made from it.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from ..config import DendriticConfig
from ..errors import CheckpointError, DendriticError, invalid
from .left import Left
from .records import Dial, Follower, Form, Group, Record, Recurrent, Segments, Skipped, Stack
from .strict_json import REMEDY, bad, only, read
from .times import Times

METHOD = "optimum-dendritic"  # the name to install: transformers shows it to whoever loads without this package
METHODS = (METHOD, "dendritic")  # what is read
VERSION = 1
LARGEST = 2**24  # characters of JSON; the layout of a model of 1,000 layers has a few 10^5

_KINDS: dict[str, type[Record]] = {
    "segments": Segments,
    "stack": Stack,
    "form": Form,
    "recurrent": Recurrent,
    "follower": Follower,
    "skipped": Skipped,
}


@dataclass(frozen=True)
class Layout:
    """The present shape of a compressed model.

    Attributes:
        config: What was asked for.
        modules: The record of every module that was changed, by its name.
        groups: The dependency groups, which are empty once the model is packed.
        positions: Products per sample of each weight, by the name of its layer, to count MACs.
        dense_cost: The budget's count of the dense targets.
        dials: The dials, which are empty unless only what a stock config can express is pruned.
        parameters: The shapes of parameters that stand alone and were cut, by name, once the model is packed.
        numbers: The numbers of modules that were changed with the number of units, by the path of the attribute, once
            the model is packed.
        times: The measured table, where the config's target is a time; none once the model is packed.
        allowed: What the packed model may cost where the config's target is another one than `sparsity`, in the units
            of `dense_cost`; else 0.
        factored: The rank that the input embedding began with as two factors, by the name of the embedding; empty where
            it is one table.
        left: How much was left of each group when the model was packed; nothing of the model depends on it.
    """

    config: DendriticConfig
    modules: dict[str, Record]
    groups: tuple[Group, ...] = ()
    positions: dict[str, int] = field(default_factory=dict)
    dense_cost: int = 0
    dials: tuple[Dial, ...] = ()
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    allowed: int = 0
    times: Times | None = None
    factored: dict[str, int] = field(default_factory=dict)
    left: tuple[Left, ...] = ()

    @property
    def packed(self) -> bool:
        return any(isinstance(record, Form | Recurrent | Skipped) for record in self.modules.values())

    @property
    def sparsity(self) -> float:
        """The fraction of `dense_cost` that is to go: the config's, or what its other target comes to."""
        asked = self.config.removed
        return 1 - self.allowed / max(1, self.dense_cost) if asked is None else asked

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse."""
        kinds = {kind: name for name, kind in _KINDS.items()}
        fields = {
            "quant_method": METHOD,
            "version": VERSION,
            "config": self.config.to_dict(),
            "modules": {name: {kinds[type(m)]: dataclasses.asdict(m)} for name, m in self.modules.items()},
            "groups": [dataclasses.asdict(group) for group in self.groups],
            "positions": dict(self.positions),
            "dense_cost": self.dense_cost,
        }
        dials = {"dials": [dataclasses.asdict(dial) for dial in self.dials]} if self.dials else {}
        shapes = {name: list(shape) for name, shape in self.parameters.items()}
        numbers = {"numbers": dict(self.numbers)} if self.numbers else {}
        allowed: dict[str, Any] = {"allowed": self.allowed} if self.allowed else {}
        allowed |= {"times": dataclasses.asdict(self.times)} if self.times is not None else {}
        allowed |= {"factored": dict(self.factored)} if self.factored else {}
        left = {"left": [dataclasses.asdict(each) for each in self.left]} if self.left else {}
        return fields | dials | ({"parameters": shapes} if shapes else {}) | numbers | allowed | left

    @classmethod
    def from_dict(cls, data: Any) -> "Layout":
        """Read `to_dict`'s form. Raises `CheckpointError` for anything that `to_dict` would not have written."""
        size = len(json.dumps(data, default=str, skipkeys=True))
        if size > LARGEST:
            raise bad("quantization_config", f"{size} characters", f"must be at most {LARGEST}")
        version = data.get("version") if isinstance(data, dict) else data
        if type(version) is not int or version != VERSION:
            rule = f"this release reads layout version {VERSION}"
            raise invalid("quantization_config.version", version, rule, "Upgrade optimum-dendritic.", CheckpointError)
        names = {field.name for field in dataclasses.fields(cls)} | {"quant_method", "version"}
        fields = only(_with_defaults(data), names, "quantization_config")
        if fields["quant_method"] not in METHODS:
            raise bad("quantization_config.quant_method", fields["quant_method"], f"must be {METHOD!r}")
        for name in ("dense_cost", "allowed"):
            if type(fields[name]) is not int or not 0 <= fields[name] < 2**62:
                raise bad(f"quantization_config.{name}", fields[name], "must be an integer in [0, 2^62)")
        if not isinstance(fields["modules"], dict):
            raise bad("quantization_config.modules", fields["modules"], "must be a JSON object")
        config, factored = _config(fields["config"]), read(dict[str, int], fields["factored"], "factored")
        if list(factored.values()) != ([] if config.embedding_rank is None else [config.embedding_rank]):
            rule = f"must be one embedding of embedding_rank = {config.embedding_rank}, none without a rank"
            raise bad("quantization_config.factored", factored, rule)
        return cls(
            config=config,
            modules={name: _module(record, f"modules.{name}") for name, record in fields["modules"].items()},
            groups=read(tuple[Group, ...], fields["groups"], "groups"),
            positions=read(dict[str, int], fields["positions"], "positions"),
            dense_cost=fields["dense_cost"],
            dials=read(tuple[Dial, ...], fields["dials"], "dials"),
            parameters=read(dict[str, tuple[int, ...]], fields["parameters"], "parameters"),
            numbers=read(dict[str, int], fields["numbers"], "numbers"),
            allowed=fields["allowed"],
            times=None if fields["times"] is None else read(Times, fields["times"], "times"),
            factored=factored,
            left=read(tuple[Left, ...], fields["left"], "left"),
        )


def _with_defaults(data: Any) -> Any:
    """With the fields that may be absent. Earlier releases called groups bundles, of which a packed model has none."""
    if not isinstance(data, dict):
        return data
    absent = {"dials": [], "parameters": {}, "numbers": {}, "allowed": 0, "times": None, "factored": {}, "left": []}
    absent |= {"groups": []} if data.get("bundles") == [] else {}
    return {**absent, **{name: value for name, value in data.items() if name != "bundles" or value != []}}


def _config(value: object) -> DendriticConfig:
    try:
        return DendriticConfig.from_dict(value)
    except DendriticError as error:
        raise CheckpointError(f"quantization_config.config: {error} {REMEDY}") from None


def _module(value: object, where: str) -> Record:
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= _KINDS.keys():
        raise bad(where, value, f"must be one of {', '.join(_KINDS)}")
    (kind, fields), *_ = value.items()
    return read(_KINDS[kind], fields, where)
