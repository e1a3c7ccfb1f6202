"""How the inputs of each target are divided into segments: units of groups, hidden units, or neighbouring inputs."""

from torch import nn

from ..config import DendriticConfig
from ..errors import invalid
from ..functional.importance import IMPORTANCE
from ..functional.tiles import largest_divisor
from ..layout.records import Group, Segments
from ..nn import PrunableLayer, RecurrentLayer, can_sprout, states, widths


def segments_of(name: str, layer: PrunableLayer, group: Group | None, config: DendriticConfig) -> Segments:
    """The units of a group that can be cut, held by its first consumer; elsewhere about `segment_size` synapses per
    neuron, if inputs may go. Hidden units of a recurrent layer.

    Args:
        name: that of the layer.
        group: what its inputs belong to, if they do.

    Raises:
        DendriticError: the importance needs what a recurrent layer does not tell.
    """
    activity = IMPORTANCE[config.importance].needs_activity
    if isinstance(layer, RecurrentLayer):
        if activity:
            rule = f"{name} is recurrent: what its hidden units read is known only inside the kernel"
            remedy = "Choose another importance, or name it in exclude_modules."
            raise invalid("importance", config.importance, rule, remedy)
        return Segments(states(layer), layer.hidden_size)
    if config.native and group is None:
        return Segments(1, 1, activity)  # no stock config says that it reads less
    inputs, outputs = widths(layer)
    sprout = config.sprout_rank if group is None and can_sprout(layer, config.sprout_rank) else 0
    activity = activity or sprout > 0
    if group is not None and group.cut:
        return Segments(1, group.units if name == group.host else 0, activity)
    if not config.may_go("inputs"):
        return Segments(1, 0, activity)
    kernel = layer.weight[0, 0].numel()
    block = _block(group) if group else 1
    size = largest_divisor(inputs, max(1, config.segment_size // kernel), multiple_of=block)
    arbors = largest_divisor(outputs, config.arbors)
    return Segments(arbors=arbors, segments=inputs // size, activity=activity, sprout=sprout)


def may_go(group: Group, config: DendriticConfig) -> bool:
    """Whether units of a group may go: where it cannot be cut, they can as inputs of their one consumer only."""
    return config.may_go(group.kind) and (group.cut or config.may_go("inputs"))


def _block(group: Group) -> int:
    """How many neighbouring inputs of its one consumer belong to one unit of a group that is not cut."""
    return max(run.size for run in group.consumers[0].runs)


def why_no_sprout(layer: PrunableLayer, reader: bool) -> str:
    """Why a layer has none although the config asks for it; `reader`: whether its inputs belong to a group."""
    if isinstance(layer, nn.Conv2d | RecurrentLayer):
        return f"it is a {type(layer).__name__}"
    if reader:
        return "the inputs that are pruned of it die with their producers, so that nothing is left to grow from"
    return "it would cost more than the layer"
