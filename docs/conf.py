"""How Sphinx builds this documentation: `sphinx-build -W docs site`.

The pages are Markdown that reads as well on a code host. Links out of this folder (to model cards, examples, files of
the root) are rewritten while Sphinx reads a page: cards become pages, everything else a reference to the file's name.
"""

import ast
import re
import shutil
import sys
from pathlib import Path

import jupytext

DOCS = Path(__file__).parent
ROOT = DOCS.parent
MADE = DOCS / "_made"
sys.path[:0] = [str(ROOT / "src"), str(DOCS)]

project = "optimum-dendritic"
author = "The optimum-dendritic authors"
copyright = f"{author}. Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "site"]
html_theme = "furo"
html_title = "optimum-dendritic"
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # cards begin at the second level

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_exclude = ".linenos, .gp, .go"


def make_cards() -> None:
    """Copy the cards of the benchmarks, without their front matter, to where Sphinx finds them."""
    shutil.rmtree(MADE, ignore_errors=True)
    cards = MADE / "cards"
    cards.mkdir(parents=True)
    for card in sorted((ROOT / "model_cards").glob("*.md")):
        text = re.sub(r"\A---\n.*?\n---\n", "", card.read_text(), flags=re.DOTALL)
        (cards / card.name).write_text(f"---\norphan: true\n---\n{text}")
    for figure in (ROOT / "model_cards").glob("*.png"):
        shutil.copy(figure, cards)


def make_command_line() -> None:
    """Write what `--help` of every command says, as a page to include."""
    from command_line import page

    (MADE / "command_line.inc").write_text(page())


def make_notebooks() -> None:
    """Write the notebooks, which are kept as text, as pages."""
    for notebook in sorted((DOCS / "notebooks").glob("*.py")):
        (MADE / f"{notebook.stem}.md").write_text(jupytext.writes(jupytext.read(notebook), "md"))


def make_api() -> None:
    """Write the reference of every public name: what `optimum.dendritic` exports, then what its table lists."""
    tree = ast.parse((ROOT / "src/optimum/dendritic/__init__.pyi").read_text())
    exported = sorted(a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names)
    table = (DOCS / "reference/api.md").read_text().partition("<!-- public -->")[2].partition("<!-- /public -->")[0]
    modules = {"optimum.dendritic": exported}
    for line in table.splitlines()[3:]:
        module, *names = re.findall(r"`([\w.]+)`", line)
        modules[module] = names
    sections = [
        f"## `{module}`\n\n```{{eval-rst}}\n.. currentmodule:: {module}\n\n"
        + "\n".join(f".. auto{'class' if name[0].isupper() else 'function'}:: {name}" for name in names)
        + "\n```\n"
        for module, names in modules.items()
    ]
    (MADE / "api.inc").write_text("\n".join(sections))


def leave_the_folder(app: object, name: str, source: list[str]) -> None:
    """Rewrite the links that leave the folder of the documentation."""
    text = re.sub(r"\]\((?:\.\./)+model_cards/([\w.-]+)\.md(#[\w-]+)?\)", r"](/_made/cards/\1.md)", source[0])
    outside = "examples|model_cards|src|SECURITY|CONTRIBUTING|CHANGELOG"
    source[0] = re.sub(rf"\[([^\]]+)\]\((?:\.\./)+(?:{outside})[^)]*\)", r"\1", text)


def setup(app: object) -> None:
    make_cards()
    make_command_line()
    make_api()
    make_notebooks()
    app.connect("source-read", leave_the_folder)  # type: ignore[attr-defined]
