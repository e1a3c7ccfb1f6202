"""A user's own optimizer, built before the callback has injected the model."""

from torch import nn
from torch.optim import Optimizer

from ...errors import invalid
from ...nn import DendriticWeight
from ...state import dendritic_layers


def check_learns_sprouts(model: nn.Module, optimizer: Optimizer) -> None:
    """Injection leaves parameters what they are, so any optimizer goes on with them; only sprouts add new ones.

    Raises:
        DendriticError: the optimizer has the weight of a layer and not its sprout, which would never learn.
    """
    learnt = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, layer in dendritic_layers(model).items():
        if not isinstance(layer, DendriticWeight) or layer.sprout is None or id(layer.weight) not in learnt:
            continue
        if any(id(parameter) not in learnt for parameter in layer.sprout.parameters()):
            rule = f"was built before {name} had its sprout, and does not train it"
            remedy = "Call inject_(model, config) first, build the optimizer then, and pass both to the Trainer."
            raise invalid("optimizer", type(optimizer).__name__, rule, remedy)
