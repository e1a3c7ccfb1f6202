"""README and docs do what they say: their Python runs as pasted, their commands are understood, their links lead on."""

import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import shlex
import warnings
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from helpers import results
from helpers.clients import WORD_TEXT
from helpers.pages import PAGES, README, ROOT, Block, anchors, commands, links, python_blocks
from helpers.torchvision_operators import import_torchvision
from helpers.vocabulary import save_tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from optimum.commands.register.register_dendritic import DendriticCommand

BESIDE = [ROOT / f"{each}.md" for each in ("CONTRIBUTING", "CHANGELOG", "SECURITY")]
RUN = [page for page in PAGES if python_blocks(page)]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.py"))
MODEL_OF_THE_HUB = re.compile(r'^MODEL = ".*"$', re.MULTILINE)
PLACEHOLDER = "path/to/model"  # a block that needs a model with its tokenizer names it so
NEEDS = re.compile(r"# needs: (\w+)\n")
NUMBER = re.compile(r"\d[\d,]*\.?\d*")
NEAR = 0.4  # numbers that a page shows may differ by this share on another machine


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize("page", RUN, ids=name)
def test_the_python_of_a_page_runs_as_pasted(page, tmp_path, monkeypatch):
    found = python_blocks(page)
    needs = NEEDS.findall("\n".join(block.code for block in found))
    if not all(map(has, needs)):
        pytest.skip(f"needs {needs}, which the extra clients brings")
    monkeypatch.chdir(tmp_path)
    if "timm" in needs:
        import_torchvision()
    save_models(tmp_path, found)
    names: dict = {"__name__": "__main__"}
    with torch.random.fork_rng([]), warnings.catch_warnings():
        if needs:  # clients warn of one another, which is theirs to mend
            warnings.simplefilter("default")
        for block in found:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.code, f"{name(page)}, line {block.line}", "exec"), names)
            if block.shown is not None:
                check_shown(printed.getvalue(), block.shown)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_a_notebook_runs_from_its_first_cell_to_its_last(notebook, tmp_path, monkeypatch):
    """Where it names a model of the Hub, a tiny one of random weights takes its place."""
    monkeypatch.chdir(tmp_path)
    code = MODEL_OF_THE_HUB.sub(f'MODEL = "{PLACEHOLDER}"', notebook.read_text())
    save_models(tmp_path, [Block(language="python", code=code, line=1)])
    assert len(re.findall(r"^# %%$", code, re.MULTILINE)) > 3
    with torch.random.fork_rng([]), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, name(notebook), "exec"), {"__name__": "__main__"})
    assert printed.getvalue()


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def save_models(folder: Path, found: list[Block]) -> None:
    """Where a page names a model of the reader's, a tiny one with its tokenizer is there."""
    if any(PLACEHOLDER in block.code for block in found):
        causal = any("CausalLM" in block.code for block in found)
        model = LlamaForCausalLM(LlamaConfig(**WORD_TEXT)) if causal else BertModel(BertConfig(**WORD_TEXT))
        model.save_pretrained(folder / PLACEHOLDER)
        save_tokenizer(folder / PLACEHOLDER)
        words = AutoTokenizer.from_pretrained(folder / PLACEHOLDER)
        words.eos_token = "[SEP]"
        words.save_pretrained(folder / PLACEHOLDER)


def check_shown(printed: str, shown: str) -> None:
    """Of the lines that are shown the words are those that were printed, and the numbers but times are near."""
    lines = [line.split() for line in printed.splitlines()]
    for line in filter(None, map(str.strip, shown.splitlines())):
        alike = [other for other in lines if words(other) == words(line.split())]
        assert alike, f"{line!r} was not printed:\n{printed}"
        if line.startswith("latency"):  # a matter of the machine
            continue
        assert any(near(numbers(" ".join(other)), numbers(line)) for other in alike), f"{line!r} differs:\n{printed}"


def words(parts: list[str]) -> str:
    return NUMBER.sub("#", " ".join(parts))


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def near(printed: list[float], shown: list[float]) -> bool:
    return all(abs(a - b) <= NEAR * max(a, b) for a, b in zip(printed, shown, strict=True))


def test_what_is_shown_is_compared():
    check_shown("accuracy 0.96\nnot shown 7\n", "accuracy 0.95")
    with pytest.raises(AssertionError, match="was not printed"):
        check_shown("accuracy 0.96", "precision 0.96")
    with pytest.raises(AssertionError, match="differs"):
        check_shown("accuracy 0.96", "accuracy 0.50")


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=name)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{name(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_understood(page):
    known = {command.name: command.subcommand_class for command in DendriticCommand.SUBCOMMANDS}
    for line in commands(page, "optimum-cli dendritic"):
        _, _, command, *arguments = shlex.split(line, comments=True)
        parser = ArgumentParser(exit_on_error=False)
        known[command].parse_args(parser)
        parser.parse_args(arguments)


def test_the_tables_of_results_are_up_to_date():
    remedy = "cd tests && python -m helpers.results --write"
    assert results.PAGE.read_text() == results.page(), remedy
    assert results.split(README.read_text())[1] == results.readme_table(), remedy


def test_readme_stays_short():
    assert len(README.read_bytes()) <= 7 * 1024


def test_the_picture_is_what_its_script_draws():
    folder = ROOT / "docs/figures"
    code = runpy.run_path(str(folder / "block.py"))
    assert (folder / "block.svg").read_text() == code["picture"](), "python docs/figures/block.py"


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs/index.md").read_text()
    listed = {
        line.strip() for block in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL) for line in block.split()
    }
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in PAGES if page != README}
    assert (pages - {"index"}) | {f"_made/{notebook.stem}" for notebook in NOTEBOOKS} <= listed
