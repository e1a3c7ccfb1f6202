"""What a packed model keeps apart: a larger form of itself, the awake one, that is used for the inputs that need it.

The core is the packed model, as it stands, loads and exports. The awake model has every unit of the core and those that
are dormant besides; what has the same shape in both is shared. It is used in one of two ways: whole, for the inputs of
which the core is unsure, or as packs of the layers that gather their inputs, for the rows whose gate fires.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..efficiency.wakeful import ATTRIBUTE, Wakeful
from ..errors import invalid
from ..functional.channels import laid_out_like
from ..functional.dormant import MOST_PACKS, inside
from ..unofficial import tensors_in
from .packed import PackedLayer
from .weight import WeightLayer, widths

Grid = tuple[Tensor, ...]  # for each axis of a tensor of the awake model the ascending entries that the core has, too


class Packs:
    """The dormant inputs of one layer of the core, in at most `MOST_PACKS` packs.

    Attributes:
        inputs: For each pack the ascending positions in the tensor that the layer reads.
        weights: For each pack its weights for the rows of the core, `[rows, inputs, *kernel]`.
        thresholds: For each pack the norm above which it is computed.
        norms: For each pack the quantiles of the norms that calibration saw; None before it.
    """

    def __init__(self, inputs: list[Tensor], weights: list[Tensor], norms: list[Tensor] | None = None) -> None:
        self.inputs, self.weights, self.norms = inputs, weights, norms
        self.thresholds = [float("inf")] * len(inputs)


class Dormant(Wakeful):
    """What is dormant in a packed model, and when it wakes.

    Attributes:
        awake: The model with all that is dormant, on tensors of its own where they differ from those of the core.
        grids: Where the tensors of the core stand in those of the awake model, by name, as far as that is known.
        segment_size: About how many inputs of a layer belong together.
        margins: Quantiles of how sure the core was in calibration; None before it.
        norms: Those of the norms of each pack, by the name of the layer.
        by: How it wakes, one of `MODES` of `waking.py`.
        threshold: The margin below which an input wakes the whole model.
        packs: The packs of the layers that have some, by name; empty unless that is `"rows"`.
    """

    def __init__(self, awake: nn.Module, grids: Mapping[str, Grid], segment_size: int) -> None:
        self.awake, self.grids, self.segment_size = awake, dict(grids), segment_size
        self.margins: Tensor | None = None
        self.norms: dict[str, list[Tensor]] = {}
        self.by, self.threshold = "doubt", -float("inf")
        self.packs: dict[str, Packs] = {}
        self.shared: set[int] = set()  # identities of the tensors that it uses of the core

    def own(self) -> dict[str, Tensor]:
        """The tensors of the awake model that the core does not share, by name."""
        state = self.awake.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if id(tensor) not in self.shared}

    def tensors(self) -> dict[str, Tensor]:
        packs = {f"{n}.{i}": w for n, each in self.packs.items() for i, w in enumerate(each.weights)}
        return {f"dormant.{name}": tensor for name, tensor in {**self.own(), **packs}.items()}

    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.own().values() if isinstance(tensor, nn.Parameter))

    def modules(self) -> Iterator[nn.Module]:
        return self.awake.modules()

    def follow_(self, model: nn.Module) -> None:
        """Go to the device and the dtype of the core, which moves without what is not a module of it."""
        like = next(p for p in model.parameters() if p.is_floating_point())
        own = next((p for p in self.awake.parameters() if id(p) not in self.shared and p.is_floating_point()), like)
        if (own.device, own.dtype) != (like.device, like.dtype):
            self.awake.to(like.device, like.dtype)
            for packs in self.packs.values():
                packs.inputs = [index.to(like.device) for index in packs.inputs]
                packs.weights = [weight.to(like.device, like.dtype) for weight in packs.weights]

    def share_(self, model: nn.Module) -> None:
        """Let the awake model use every tensor of the core that is equal to its own."""
        theirs = dict(model.named_modules())
        self.shared = set()
        for name, module in self.awake.named_modules():
            if name not in theirs:
                continue
            for mine, core in zip(tensors_in(module), tensors_in(theirs[name]), strict=True):
                for key, tensor in mine.items():
                    known = core.get(key)
                    if tensor is not None and known is not None and _equal(tensor, known):
                        mine[key] = known
                        self.shared.add(id(known))
        for parameter in self.awake.parameters():
            if id(parameter) not in self.shared:
                parameter.requires_grad_(False)
        self.awake.eval()


@torch.no_grad()
def holding(core: nn.Module, awake: nn.Module, grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Those of the grids on which the awake model has just what the core has."""
    smaller, larger = core.state_dict(), awake.state_dict()
    known = {name: grid for name, grid in grids.items() if name in smaller and name in larger}
    return {name: grid for name, grid in known.items() if holds(smaller[name], larger[name], grid)}


