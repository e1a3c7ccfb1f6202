"""The model that a Trainer hands to its callback: dense, injected for this config, packed by it, or none of these."""

from torch import nn
from transformers.utils import logging

from ...config import DendriticConfig
from ...errors import invalid
from ...state import layout_of

logger = logging.get_logger(__name__)


def is_done(model: nn.Module, config: DendriticConfig) -> bool:
    """Whether the model is what this config makes of a dense one: it is trained, evaluated and saved as any other.

    Raises:
        DendriticError: it was packed with another config.
    """
    layout = layout_of(model)
    if layout is None or not layout.packed:
        return False
    if layout.config != config:
        former = layout.config.to_dict()
        changed = {k: v for k, v in config.to_dict().items() if v != former[k]}
        rule = f"the model is packed already, with { ({k: former[k] for k in changed}) }, and is not packed twice"
        remedy = "Start from the dense model, or leave the callback out to train the packed one as it is."
        raise invalid("config", changed, rule, remedy)
    logger.info(f"{type(model).__name__} is packed with this config already: DendriticCallback leaves it as it is.")
    return True


def check_injected(model: nn.Module, config: DendriticConfig, *, saw_init: bool) -> None:
    """Check that a model which is to be trained has segments, and which of them this config asks for.

    Args:
        saw_init: whether the callback was told that the Trainer is built, when it injects.

    Raises:
        DendriticError: it is still dense, or was injected with another config.
    """
    layout = layout_of(model)
    if layout is None and saw_init:
        rule = "was made by model_init after the callback had injected the first one"
        remedy = "Inject inside: model_init=lambda: inject_(make_model(), config)."
        raise invalid("model", type(model).__name__, rule, remedy)
    if layout is None:
        rule = "was not injected: trainer.add_callback comes after the Trainer has been built"
        remedy = "Pass Trainer(..., callbacks=[DendriticCallback(config)])."
        raise invalid("model", type(model).__name__, rule, remedy)
    if not layout.packed and layout.config != config:
        rule = "differs from the config that the model was injected with"
        raise invalid("config", config, rule, "Use the same config, or start from the dense model.")
