"""The page to play with: what its model answers at every setting of its dials, and the page in a real browser."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.models import build, outputs
from helpers.processes import environment
from helpers.vocabulary import WORDS, save_tokenizer
from PIL import Image
from transformers import ViTImageProcessorPil

from optimum.dendritic import (
    DendriticConfig,
    calibrate_dormant_,
    compress_,
    inject_,
    load_at,
    save_dormant,
    score_,
    set_wake_rate,
    update_,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))

import demo  # noqa: E402
from demo_subject import Answer, Group, Subject, kind_of  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SENTENCE = "the film was great"
NAMES = {0: "bad", 1: "fair", 2: "good"}
DORMANT = DendriticConfig(sparsity=0.6, dormant=0.3, importance="magnitude", units="structured", floor=0.0)


def made(folder, name, config, sparsity, *, pack=True, calibrated=True):
    """A folder with a model of random weights, and a tokenizer or an image processor."""
    model, inputs = build(name)
    model.config.id2label = NAMES
    inject_(model.eval(), config, example_inputs=inputs)
    score_(model)
    update_(model, sparsity)
    if pack:
        compress_(model, inputs)
    model.save_pretrained(folder)
    if config.dormant is not None:
        if calibrated:
            calibrate_dormant_(model, [{"input_ids": torch.randint(0, 14, (64, 5))}])
        save_dormant(model, folder)
    if name == "bert":
        save_tokenizer(folder)
    else:
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dormant(tmp_path_factory):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return made(tmp_path_factory.mktemp("dormant"), "bert", DORMANT, 0.6)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    config = DendriticConfig(sparsity=(0.3, 0.6), importance="magnitude", units="structured", floor=0.0)
    return made(tmp_path_factory.mktemp("sizes"), "bert", config, 0.6, pack=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    config = DendriticConfig(sparsity=0.5, importance="magnitude")
    return made(tmp_path_factory.mktemp("images"), "resnet_basic", config, 0.5)


def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((40, 30)).convert("RGBA")


def test_a_sentence_is_answered_by_each_size(sizes):
    subject = Subject(str(sizes))
    assert (subject.kind, subject.sizes, subject.step) == ("text", (0.3, 0.6), None)
    kept = []
    for sparsity in subject.sizes:
        answer = subject.answer(SENTENCE, sparsity)
        logits = outputs(load_at(sizes, sparsity), subject.inputs(SENTENCE))
        assert list(answer.scores) == list(NAMES.values())
        assert answer.scores == pytest.approx(dict(zip(NAMES.values(), logits[0].softmax(-1).tolist(), strict=True)))
        assert answer.best == NAMES[int(logits[0].argmax())]
        assert answer.milliseconds > 0 and not answer.woke
        kept.append(sum(group.kept for group in subject.groups(sparsity)))
    assert kept[0] > kept[1] > 0
    assert subject.model(0.6) is subject.model(0.6)  # cut once


def test_the_wake_dial_wakes(dormant):
    subject = Subject(str(dormant))
    assert (subject.sizes, subject.step) == ((), 0.05)
    core, awake = subject.answer(SENTENCE, rate=0.0), subject.answer(SENTENCE, rate=1.0)
    assert awake.woke and not core.woke and core.scores != pytest.approx(awake.scores)
    expected = outputs(set_wake_rate(subject.model(), 1.0), subject.inputs(SENTENCE))[0].softmax(-1)
    assert list(awake.scores.values()) == pytest.approx(expected.tolist())
    sentences = [f"{one} {other}" for one in WORDS for other in WORDS]
    some = sum(subject.answer(sentence, rate=0.5).woke for sentence in sentences[::9])
    assert 0 < some < len(sentences[::9])
    groups = subject.groups()
    assert all(group.units >= group.awake >= group.kept for group in groups)
    assert any(group.awake > group.kept for group in groups)


def test_what_was_not_calibrated_wakes_for_all_or_none_and_without_its_file_never(dormant, tmp_path):
    shutil.copytree(dormant, tmp_path / "core", ignore=shutil.ignore_patterns("dormant*"))
    assert Subject(str(tmp_path / "core")).step is None
    assert Subject(str(made(tmp_path / "raw", "bert", DORMANT, 0.6, calibrated=False))).step == 1.0


def test_an_image_is_answered(images):
    subject = Subject(str(images))
    assert (subject.kind, subject.sizes, subject.step) == ("image", (), None)
    answer = subject.answer(picture())
    assert sum(answer.scores.values()) == pytest.approx(1) and set(answer.scores) == set(NAMES.values())


def test_what_is_no_classifier_is_refused():
    with pytest.raises(SystemExit, match="BertModel is not a classifier"):
        kind_of(["BertModel"])


def test_groups_are_bars_of_what_works_sleeps_and_is_gone():
    groups = [Group("heads · layer <0>", 8, 2, 6), Group("neurons · layer 0", 10, 5, 5)]
    asleep, awake = (demo.bars(groups, woke) for woke in (False, True))
    assert 'class="lit" style="width:25.00%"' in asleep and 'class="asleep" style="width:50.00%"' in asleep
    assert 'class="woken" style="width:50.00%"' in awake and "asleep" not in awake
    assert "2 of 8" in asleep and "6 of 8" in awake and "5 of 10" in awake
    assert "&lt;0&gt;" in asleep and "<0>" not in asleep
    assert "dormant" not in demo.bars(groups[1:], woke=False)
    assert "no groups" in demo.bars([], woke=False)


def test_answers_stand_in_a_table(sizes, dormant):
    shown = demo.table([("this <model>", Answer({"a": 0.25, "<b>": 0.75}, 1.5), "1,234")])
    assert "&lt;b&gt;" in shown and "75.0 %" in shown and "1.50 ms" in shown and "this &lt;model&gt;" in shown
    assert "1,234" in shown and "<b>a" not in shown
    small = sum(parameter.numel() for parameter in load_at(sizes, 0.6).parameters())
    assert Subject(str(sizes)).parameters(0.6) == f"{small:,}"
    assert Subject(str(dormant)).parameters().endswith(" + dormant")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    for package in ("gradio", "playwright"):
        pytest.importorskip(package, reason=f"{package} is absent: see .ci/demo")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of the browsers {', '.join(BROWSERS)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextlib.contextmanager
def opened(browser, folder, *arguments) -> Iterator:
    """The page of a model, as its user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLES / "demo.py"), str(folder), "--port", str(port), *map(str, arguments)]
    own = environment(GRADIO_ANALYTICS_ENABLED="False")
    server = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(server, port)
        tab = browser.new_page(viewport={"width": 1180, "height": 900})
        tab.set_default_timeout(120_000)
        tab.goto(f"http://127.0.0.1:{port}")
        yield tab
        tab.close()
    finally:
        server.kill()
        server.communicate()  # and close its output


