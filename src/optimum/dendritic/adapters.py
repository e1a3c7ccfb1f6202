"""PEFT adapters and pruning: which of the two comes first."""

import sys

from torch import nn

from .errors import invalid


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model that PEFT has wrapped or put adapters into.

    PEFT freezes the weights below its adapters, so that what remains to prune while training would be the adapters.

    Raises:
        DendriticError: `model` is a `PeftModel` or has a layer with an adapter.
    """
    peft = sys.modules.get("peft")  # whoever made such a model has imported it
    if peft is None:
        return
    layers = sys.modules["peft.tuners.tuners_utils"].BaseTunerLayer
    adapted = [name for name, module in model.named_modules() if isinstance(module, layers)]
    if adapted or isinstance(model, peft.PeftModel):
        rule = f"carries PEFT adapters ({', '.join(adapted[:3]) or 'around it'}), below which every weight is frozen"
        remedy = (
            "Merge them first, model = model.merge_and_unload().requires_grad_(True), "
            "or prune and pack the model and put adapters on the packed one."
        )
        raise invalid("model", type(model).__name__, rule, remedy)
