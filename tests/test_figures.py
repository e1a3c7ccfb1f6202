"""The density map as a figure: every layer has its row, and what is drawn is what is left."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.checkpoints import pruned
from helpers.models import build
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from PIL import Image

from optimum.dendritic import DendriticError, compress_
from optimum.dendritic.inspection import figures
from optimum.dendritic.inspection.density import density
from optimum.dendritic.inspection.figures import COUNTED, KEPT, density_figure, save_density_figure, short_names
from optimum.dendritic.inspection.group_figure import GONE, arranged


@pytest.mark.parametrize("packed", [False, True])
def test_each_layer_has_its_row_and_its_strips_show_its_share(packed: bool):
    model, _, inputs = pruned("bert")
    if packed:
        compress_(model, inputs)
    found = density(model)
    figure = density_figure(found)
    units, reads, makes, bars = figure.axes
    told = [f"{each.kept:,} of {each.units:,} · {100 * each.share:.0f} %" for each in found.groups]
    assert found.groups and sorted(text.get_text() for text in units.texts) == sorted(told)
    rooms, bars_of_units = units.containers[::2], units.containers[1::2]
    for room, bar, cell in zip(rooms, bars_of_units, arranged(found.groups)[2], strict=True):
        assert isinstance(room, BarContainer) and isinstance(bar, BarContainer)
        assert bar.patches[0].get_width() == pytest.approx(room.patches[0].get_width() * cell.left.share)
    names = [label.get_text() for label in reads.get_yticklabels()]
    assert names == short_names([layer.name for layer in found.layers])
    for axes, sides in ((reads, [x.inputs for x in found.layers]), (makes, [x.outputs for x in found.layers])):
        assert [text.get_text() for text in axes.texts] == [f"{side.kept} / {side.size}" for side in sides]
        pixels = np.asarray(axes.images[0].get_array())
        for row, side in zip(pixels, sides, strict=True):
            full = COUNTED if side.places is None else KEPT
            towards = (row - to_rgb(GONE)) @ (np.subtract(to_rgb(full), to_rgb(GONE)))
            drawn = towards.mean() / np.square(np.subtract(to_rgb(full), to_rgb(GONE))).sum()
            assert drawn == pytest.approx(side.share, abs=0.01)
    assert [bar.get_width() for bar in bars.containers[1]] == [layer.share for layer in found.layers]
    left, dense = found.target_parameters()
    words = f"{round(100 * left / dense)} % of the parameters of 13 layers left ({left:,} of {dense:,})"
    assert figure.get_suptitle() == f"BertForSequenceClassification: {words}"


def test_it_is_saved_as_a_picture_that_can_be_read(tmp_path):
    model, _, _ = pruned("resnet_basic")
    path = save_density_figure(model, tmp_path / "new" / "density.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 1500 and image.height > 60 * len(density(model).layers) / 3
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}  # pyright: ignore
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (GONE, KEPT)} <= colours


@pytest.mark.slow
def test_many_layers_stay_on_one_page():
    model, _, _ = pruned("gpt2")
    found = density(model)
    many = replace(found, layers=found.layers * 40)
    figure = density_figure(many)
    assert figure.get_figheight() < 25 and len(figure.axes[0].get_yticklabels()) < 100


def test_a_stock_model_has_no_density():
    with pytest.raises(DendriticError, match="none of its layers was touched"):
        density_figure(build("plain_cnn")[0])


def test_matplotlib_is_imported_only_to_draw():
    tree = ast.parse(Path(figures.__file__).read_text())
    names = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not any(str(name).startswith("matplotlib") for name in names)
