"""The public surface: exactly these names, each documented, and nothing else is promised."""

import ast
import inspect
from pathlib import Path

import pytest
from helpers.compare import every

import optimum.dendritic

PUBLIC = [
    "CheckpointError",
    "DendriticCallback",
    "DendriticConfig",
    "DendriticError",
    "Distillation",
    "EfficiencyReport",
    "Pruning",
    "PushError",
    "Update",
    "Wiring",
    "compress_",
    "describe",
    "distill_",
    "distillation_loss",
    "export_onnx",
    "inject_",
    "last_checkpoint",
    "mask_",
    "measure",
    "prune_",
    "push_to_hub",
    "score_",
    "trace_wiring",
    "update_",
    "update_plan",
]
IN_PLACE = ["compress_", "distill_", "inject_", "mask_", "prune_", "score_", "update_"]


def exports() -> list[tuple[str, str | None]]:
    """(name, the name it is re-exported as) of every import in `__init__.py`."""
    tree = ast.parse(Path(optimum.dendritic.__file__).read_text())
    return [
        (alias.name, alias.asname) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


def test_exactly_the_public_names_are_exported_explicitly():
    assert sorted(name for name, _ in exports()) == PUBLIC
    assert every(name == exported for name, exported in exports())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    documented = getattr(optimum.dendritic, name)
    assert documented.__doc__ and not documented.__doc__.startswith(f"{name}("), "dataclasses invent a docstring"
    if inspect.isclass(documented):
        public = [m for n, m in vars(documented).items() if inspect.isfunction(m) and not n.startswith("_")]
        inherited = {n for base in documented.__mro__[1:] for n in vars(base)}
        assert every(method.__doc__ for method in public if method.__name__ not in inherited)


def test_an_underscore_at_the_end_means_in_place():
    assert [name for name in PUBLIC if name.endswith("_")] == IN_PLACE
    for name in IN_PLACE:
        assert next(iter(inspect.signature(getattr(optimum.dendritic, name)).parameters)) == "model"


def test_one_except_clause_catches_every_error_of_ours():
    assert issubclass(optimum.dendritic.CheckpointError, optimum.dendritic.DendriticError)
    assert issubclass(optimum.dendritic.DendriticError, ValueError)


def test_optimum_stays_a_namespace_for_others():
    house = Path(optimum.dendritic.__file__).parent
    for folder in (house.parent, house.parent / "commands", house.parent / "commands" / "register"):
        assert folder.is_dir() and not (folder / "__init__.py").exists()
