"""`DendriticConfig`: what to prune, how much, when and by which score; frozen, validated once, to and from JSON."""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .config_checks import (
    check_choice,
    check_integer,
    check_number,
    excerpt,
    patterns,
    refuse_unknown_fields,
)
from .config_forms import check_dormant, check_sizes, divided_sizes, refuse_two_forms
from .errors import invalid, near
from .schedules import SCHEDULES

VERSION = 1
BUDGETS = ("params", "macs")
TARGETS = ("sparsity", "speedup", "latency_ms", "parameters", "megabytes")
TIMED = ("speedup", "latency_ms")
DEFAULT_SPARSITY = 0.6
SCOPES = ("targets", "model")
IMPORTANCES = ("dendritic", "magnitude", "taylor", "movement", "activation", "random")
ALLOCATIONS = ("global", "uniform")
SEARCHES = (*ALLOCATIONS, "evolution", "rl")  # for an allocation
UNITS = ("heads", "neurons", "channels", "streams", "blocks", "inputs")
PRESETS: dict[str, tuple[str, ...]] = {  # of units
    "structured": ("heads", "neurons", "channels", "streams"),
    "fine": ("heads", "neurons", "channels", "inputs"),
}
RECIPES: dict[str, dict[str, Any]] = {  # of fields, see `DendriticConfig.preset`
    "speed": {"budget": "macs", "units": "structured"},
    "high-sparsity": {"sparsity": 0.8, "floor": 0.0, "end": 0.4, "distillation": 1.0},
}


