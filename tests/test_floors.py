"""The house: every module imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import optimum.dendritic

HOUSE = Path(optimum.dendritic.__file__).parent
FLOORS = [  # bottom to top; within a floor nobody imports anybody, but inside a package (`name.`) its own files may
    {"errors", "schedules", "collectives"},
    {"config", "strict", "divergence"},
    {"records"},
    {"layout"},
    {"adapters", "plan", "shards", "surgery", "costs", "least_squares"},
    {"segments"},
    {"importance"},
    {"nn."},
    {"inputs", "record", "packing", "targets", "selection"},
    {"probing", "distill", "calibration", "uniform", "vanilla", "unshard", "layer_costs"},
    {"dye", "trials"},
    {"wiring", "dials"},
    {"inject"},
    {"prune", "reconstruct"},
    {"description", "native"},
    {"compress", "oneshot", "density"},
    {"figures", "export"},
    {"efficiency."},
    {"metrics"},
    {"huggingface."},
    {"cli."},
    {""},
]
ALONE = "efficiency."  # imports nothing of the rest, so that it measures any model
FILES = {path: path.relative_to(HOUSE).with_suffix("").parts for path in sorted(HOUSE.rglob("*.py"))}


def room(parts: tuple[str, ...]) -> str:
    """`a` for a module, `a.` for everything in the package `a`, the empty string for the top `__init__`."""
    if parts == ("__init__",):
        return ""
    return f"{parts[0]}." if len(parts) > 1 else parts[0]


def imports(path: Path) -> set[tuple[str, ...]]:
    """What a file imports from this package, wherever in the file, as paths below it."""
    package, found = FILES[path][:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ["optimum", "dendritic", *package[: len(package) - node.level + 1]]
            modules = [node.module.split(".")] if node.module else [[alias.name] for alias in node.names]
            names = [[*base, *module] for module in modules]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module).split(".")]
        else:
            continue
        found |= {tuple(name[2:]) or ("__init__",) for name in names if name[:2] == ["optimum", "dendritic"]}
    return found


def floor(name: str) -> int:
    return next(level for level, names in enumerate(FLOORS) if name in names)


def room_of_import(parts: tuple[str, ...]) -> str:
    return f"{parts[0]}." if (HOUSE / parts[0]).is_dir() else room(parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(FILES[path]))
def test_a_module_imports_only_from_floors_below(path):
    own = room(FILES[path])
    for imported in map(room_of_import, imports(path)):
        inside_its_package = imported == own and own.endswith(".")
        assert inside_its_package or floor(imported) < floor(own), f"{own} imports {imported}"
        assert own != ALONE or inside_its_package


def test_every_file_has_one_floor_and_every_floor_has_files():
    rooms = [name for names in FLOORS for name in names]
    assert len(rooms) == len(set(rooms)) and set(rooms) == {room(parts) for parts in FILES.values()}


def test_the_reader_of_imports_sees_them():
    below = {room_of_import(parts) for parts in imports(HOUSE / "compress.py")}
    assert {"errors", "inject", "prune", "layout", "nn."} <= below
    assert imports(HOUSE / "nn" / "packed.py") >= {("records",), ("surgery",), ("nn", "injected")}


def test_inside_nn_packed_stands_on_injected():
    assert ("nn", "packed") not in imports(HOUSE / "nn" / "injected.py")


def test_data_needs_no_torch():
    for name in ("errors", "schedules", "strict", "config", "records", "layout"):
        roots = set()
        for node in ast.walk(ast.parse((HOUSE / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots.add(str(node.module).split(".")[0])
        assert not roots & {"torch", "transformers", "jaxtyping"}, name
