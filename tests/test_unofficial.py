"""Every use of what other packages keep to themselves is listed in `optimum.dendritic.unofficial`, with its reason."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback
from transformers.quantizers.base import HfQuantizer

import optimum.dendritic
from optimum.dendritic.unofficial.table import PRIVATE, REPLACED, TRIED, Use

HOUSE = Path(optimum.dendritic.__file__).parent
FILES = {".".join(path.relative_to(HOUSE).with_suffix("").parts): path for path in sorted(HOUSE.rglob("*.py"))}
OWN_WORDS = {"_reverse"}  # ends of documented names of parameters
THEIRS = [
    nn.Linear(1, 1),
    nn.Conv2d(1, 1, 1),
    nn.LSTM(1, 1),
    nn.Parameter(torch.ones(1)),
    torch.optim.Optimizer,
    PreTrainedModel,
    PretrainedConfig(),
    AutoModel,
    HfQuantizer,
    Trainer,
    TrainerCallback,
    BaseTuner,
]


def is_private(name: str) -> bool:
    return re.fullmatch(r"__?[A-Za-z]\w*", name) is not None and not name.endswith("__")


THEIR_PRIVATE = {name for kind in THEIRS for name in dir(kind) if is_private(name)}
THEIR_METHODS = {
    name
    for kind in (kind if isinstance(kind, type) else type(kind) for kind in THEIRS)
    for name in dir(kind)
    if name[0] != "_" and callable(inspect.getattr_static(kind, name))
}


def defined(tree: ast.Module) -> set[str]:
    """Private names that a file gives to things of its own; those that overlay another package's are no longer its."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in names if is_private(name)} - THEIR_PRIVATE


def mentioned(tree: ast.Module) -> Iterator[str]:
    """Every private name that a file looks up, overlays, imports or spells out."""
    pieces = {piece for text in ast.walk(tree) if isinstance(text, ast.JoinedStr) for piece in text.values}
    for node in ast.walk(tree):
        if node in pieces:  # of an f-string, which begin anywhere in a word
            continue
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ClassDef):
            members = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            yield from (member.name for member in members if member.name in THEIR_PRIVATE)
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from node.value.split(".")


def unofficial(source: str) -> set[str]:
    """The private names of others that a file uses."""
    tree = ast.parse(source)
    return {name for name in mentioned(tree) if is_private(name)} - defined(tree) - OWN_WORDS


def replaced(source: str) -> set[str]:
    """Methods that a file sets on objects of others by itself: by assignment, or in their dict."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            found |= {n.value for n in ast.walk(node.args[1]) if isinstance(n, ast.Constant)} & THEIR_METHODS
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in THEIR_METHODS:
            found |= set() if isinstance(node.value, ast.Name) and node.value.id == "self" else {node.attr}
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found |= {node.slice.value} & THEIR_METHODS if isinstance(node.slice, ast.Constant) else set()
    return found


def test_every_private_name_is_listed_with_its_modules_and_none_without_a_use():
    files = {module: path for module, path in FILES.items() if module != "unofficial.table"}
    found = {(name, module) for module, path in files.items() for name in unofficial(path.read_text())}
    assert found == {(name, module) for name, use in PRIVATE.items() for module in use.modules}


def replaced_by_function(source: str) -> set[str]:
    """Methods that a file replaces by the function for it."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "replace_method_"]
    return {ast.literal_eval(call.args[1]) for call in ours}


def test_every_replaced_method_is_listed_and_replaced_in_one_place():
    here = replaced(FILES["unofficial.__init__"].read_text())
    elsewhere = {module: names for module, path in FILES.items() if (names := replaced(path.read_text()))}
    assert elsewhere.keys() == {"unofficial.__init__"}
    assert here.union(*(replaced_by_function(path.read_text()) for path in FILES.values())) == REPLACED.keys()


@pytest.mark.parametrize(("name", "use"), [*PRIVATE.items(), *REPLACED.items()])
def test_every_entry_says_why_and_until_when(name: str, use: Use):
    assert use.owner in TRIED and len(use.why) > 20 and len(use.until) > 10 and set(use.modules) <= FILES.keys()


def test_nobody_walks_frames_elsewhere():
    for module, path in FILES.items():
        walks = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert module == "unofficial.__init__" or not walks & {"f_back", "currentframe", "_getframe", "f_locals"}, (
            module
        )


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("model._modules", {"_modules"}),
        ("from torch._dynamo import config", {"_dynamo"}),
        ("import torch._inductor", {"_inductor"}),
        ("from torch.nn.modules.conv import _ConvNd", {"_ConvNd"}),
        ("vars(model).get('_original_forward')", {"_original_forward"}),
        ("importlib.import_module('torch._C')", {"_C"}),
        ("class Ours(nn.Module):\n  def _apply(self): pass", {"_apply"}),
        ("class Ours:\n  def __init__(self): self._own = 1\n  def read(self): return self._own + self._mine()\n"
         "  def _mine(self): return __name__", set()),
        ("self._flat_weights = []", {"_flat_weights"}),
    ],
)  # fmt: skip
def test_the_reader_sees_private_names(source: str, names: set[str]):
    assert unofficial(source) == names


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("model.forward = mine", {"forward"}),
        ("vars(trainer)['log'] = mine", {"log"}),
        ("setattr(model, 'forward', mine)", {"forward"}),
        ("model.training = False\nself.forward = mine", set()),
    ],
)
def test_the_reader_sees_replaced_methods(source: str, names: set[str]):
    assert replaced(source) == names
    assert replaced_by_function("replace_method_(trainer, 'train', mine)") == {"train"}
