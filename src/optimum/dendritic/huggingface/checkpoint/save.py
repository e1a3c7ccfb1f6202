"""A model as the files that the Hub is to have: weights and layout, processor, and the stub for `trust_remote_code`."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel

from ...efficiency.wakeful import wakeful_of
from ...errors import CheckpointError, invalid
from ...state import layout_of
from ...unofficial import classes_of
from .auto_class import auto_class_for
from .dormant import save_dormant
from .rebuild import check_saved

STUB = "loading_dendritic.py"
STUB_TEXT = '''"""Lets `trust_remote_code=True` load this model: it imports the loader."""

try:
    import optimum.dendritic  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("This model is loaded by optimum-dendritic: pip install optimum-dendritic") from error

import transformers
{classes}'''
CLASS_TEXT = '''

class {name}(transformers.{name}):
    """The stock class; the layout in config.json tells the loader the shapes of its layers."""
'''


def save(model: PreTrainedModel, folder: Path, *, processor: Any = None, remote_code: bool = False) -> None:
    """Save what `from_pretrained` needs, and make sure that it would load.

    Raises:
        DendriticError: `remote_code` for a model whose class is not from transformers.
        CheckpointError: the saved files would not load.
    """
    model.save_pretrained(folder)
    make_loadable(model, folder)
    if processor is not None:
        processor.save_pretrained(folder)
    if remote_code:
        _add_stub(model, folder)


def make_loadable(model: PreTrainedModel, folder: Path) -> None:
    """Save again under the names of the modules where the original format would fuse tensors that packing made unequal;
    and beside it what is dormant, if anything is.

    Raises:
        CheckpointError: the files would not load that way either.
    """
    try:
        check_saved(model, folder)
    except CheckpointError:
        model.save_pretrained(folder, save_original_format=False)
        check_saved(model, folder)
    if wakeful_of(model) is not None:
        save_dormant(model, folder)


def check_remote_code(model: PreTrainedModel) -> None:
    """Raises `DendriticError` for a model whose class a stub cannot import, or that needs no stub."""
    layout = layout_of(model)
    if layout is not None and layout.packed and layout.config.native:
        rule = "the native form loads in stock transformers, without this package"
        raise invalid("remote_code", True, rule, "Push without it.")
    if not type(model).__module__.startswith("transformers."):
        rule = f"{type(model).__name__} is not a class of transformers, so a stub cannot import it"
        raise invalid("remote_code", True, rule, "Push without it; loading then needs its module and one import.")


def _add_stub(model: PreTrainedModel, folder: Path) -> None:
    """Name a class for the model's Auto class, and for `AutoModel` its body, and write the file that defines both.

    The classes are subclasses under the same names: transformers marks a class that it loaded so as custom code, and
    must not mark its own.
    """
    own, auto_class = type(model), auto_class_for(model.config)
    classes = {auto_class.__name__: own.__name__}
    bodies = classes_of(AutoModel, type(model.config))
    if len(bodies) == 1:
        classes.setdefault("AutoModel", bodies[0].__name__)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["auto_map"] = {auto: f"{STUB.removesuffix('.py')}.{name}" for auto, name in classes.items()}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    text = "".join(CLASS_TEXT.format(name=name) for name in sorted(set(classes.values())))
    (folder / STUB).write_text(STUB_TEXT.format(classes=text))
