"""The public surface: exactly these names, each documented, and nothing else is promised."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from helpers.compare import every
from helpers.pages import PAGES, ROOT, blocks

import optimum.dendritic

PUBLIC = [
    "Allocation",
    "CheckpointError",
    "DendriticCallback",
    "DendriticConfig",
    "DendriticError",
    "Distillation",
    "EfficiencyReport",
    "Pruner",
    "Pruning",
    "PushError",
    "Update",
    "Wiring",
    "calibrate_dormant_",
    "compress_",
    "describe",
    "distill_",
    "distillation_loss",
    "export_onnx",
    "from_config",
    "inject_",
    "last_checkpoint",
    "load",
    "load_at",
    "load_dormant_",
    "mask_",
    "measure",
    "prune_",
    "push_to_hub",
    "save",
    "save_dormant",
    "save_sizes",
    "score_",
    "search_allocation",
    "set_wake_rate",
    "target_sparsity",
    "trace_wiring",
    "update_",
    "update_plan",
    "wake_rate",
]
BESIDES = {  # public in modules of their own; docs/reference/api.md lists the same
    "optimum.dendritic.inspection.density": ["Density", "LayerDensity", "Side", "density"],
    "optimum.dendritic.inspection.figures": ["density_figure", "save_density_figure"],
    "optimum.dendritic.metrics": ["Accuracy", "Efficiency", "F1", "accuracy"],
    "optimum.dendritic.runtimes.executorch": ["export_executorch"],
    "optimum.dendritic.runtimes.gguf": ["export_gguf"],
    "optimum.dendritic.runtimes.litert": ["export_litert"],
    "optimum.dendritic.runtimes.nir": ["export_nir"],
    "optimum.dendritic.runtimes.int8": ["quantized"],
    "optimum.dendritic.runtimes.openvino": ["export_openvino"],
    "optimum.dendritic.runtimes.plain_linears": ["with_plain_linears"],
    "optimum.dendritic.runtimes.vllm": ["export_vllm"],
}
IN_PLACE = [
    "calibrate_dormant_",
    "compress_",
    "distill_",
    "inject_",
    "load_dormant_",
    "mask_",
    "prune_",
    "score_",
    "update_",
]
HOUSE = Path(optimum.dendritic.__file__).parent
TEXTS = {page: page.read_text() for page in PAGES}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))  # those in examples/benchmarks are ours and may use what is private


def exports() -> list[tuple[str, str | None]]:
    """(name, the name it is re-exported as) of every import in `__init__.pyi`."""
    tree = ast.parse(Path(optimum.dendritic.__file__).with_suffix(".pyi").read_text())
    return [
        (alias.name, alias.asname) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


def test_exactly_the_public_names_are_exported_explicitly():
    assert sorted(name for name, _ in exports()) == PUBLIC
    assert every(name == exported for name, exported in exports())


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, optimum.dendritic; print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def imports(code: str) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that some Python code imports from this package; no name for a whole module."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        yield from (each for each in found if f"{each[0]}.".startswith("optimum.dendritic."))


def is_public(module: str, name: str) -> bool:
    return name in ["", *PUBLIC] if module == "optimum.dendritic" else name in BESIDES.get(module, ())


def test_the_documentation_lists_what_is_public_besides():
    text = TEXTS[ROOT / "docs/reference/api.md"]
    table = re.search(r"<!-- public -->\n(.*?)<!-- /public -->", text, re.DOTALL)
    assert table is not None
    rows = [re.findall(r"`([\w.]+)`", line) for line in table.group(1).splitlines()[2:]]
    assert {module: sorted(names) for module, *names in rows} == BESIDES


def test_every_field_of_the_config_is_documented():
    """With its default, in the order of the fields; add the row that is missing to docs/reference/config.md."""
    text = TEXTS[ROOT / "docs/reference/config.md"]
    table = re.search(r"<!-- fields -->\n(.*?)<!-- /fields -->", text, re.DOTALL)
    assert table is not None
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.group(1).splitlines()[2:]]
    assert every(len(row) == 4 for row in rows), "field, default, effect, when to change it"
    documented = [(name.strip("`"), ast.literal_eval(default.strip("`"))) for name, default, *_ in rows]
    fields = dataclasses.fields(optimum.dendritic.DendriticConfig)
    assert documented == [(field.name, field.default) for field in fields]


def test_the_documentation_and_the_examples_name_only_what_is_public():
    codes = {f"{page}, {b.line}": b.code for page in PAGES for b in blocks(page) if b.language == "python"}
    assert len(codes) > 30 and len(EXAMPLES) > 3
    codes |= {path.name: path.read_text() for path in EXAMPLES}
    for place, code in codes.items():
        for module, name in imports(code):
            assert is_public(module, name), f"{place}: {module} {name}"
    modules = [*BESIDES, *(f"optimum.dendritic.{name}" for name in PUBLIC)]
    dotted = {name for text in TEXTS.values() for name in re.findall(r"optimum\.dendritic(?:\.\w+)+", text)}
    assert "optimum.dendritic.metrics" in dotted and dotted <= set(modules)


def test_what_the_documentation_calls_is_public():
    """A function or class of ours that is shown with its parenthesis, in a block of code or in a sentence."""
    trees = [ast.parse(path.read_text()) for path in HOUSE.rglob("*.py")]
    ours = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    named = {name for text in TEXTS.values() for name in re.findall(r"(?<![\w.])([A-Za-z]\w*)\(", text)}
    made = {node.name for code in python_trees() for node in ast.walk(code) if isinstance(node, ast.FunctionDef)}
    called = (named & ours) - made
    assert {"compress_", "density"} <= called
    assert called <= {*PUBLIC, *(name for names in BESIDES.values() for name in names)}


def python_trees() -> list[ast.Module]:
    return [ast.parse(b.code) for page in PAGES for b in blocks(page) if b.language == "python"]


PLACES = [("optimum.dendritic", name) for name in PUBLIC] + [
    (m, name) for m, names in BESIDES.items() for name in names
]


@pytest.mark.parametrize(("module", "name"), PLACES)
def test_a_public_name_is_documented(module, name):
    documented = getattr(import_module(module), name)
    assert module == "optimum.dendritic" or documented.__module__ == module
    assert documented.__doc__ and not documented.__doc__.startswith(f"{name}("), "dataclasses invent a docstring"
    if inspect.isclass(documented):
        public = [m for n, m in vars(documented).items() if inspect.isfunction(m) and not n.startswith("_")]
        inherited = {n for base in documented.__mro__[1:] for n in vars(base)}
        undocumented = [m.__name__ for m in public if m.__name__ not in inherited and not m.__doc__]
        assert not undocumented


def test_an_underscore_at_the_end_means_in_place():
    assert [name for name in PUBLIC if name.endswith("_")] == IN_PLACE
    for name in IN_PLACE:
        assert next(iter(inspect.signature(getattr(optimum.dendritic, name)).parameters)) == "model"


def test_one_except_clause_catches_every_error_of_ours():
    assert issubclass(optimum.dendritic.CheckpointError, optimum.dendritic.DendriticError)
    assert issubclass(optimum.dendritic.DendriticError, ValueError)


def test_optimum_stays_a_namespace_for_others():
    for folder in (HOUSE.parent, HOUSE.parent / "commands", HOUSE.parent / "commands" / "register"):
        assert folder.is_dir() and not (folder / "__init__.py").exists()
