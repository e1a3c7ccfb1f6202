"""Which Auto class of transformers builds an architecture, and models loaded by it."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ...errors import invalid
from ...unofficial import classes_of

# They also know classes that another Auto class names better: AutoModelForCausalLM, AutoModel
VAGUE = ("AutoModelForPreTraining", "AutoModelForTextEncoding")


def auto_class_for(config: PretrainedConfig) -> Any:
    """The Auto class that builds the architecture that `config` names.

    Raises:
        DendriticError: none does.
    """
    architectures = config.architectures or []
    auto_classes = {key: value for key, value in vars(modeling_auto).items() if key.startswith("AutoModel")}
    own = config.to_dict().get("auto_map", {})  # code of its own repository; loading it asks for trust
    known = [key for key in own if key in auto_classes]
    for key in sorted(known, key=lambda key: own[key].rpartition(".")[2] not in architectures):
        return auto_classes[key]
    for _, auto_class in sorted(auto_classes.items(), key=lambda item: item[0] in VAGUE):
        if any(model_class.__name__ in architectures for model_class in classes_of(auto_class, type(config))):
            return auto_class
    remedy = "Import the module that registers it with the Auto classes."
    raise invalid("architectures", architectures, f"no Auto class knows it ({config.model_type!r})", remedy)


def load(name: str, *, subfolder: str = "", dtype: str = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in a folder or on the Hub, or in a subfolder there, built as the architecture that its config names.

    Raises:
        DendriticError: no Auto class builds it.
        OSError, ValueError, RuntimeError: it is not there, or its files do not fit; from transformers.
    """
    place = {"subfolder": subfolder, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name, **place)
    return auto_class_for(config).from_pretrained(name, config=config, dtype=dtype, **place)
