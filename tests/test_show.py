"""`optimum-cli dendritic show`: every layer has its line, its strip shows its share, and colours are for terminals."""

import json
import os
import re
import sys

import pytest
from helpers.checkpoints import pruned, saved
from helpers.compare import every
from PIL import Image

from optimum.dendritic import compress_, describe
from optimum.dendritic.cli.show import ASCII, BLOCKS, COLOURS, NO_COLOURS, Style, draw, style
from optimum.dendritic.inspection.density import density


@pytest.mark.slow
def test_a_packed_model_with_its_figure_and_its_json(cli, tmp_path):
    model, _ = saved(tmp_path / "small", "bert", "packed")
    code, output, errors = cli("dendritic", "show", "small", "--figure", "map.png", "--json", "map.json")
    assert code == 0, errors
    found = density(model)
    figures = json.loads((tmp_path / "map.json").read_text())
    assert figures == {"path": "small", **json.loads(json.dumps(found.to_dict()))}
    with Image.open(tmp_path / "map.png") as image:
        assert image.format == "PNG"
    assert "\033" not in output
    lines = [line for line in output.splitlines() if "/" in line and " % " in line]
    assert len(lines) == len(found.layers) == 13
    for line, layer in zip(lines, found.layers, strict=True):
        words = describe(model)[layer.name].partition(":")[0]
        assert line.endswith(f"  {'whole' if layer.share == 1 else words}")
        assert f"{layer.inputs.kept}/{layer.inputs.size}" in line and f"{layer.outputs.kept}/" in line
    left, dense = found.target_parameters()
    assert f"{left:,} of {dense:,} parameters" in output and "dense, not a target: classifier" in output


def test_a_stock_model_is_told_and_has_no_figure(cli, tmp_path):
    from helpers.models import build

    build("bert")[0].save_pretrained(tmp_path / "bert")
    code, output, _ = cli("dendritic", "show", "bert")
    assert code == 0 and "nothing was removed" in output and "bert.encoder.layer.*.attention.self.query (2)" in output
    code, output, errors = cli("dendritic", "show", "bert", "--figure", "map.png")
    assert code == 1 and output == "" and "model = " in errors and "Traceback" not in errors
    assert not (tmp_path / "map.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figure", "absent/map.png"], "--figure = 'absent/map.png': its folder does not exist"),
        (["--figure", "map.abacus"], "--figure = 'map.abacus': Format 'abacus' is not supported"),
        (["--json", "absent/map.json"], "--json = 'absent/map.json': its folder does not exist"),
    ],
)
def test_mistakes_are_told_in_a_sentence(cli, tmp_path, arguments: list[str], message: str):
    saved(tmp_path / "small", "bert", "packed")
    code, output, errors = cli("dendritic", "show", "small", *arguments)
    assert code == 1 and output == "" and message in errors and "Traceback" not in errors


@pytest.mark.parametrize("characters", [BLOCKS, ASCII])
@pytest.mark.parametrize("packed", [False, True])
def test_a_strip_is_as_full_as_its_side(packed: bool, characters: tuple[str, str]):
    model, dense, inputs = pruned("resnet_basic")
    if packed:
        compress_(model, inputs)
    found, (levels, counted) = density(model), characters
    text = draw(found, 120, Style(levels, counted, NO_COLOURS))
    assert max(len(line) for line in text.splitlines() if " % " in line) in (117, 118, 119, 120)
    strips = re.findall(rf"([{re.escape(levels + counted)}]+) (\d+)/(\d+)", text)
    assert len(strips) == 2 * len(found.layers)
    weights = {character: index / (len(levels) - 1) for index, character in enumerate(levels)} | {counted: 1.0}
    for strip, kept, size in strips:
        assert sum(weights[cell] for cell in strip) / len(strip) == pytest.approx(int(kept) / int(size), abs=0.13)
    coloured = draw(found, 120, Style(levels, counted, COLOURS))
    assert re.sub(r"\033\[\d+m", "", coloured) == text and coloured.count("\033") > 0


def test_a_narrow_terminal_keeps_the_names_and_figures():
    found = density(pruned("gpt2")[0])
    text = draw(found, 20, Style(*BLOCKS, NO_COLOURS))
    assert every(f"{layer.inputs.kept}/{layer.inputs.size}" in text for layer in found.layers)


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = os.openpty()
    with open(ours, "rb"), open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert style() == Style(*BLOCKS, COLOURS)
        monkeypatch.setenv("NO_COLOR", "1")
        assert style() == Style(*BLOCKS, NO_COLOURS)
    with open(os.devnull, "w", encoding="ascii") as plain:
        monkeypatch.setattr(sys, "stdout", plain)
        assert style() == Style(*ASCII, NO_COLOURS)
