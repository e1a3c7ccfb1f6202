"""The house: every module imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import optimum.dendritic

HOUSE = Path(optimum.dendritic.__file__).parent
FLOORS = [  # bottom to top; the rooms of one floor do not import each other, but the files of a room may
    {"errors", "schedules", "unofficial", "process_state"},
    {"efficiency", "config_checks", "distributed"},
    {"config_forms"},
    {"config"},
    {"metrics"},
    {"layout"},
    {"functional"},
    {"nn"},
    {"state", "undo"},
    {"structure"},
    {"stock_config", "train_steps", "inspection", "distillation", "runtimes"},
    {"sizes"},
    {"search"},
    {"inject", "one_shot", "compress"},
    {"pruner", "wake"},
    {"huggingface.checkpoint"},
    {"huggingface.card"},
    {"huggingface.hub"},
    {"huggingface.trainer"},
    {"huggingface"},
    {"cli"},
    {"__init__"},
]
ALONE = "efficiency"  # imports nothing of the rest but these, so that it measures any model
COMMON = ("errors", "process_state")
FILES = {path: ".".join(path.relative_to(HOUSE).with_suffix("").parts) for path in sorted(HOUSE.rglob("*.py"))}
ROOMS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    """The room that a module stands in: the longest of those whose name its own begins with."""
    return max((name for name in ROOMS if f"{module}.".startswith(f"{name}.")), key=len)


def imports(path: Path) -> set[str]:
    """What a file imports from this package, wherever in the file, as dotted names below it."""
    package, found = FILES[path].split(".")[:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
            parts = [[*base, alias.name] for alias in node.names]
            found |= {".".join(part if (HOUSE.joinpath(*part).with_suffix(".py")).exists() else base) for part in parts}
            continue
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        else:
            continue
        found |= {name.removeprefix("optimum.dendritic").lstrip(".") for name in names if is_ours(name)}
    return {name or "__init__" for name in found}


def is_ours(name: str) -> bool:
    return f"{name}.".startswith("optimum.dendritic.")


@pytest.mark.parametrize("path", FILES, ids=FILES.get)
def test_a_module_imports_only_from_floors_below(path):
    own = room(FILES[path])
    for imported in map(room, imports(path)):
        assert imported == own or ROOMS[imported] < ROOMS[own], f"{own} imports {imported}"
        assert imported in (own, *COMMON) or own != ALONE


def test_every_file_has_a_room_and_every_room_has_files():
    assert sum(map(len, FLOORS)) == len(ROOMS)
    assert {room(module) for module in FILES.values()} == ROOMS.keys()


def test_the_reader_of_imports_sees_them():
    assert {"errors", "nn.pack_model", "layout.layout", "nn", "state"} <= imports(HOUSE / "compress.py")
    assert {"layout.records", "nn.surgery", "nn.injected"} <= imports(HOUSE / "nn" / "packed.py")
    assert "huggingface.card.text" in imports(HOUSE / "huggingface" / "card" / "write.py")


def test_inside_nn_packed_stands_on_injected():
    assert "nn.packed" not in imports(HOUSE / "nn" / "injected.py")


def test_data_needs_no_torch():
    for name in (
        "errors",
        "schedules",
        "config",
        "config_checks",
        "config_forms",
        "layout/strict_json",
        "layout/records",
        "layout/left",
        "layout/layout",
        "cli/requests",
        "cli/arguments",
    ):
        roots = set()
        for node in ast.walk(ast.parse((HOUSE / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots.add(str(node.module).split(".")[0])
        assert not roots & {"torch", "transformers", "jaxtyping"}, name
