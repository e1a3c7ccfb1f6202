"""A new stock model made into the one that a layout was recorded on, and the layout in the names of that model.

Whatever rebuilds a compressed model begins here: what was exchanged before anything was injected is exchanged again.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from ...layout.layout import Layout
from ...layout.strict_json import bad
from ...structure.input_embedding import fault_of, put_factors_
from .build import renamed

Model = TypeVar("Model", bound=nn.Module)
Resolve = Callable[[str], str | None]


def fit_(model: Model, recorded: Layout, resolver: Callable[[Model], Resolve], *, initial: bool = False) -> Layout:
    """Put the factors of its embedding into a stock model, where the layout records some; on the device of the model.

    Args:
        resolver: for a model, how the modules that the layout names are called in it, as `renamed` takes it.
        initial: whether the factors have the values that come nearest to the embedding, and not any.

    Returns:
        The layout in the names of `model`.

    Raises:
        CheckpointError: the embedding cannot be two factors of that rank, or as `renamed`; the model is then to be
            thrown away.
    """
    resolve = resolver(model)
    ranks = {new: rank for name, rank in recorded.factored.items() if (new := resolve(name)) is not None}
    for name, rank in ranks.items():
        fault = fault_of(model, name, rank)
        if fault:
            raise bad("quantization_config.factored", {name: rank}, fault)
    put_factors_(model, ranks, initial=initial)
    return renamed(recorded, resolver(model) if ranks else resolve)


def same_names(model: nn.Module) -> Resolve:
    """The names in a layout are those of the model.

    Raises:
        CheckpointError: from what is returned, for a name that is not that of a module.
    """
    modules = {name for name, _ in model.named_modules()}

    def resolve(name: str) -> str:
        if name not in modules:
            raise bad("modules", name, f"must be a module of {type(model).__name__}")
        return name

    return resolve
