"""The table of supported models in docs/reference/families.md, read off packed models and never written by hand.

    cd tests
    python -m helpers.families_table                         # print it
    python -m helpers.families_table --write ../docs/reference/families.md    # put it between the markers

Each family's tiny model loses every second segment of every layer, so the table depends on the wiring alone.
"""

import sys
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from helpers.families import ALL, Family, injected, inputs_of
from optimum.dendritic import compress_, describe
from optimum.dendritic.inspection.describe import DENSE
from optimum.dendritic.layout.layout import Layout
from optimum.dendritic.layout.records import Form, Recurrent
from optimum.dendritic.nn import is_prunable
from optimum.dendritic.state import dendritic_layers, injected_layout, layout_of

START, END = "<!-- families -->", "<!-- /families -->"
HEADER = """\
| family | example | removed whole | plain | gather | scatter | never pruned |
| --- | --- | --- | --- | --- | --- | --- |"""


def table() -> str:
    """All families, as Markdown."""
    return "\n".join([HEADER, *(row(family, injected(family)) for family in ALL)])


def row(family: Family, model: PreTrainedModel) -> str:
    """One line: what the wiring removes whole, how many layers end up as what, and by name what falls back.

    `model` is the family's injected model, which is packed here.
    """
    before = injected_layout(model)
    for layer in dendritic_layers(model).values():
        layer.dendrite_mask[:, 1::2] = False
    packed = layout_of(compress_(model, inputs_of(family)))
    assert packed is not None
    forms = {name: record for name, record in packed.modules.items() if isinstance(record, Form | Recurrent)}
    plain = sum(form.plain for form in forms.values())
    gather = sum(form.gather for form in forms.values())
    every = [name for name, _ in model.named_modules()]
    fallen = [name for name, form in forms.items() if form.scatter], unprunable(model)
    names = (", ".join(f"`{ending}`" for ending in endings(group, every)) for group in fallen)
    cells = (family.name, f"`{type(model).__name__}`", removed_whole(model, before), str(plain), str(gather), *names)
    return f"| {' | '.join(cells)} |"


def removed_whole(model: nn.Module, layout: Layout) -> str:
    """The kinds of the groups that are cut, and hidden units where there is a recurrent layer."""
    kinds = {group.kind for group in layout.groups if group.cut}
    recurrent = any(isinstance(model.get_submodule(name), nn.RNNBase) for name in layout.modules)
    return ", ".join(sorted(kinds | ({"hidden units"} if recurrent else set())))


def unprunable(model: PreTrainedModel) -> list[str]:
    """Layers of kinds that are never pruned. The head, which is left alone by default, is of a kind that is."""
    dense = [name for name, words in describe(model).items() if words == DENSE]
    return [name for name in dense if not is_prunable(model.get_submodule(name))]


def endings(group: list[str], every: list[str]) -> list[str]:
    """The last parts of each name in `group`: one, or more where others end like it or it begins with a number."""

    def ending(name: str) -> str:
        parts = name.split(".")
        alone = not any(other.split(".")[-1] == parts[-1] for other in every if other not in group)
        lengths = range(1 if alone else 2, len(parts))
        length = next((length for length in lengths if not parts[-length].isdigit()), len(parts))
        return ".".join(parts[-length:])

    return list(dict.fromkeys(map(ending, group)))


def split(page: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands after it; the markers stay outside."""
    before, start, rest = page.partition(START)
    found, end, after = rest.partition(END)
    assert start and end, f"{START} and {END} must stand in the file"
    return before + start, found.strip(), end + after


def main(arguments: list[str]) -> None:
    if arguments:
        flag, file = arguments
        assert flag == "--write", "usage: python -m helpers.families_table [--write ../docs/reference/families.md]"
        before, _, after = split(Path(file).read_text())
        Path(file).write_text(f"{before}\n{table()}\n{after}")
    else:
        sys.stdout.write(f"{table()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