def holds(core: Tensor, awake: Tensor, grid: Grid) -> bool:
    """Whether a tensor has on the grid just what that of the core has."""
    if len(grid) > awake.dim() or any(len(e) and int(e[-1]) >= n for e, n in zip(grid, awake.shape, strict=False)):
        return False
    part = awake[inside(awake.shape, grid).to(awake.device)]
    return part.numel() == core.numel() and torch.equal(part, core.flatten())


def dormant_of(model: nn.Module) -> Dormant:
    """What is dormant in a packed model. Raises `DendriticError` where that is nothing."""
    found = vars(model).get(ATTRIBUTE)
    if found is None:
        remedy = "Compress it with DendriticConfig(dormant=...), or load what was saved with load_dormant_(model, …)."
        raise invalid("model", type(model).__name__, "has nothing dormant", remedy)
    return found


def packable(model: nn.Module, dormant: Dormant) -> dict[str, tuple[Grid, Int[Tensor, " dormant"]]]:
    """The layers of the core that read less than they could of a tensor that has all of it: for each the grid of its
    weight, rows first, and the ascending inputs that are dormant, among those of the awake layer.

    Units of groups are none of them: a head, a neuron or a channel that sleeps is in no tensor of the core.
    """
    found = {}
    for name, awake in dormant.awake.named_modules():
        grid = dormant.grids.get(f"{name}.weight")
        if grid is None or not isinstance(awake, WeightLayer):
            continue
        core = model.get_submodule(name)
        assert isinstance(awake, WeightLayer)
        transposed = isinstance(awake, Conv1D)
        rows, columns = (grid[1], grid[0]) if transposed else grid[:2]
        read = widths(awake)[0]
        one = all(len(layer.form.arbors) == 1 for layer in (core, awake) if isinstance(layer, PackedLayer))
        if not isinstance(core, PackedLayer) or not one or core.form.inputs != _arriving(awake):
            continue
        rest = torch.ones(read, dtype=torch.bool)
        rest[columns] = False
        if bool(rest.any()):
            found[name] = ((rows, columns), rest.nonzero().flatten())
    return found


@torch.no_grad()
def packs_of(model: nn.Module, dormant: Dormant) -> dict[str, Packs]:
    """The dormant inputs of the layers that have some, packed."""
    found = {}
    for name, ((rows, _), rest) in packable(model, dormant).items():
        awake = dormant.awake.get_submodule(name)
        assert isinstance(awake, WeightLayer)
        weight = awake.weight.t() if isinstance(awake, Conv1D) else awake.weight
        device = weight.device
        index = awake.reads() if isinstance(awake, PackedLayer) else None
        parts = rest.tensor_split(min(MOST_PACKS, max(1, len(rest) // dormant.segment_size)))
        cut = [weight.index_select(0, rows.to(device)).index_select(1, part.to(device)) for part in parts]
        weights = [laid_out_like(part, weight) for part in cut]
        inputs = [part.to(device) if index is None else index[0][part.to(device)] for part in parts]
        found[name] = Packs(inputs, weights, dormant.norms.get(name))
    return found


def _arriving(layer: nn.Module) -> int:
    return layer.form.inputs if isinstance(layer, PackedLayer) else widths(layer)[0]


def _equal(mine: Tensor, core: Tensor) -> bool:
    return mine is core or (mine.shape == core.shape and mine.dtype == core.dtype and torch.equal(mine, core))