@refuse_unknown_fields
@dataclass(frozen=True)
class DendriticConfig:
    """One main dial, `sparsity`; everything else has a good default.

    Instead of `sparsity` one may name what the packed model, as a whole, has to come to: a `speedup`, a latency, a
    number of parameters or a size. At most one of the five is given.

    Args:
        sparsity: fraction of the budget that the target modules lose, in [0, 1); 0.6 if no other target is named, and
            None if one is. Several fractions, such as `(0.5, 0.8, 0.9)`, are those of several sizes of one model: the
            lowest is that of the largest one, and the others become `sizes`.
        budget: what is counted: `"params"` (weights and biases) or `"macs"` (multiply-accumulates of one sample).
        scope: of what `sparsity` is a fraction: `"targets"`, the layers that are pruned, or `"model"`, the whole model
            with its embeddings, norms and head.
        target_modules: names or name suffixes (a list), or one regular expression for the full name (a string).
            Default: every Linear, Conv2d, Conv1D, LSTM and GRU of the body.
        exclude_modules: the same forms; taken out of the targets.
        units: what may go. `"heads"`, `"neurons"` and `"channels"` that one layer reads, `"streams"` that several read
            (the hidden width of a transformer, with its embeddings and norms), `"blocks"`, whole layers of a stack of
            equal ones, and `"inputs"`, segments of the inputs of single layers, which packed layers gather. Or a
            preset: `"structured"` (heads, neurons, channels and streams: packed layers gather nothing) or `"fine"`
            (heads, neurons, channels and inputs). Units of an LSTM or GRU always may.
        segment_size: inputs in one dendritic segment if inputs are gathered; of an LSTM or GRU a segment is one hidden
            unit.
        arbors: groups of output neurons with inputs of their own; 1 is fastest, more is finer. In an LSTM or GRU each
            direction of each layer is one.
        importance: score of a segment: `"dendritic"` (running Fisher information of its gate), or a control.
        schedule: shape of the climb from 0 to `sparsity`.
        start: fraction of training before the first mask update.
        end: fraction of training at which the mask is frozen; the rest is recovery.
        regrow: fraction of a layer's pruned (or live, if fewer) segments that returns at each update, decaying to 0 at
            `end`.
        updates: number of mask updates, spread evenly between `start` and `end`.
        decay: decay of the running score per optimizer step, in [0, 1).
        allocation: how the budget is divided: `"global"`, by one ranking of all scores per cost; `"uniform"`, the same
            fraction of everything; or the fraction that each is to keep, by name, as `search_allocation` finds them.
        floor: smallest fraction of its segments that a layer keeps (at least one); 0 lets a layer be cut through.
        seed: seed of the `"random"` importance.
        sprout_rank: rank of the nonlinear sprouts that linear layers grow in place of what was pruned; 0 for none. They
            are paid for out of the same budget.
        distillation: weight of the distillation loss beside the task's; 0 trains without a teacher. Default: 0 for one
            size. Of several sizes the largest teaches the smaller ones, with the weight 1; with a weight that is named,
            a teacher teaches all of them in its place.
        dormant: a milder sparsity, below `sparsity`. What lies between the two is packed apart, and computed only for
            the inputs that need it; see `set_wake_rate`. The training keeps both, the model without it and the model
            with it, in turn. None for no such part.
        sizes: higher sparsities, in ascending order, of smaller models inside of the largest one. One training trains
            all of them, in turn, and `load_at` cuts any of them out of what it leaves.
        native: prune only what the model's own config can say (the same FFN width and heads in every layer, fewer
            layers; with streams among the `units`, the hidden width), so that the result is a stock model with a stock
            config.json, which loads without this package.
        speedup: how many times as fast as the dense model the packed one is to be, at least 1, as measured on the
            device, in the dtype and on the inputs that the model has when it is injected.
        latency_ms: the milliseconds that one forward pass of the packed model is to take, measured likewise.
        parameters: the largest number of parameters of the packed model.
        megabytes: the largest size of its safetensors file, in 10^6 bytes.
        embedding_rank: the rank of the two factors that the input embedding begins as, a table of so many columns and a
            linear layer, where the whole model is counted. The rank is then pruned like everything else. None for one
            table.
        multiple_of: what the width of every tensor that shrinks, and of every gather, stays a multiple of; 8, 16 or 64
            where a device computes such widths faster. The budget is then met to within one such step.
        version: format version of the JSON form.

    Raises:
        DendriticError: a field is unknown, of the wrong type or out of range.
    """

    sparsity: float | Collection[float] | None = None
    budget: str = "params"
    scope: str = "targets"
    target_modules: str | Collection[str] | None = None
    exclude_modules: str | Collection[str] | None = None
    units: str | Collection[str] = "fine"
    segment_size: int = 32
    arbors: int = 1
    importance: str = "dendritic"
    schedule: str = "cubic"
    start: float = 0.05
    end: float = 0.6
    regrow: float = 0.1
    updates: int = 50
    decay: float = 0.99
    allocation: str | Mapping[str, float] = "global"
    floor: float = 0.05
    seed: int = 0
    sprout_rank: int = 0
    distillation: float | None = None
    dormant: float | None = None
    sizes: Collection[float] = ()
    native: bool = False
    speedup: float | None = None
    latency_ms: float | None = None
    parameters: float | None = None
    megabytes: float | None = None
    embedding_rank: int | None = None
    multiple_of: int = 1
    version: int = VERSION

    def __post_init__(self) -> None:
        for field in ("target_modules", "exclude_modules"):
            object.__setattr__(self, field, patterns(field, getattr(self, field)))
        object.__setattr__(self, "units", _units(self.units))
        sparsity, sizes = divided_sizes(self.sparsity, self.sizes)
        object.__setattr__(self, "sparsity", sparsity)
        object.__setattr__(self, "sizes", sizes)
        self._check_target()
        check_number("start", self.start, 0, 1, below=True)
        check_number("end", self.end, 0, 1)
        check_number("regrow", self.regrow, 0, 1, below=True)
        check_number("decay", self.decay, 0, 1, below=True)
        check_number("floor", self.floor, 0, 1)
        if self.distillation is None and not self.sizes:
            object.__setattr__(self, "distillation", 0.0)
        if self.distillation is not None:
            check_number("distillation", self.distillation, 0, math.inf, below=True)
        for field in ("segment_size", "arbors", "updates", "multiple_of"):
            check_integer(field, getattr(self, field), at_least=1)
        for field in ("seed", "sprout_rank"):
            check_integer(field, getattr(self, field), at_least=0)
        object.__setattr__(self, "allocation", _allocation(self.allocation))
        check_choice("budget", self.budget, BUDGETS)
        check_choice("scope", self.scope, SCOPES)
        check_choice("importance", self.importance, IMPORTANCES)
        check_choice("schedule", self.schedule, tuple(SCHEDULES))
        self._check_embedding()
        if not isinstance(self.native, bool):
            raise invalid(
                "native",
                self.native,
                "must be True or False",
                "Leave it at its default, False, for the finest pruning.",
            )
        stocks = {"arbors": 1, "sprout_rank": 0, "embedding_rank": None, "allocation": "global"}
        for field, stock in stocks.items():
            value = vars(self)[field]
            if self.native and value != stock:
                raise invalid(
                    field, value, "a stock config cannot express it", f"Leave it at {stock!r} with native=True."
                )
        self._check_forms()
        if self.start >= self.end:
            raise invalid("start", self.start, f"must be below end = {self.end}", "Lower start or raise end.")
        if type(self.version) is not int or self.version != VERSION:
            raise invalid(
                "version", self.version, f"this release reads version {VERSION}", "Upgrade optimum-dendritic."
            )

    @property
    def target(self) -> str:
        """The name of the one target that is given, of `TARGETS`."""
        return next(name for name in TARGETS if vars(self)[name] is not None)

    @property
    def counted(self) -> str:
        """What is counted: `"params"`, `"macs"`, `"bytes"` or `"time"`."""
        return {"sparsity": self.budget, "parameters": "params", "megabytes": "bytes"}.get(self.target, "time")

    @property
    def counts_model(self) -> bool:
        """Whether it is counted in the whole model, and not in the layers that are pruned alone."""
        return self.scope == "model" or self.target != "sparsity"

    def _check_target(self) -> None:
        """Exactly one target, in its range; and nothing beside it that contradicts it."""
        named = [name for name in TARGETS if vars(self)[name] is not None]
        if not named:
            object.__setattr__(self, "sparsity", DEFAULT_SPARSITY)
        for other in named[1:]:
            rule = f"is a second target beside {named[0]} = {vars(self)[named[0]]}"
            raise invalid(other, vars(self)[other], rule, f"Give one of {', '.join(TARGETS)}.")
        lowest, value = {"sparsity": 0, "speedup": 1}, vars(self)[self.target]
        highest = 1 if self.target == "sparsity" else math.inf
        if self.target == "sparsity" and isinstance(value, int | float) and 2 <= value < 100:
            rule = "is the fraction that goes, below 1"
            raise invalid("sparsity", value, rule, f"Did you mean {value / 100:g}? Choose a number in [0, 1).")
        check_number(self.target, value, lowest.get(self.target, 0), highest, below=True)
        if self.target not in lowest and value == 0:
            raise invalid(self.target, value, "must be above 0", "Choose what the packed model may take.")
        if self.target != "sparsity" and self.budget != "params":
            rule = f"is what sparsity is a fraction of, and the target is {self.target}"
            raise invalid("budget", self.budget, rule, "Leave it out.")
        own = {name: vars(self)[name] for name in ("native", "sprout_rank", "embedding_rank")}
        own |= {"units": self.may_go("blocks") and self.units}
        for field, value in own.items() if self.target in TIMED else ():
            if value:
                rule = f"has no measured price, and the target is {self.target}"
                raise invalid(field, value, rule, f"Leave {field} out, or give sparsity.")

    def _check_embedding(self) -> None:
        """The factors of the embedding pay out of the budget of the whole model, or they would count for nothing."""
        if self.embedding_rank is None:
            return
        check_integer("embedding_rank", self.embedding_rank, at_least=1)
        if not self.counts_model:
            rule = f"pays out of the budget of the whole model, and scope = {self.scope!r} leaves the embedding out"
            remedy = "Set scope='model', or parameters or megabytes as the target."
            raise invalid("embedding_rank", self.embedding_rank, rule, remedy)

    @property
    def removed(self) -> float | None:
        """The one sparsity that is left of several; None where the target is another one."""
        assert not isinstance(self.sparsity, Collection)
        return self.sparsity

    @property
    def largest(self) -> float | None:
        """The sparsity of the largest of the models that are trained; None where the target is another one."""
        return self.removed if self.dormant is None else self.dormant

    @property
    def smaller(self) -> tuple[float, ...]:
        """The sparsities of the smaller ones inside of it, in ascending order."""
        core = () if self.dormant is None or self.removed is None else (self.removed,)
        return (*core, *self.sizes)

    @property
    def largest_teaches(self) -> bool:
        """Whether the largest of several sizes teaches the smaller ones."""
        return self.distillation is None

    def _check_forms(self) -> None:
        """What makes several models of different shapes, and what has one form only."""
        own = {"native": self.native, "sprout_rank": self.sprout_rank, "units": self.may_go("blocks") and self.units}
        if self.dormant is not None:
            check_dormant(self.dormant, self.removed)
            refuse_two_forms("dormant", own)
        if self.sizes:
            check_sizes(self.sizes, self.removed)
            refuse_two_forms("sizes", own | {"dormant": self.dormant})

    def may_go(self, kind: str) -> bool:
        """Whether units of a kind may go, one of `UNITS`."""
        return kind in (PRESETS[self.units] if isinstance(self.units, str) else self.units)

    @classmethod
    def preset(cls, name: str, **fields: Any) -> "DendriticConfig":
        """A recipe by name, with fields of one's own; what is returned is an ordinary config that shows all of them.

        * `"speed"`: whole units go, chosen by the multiply-accumulates that they cost, so that every layer that is left
          is a plain smaller one.
        * `"high-sparsity"`: 80 % of the parameters, by a ranking that may empty whole layers, with an early freeze and
          a teacher. Train with a learning rate two to four times that of fine-tuning.

        >>> config = DendriticConfig.preset("high-sparsity", sparsity=0.9)
        >>> config == DendriticConfig(sparsity=0.9, floor=0.0, end=0.4, distillation=1.0)
        True

        Raises:
            DendriticError: there is no preset of that name, or a field is refused.
        """
        check_choice("preset", name, tuple(RECIPES))
        recipe = RECIPES[name]
        if {*fields} & {*TARGETS} - {"sparsity"}:  # such a target says what is counted
            recipe = {field: value for field, value in recipe.items() if field not in ("budget", "sparsity")}
        return cls(**{**recipe, **fields})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` is its inverse."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Any) -> "DendriticConfig":
        """Build from `to_dict`'s form. Raises `DendriticError` for a field that this version does not have."""
        if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise invalid("config", fields, "must be a JSON object", f"Its fields are {names}.")
        return cls(**fields)

    def to_json(self) -> str:
        """The dict form as JSON text; `from_json` is its inverse."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "DendriticConfig":
        """Build from `to_json`'s form. Raises `DendriticError` for text that is not JSON, and as `from_dict` does."""
        try:
            fields = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise invalid("text", excerpt(text), f"is not JSON ({error})", "Pass what to_json() returned.") from None
        return cls.from_dict(fields)


def _units(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str) and value in PRESETS:
        return value
    if isinstance(value, list | tuple | set) and value and all(isinstance(item, str) for item in value):
        if set(value) <= set(UNITS):
            return tuple(unit for unit in UNITS if unit in value)
    rule = f"must be {' or '.join(map(repr, PRESETS))}, or a list of {', '.join(UNITS)}"
    remedy = near(value, [*PRESETS, *UNITS]) if isinstance(value, str) else ""
    raise invalid("units", value, rule, f"{remedy}Choose one of them.")


def _allocation(value: Any) -> str | dict[str, float]:
    if isinstance(value, Mapping) and value and all(isinstance(name, str) for name in value):
        for name, kept in value.items():
            check_number(f"allocation[{name!r}]", kept, 0, 1)
        return {name: float(kept) for name, kept in value.items()}
    if isinstance(value, str) and value in ALLOCATIONS:
        return value
    rule = f"must be {' or '.join(map(repr, ALLOCATIONS))}, or the fraction that each keeps, by name"
    remedy = "Search one with search_allocation(model, batches), or name one of them."
    raise invalid("allocation", value, rule, remedy)