def wait_for(server: subprocess.Popen, port: int) -> None:
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, server.stdout.read()[-3000:]
        time.sleep(0.2)


def pictured(tab, name: str) -> None:
    """Keep what the page looks like, where DEMO_PICTURES names a folder."""
    if os.environ.get("DEMO_PICTURES"):
        tab.screenshot(path=str(Path(os.environ["DEMO_PICTURES"], f"{name}.png")), full_page=True)


@pytest.mark.slow
def test_the_wake_dial_of_the_page(browser, dormant):
    subject = Subject(str(dormant))
    with opened(browser, dormant, "--dense", dormant) as tab:
        tab.locator("#groups .asleep").first.wait_for()
        assert tab.locator("#groups .bar").count() == len(subject.groups())
        tab.locator("#given textarea").fill(SENTENCE)
        tab.locator("#costs b").first.wait_for()
        core, awake = (subject.answer(SENTENCE, rate=rate) for rate in (0.0, 1.0))
        assert tab.locator("#costs b").first.inner_text() == core.best
        assert f"{100 * core.scores[core.best]:.1f} %" in tab.locator("#costs").inner_text()
        assert " ms" in tab.locator("#costs").inner_text() and tab.locator("#costs tr").count() == 3
        tab.locator("#wake input[type=number]").fill("1")
        tab.locator("#wake input[type=number]").press("Enter")
        tab.locator("#groups .woken").first.wait_for()
        assert tab.locator("#groups .asleep").count() == 0
        assert f"{100 * awake.scores[awake.best]:.1f} %" in tab.locator("#costs").inner_text()
        pictured(tab, "wake")


@pytest.mark.slow
def test_the_size_dial_of_the_page(browser, sizes):
    subject = Subject(str(sizes))
    with opened(browser, sizes) as tab:
        tab.locator("#given textarea").fill(SENTENCE)
        tab.locator("#costs b").first.wait_for()
        assert not tab.locator("#wake").is_visible()
        tab.get_by_label("60 % removed").check()
        tab.locator("#costs", has_text=subject.parameters(0.6)).wait_for()
        answer = subject.answer(SENTENCE, 0.6)
        assert tab.locator("#costs b").first.inner_text() == answer.best
        told = tab.locator("#groups .told").all_inner_texts()
        assert told == [f"{group.kept:,} of {group.units:,}" for group in subject.groups(0.6)]
        pictured(tab, "sizes")


@pytest.mark.slow
def test_an_image_is_dropped_on_the_page(browser, images, tmp_path):
    picture().convert("RGB").save(tmp_path / "gradient.png")
    with opened(browser, images) as tab:
        tab.locator("#given input[type=file]").set_input_files(str(tmp_path / "gradient.png"))
        tab.locator("#costs b").first.wait_for()
        assert tab.locator("#costs b").first.inner_text() in NAMES.values()
        assert not tab.locator("#size").is_visible()
        pictured(tab, "image")
