"""Whatever stands in a name, the card keeps its structure: no markup, link or unseen character but its own."""

import json
import re
import unicodedata
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers.cards import places, pruned, tiny_bert
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from optimum.dendritic.huggingface.card import escape, text, write
from optimum.dendritic.huggingface.card.escape import code, on_hub, shown, words
from optimum.dendritic.huggingface.card.schema import FILE, first_fault
from optimum.dendritic.huggingface.checkpoint.files import replace

CARDS = sorted((Path(__file__).parents[1] / "model_cards").glob("*/efficiency.json"))
PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- hidden",
    "\n# A heading\n",
    "\n## Another\n\n* item",
    "[a link](https://example.com)",
    "![an image](https://example.com/x.png)",
    "<https://example.com>",
    "https://example.com/path",
    "```\nfenced\n```",
    "`` ` ``|`",
    "a | b \\| c",
    "\n---\nlicense: mit\n---\n",
    "**bold** _emphasis_ ~~struck~~",
    "\x1b[31mred\x1b[0m\x00\x08",
    "safe\u202egnp.exe\u2066",
    "\ud800lone",
    "&lt;b&gt; &#60;",
    "{{ 7 * 7 }}{% raw %}",
    "\n\n    indented\n\t> quote\n1. item\r\nReference: [a]: https://example.com",
    "zero\u200bwidth\ufeff\u2028line",
    "$(touch x); `touch y` \"' \\",
    "x" * 5000,
]
WRITTEN_BY_US = ("class", "weights", "budget")  # of these, words are chosen by
CHECK = jsonschema.Draft202012Validator(json.loads(FILE.read_text()))
MARKDOWN = MarkdownIt("commonmark").enable("table")


def record() -> dict[str, Any]:
    """With everything that a card can show."""
    known = json.loads((CARDS[0].parent.parent / "minilm-sst2-60/efficiency.json").read_text())
    known["training"] |= {"data": {"name": "reviews", "on_hub": False, "config": "small", "split": "train"}}
    known["training"]["hyperparameters"] |= {"optimizer": "adamw"}
    known["base"] = {"name": "base", "on_hub": False}
    return known


def fields(value: Any) -> list[tuple[tuple[Any, ...], bool]]:
    """Every string that the record can hold: where, and whether it is the name of a field of its own."""
    found: list[tuple[tuple[Any, ...], bool]] = []
    for path in places(value):
        inner = value
        for key in path:
            inner = inner[key]
        if isinstance(inner, str) and path[-1] not in WRITTEN_BY_US:
            found.append((path, False))
        if isinstance(path[-1], str) and path[-2:-1] in (("metrics",), ("input_shapes",), ("ratios",), ("layers",)):
            found.append((path, True))
    return found


def with_value(original: dict[str, Any], path: tuple[Any, ...], is_name: bool, payload: str) -> dict[str, Any]:
    changed: Any = deepcopy(original)
    inner = changed
    for key in path[:-1]:
        inner = inner[key] if isinstance(inner, list) or key in inner else inner[payload]
    if is_name:
        inner[payload] = inner.pop(path[-1])
    else:
        inner[path[-1]] = payload
    return changed


@pytest.fixture(scope="module")
def model():
    return pruned(tiny_bert())


def rendered(model: Any, known: dict[str, Any], folder: Path, repo_id: str | None = None) -> str:
    figures = {name: f"figures/{name}.png" for name in ("density", "training", "evaluations")}
    return write._card(model, known, figures, folder, repo_id, None)


def structure(body: str) -> tuple[list[tuple[str, str]], int]:
    """The tokens that are neither plain words nor code spans, links apart; the number of links."""
    tokens = [inner for token in MARKDOWN.parse(body) for inner in (token, *(token.children or ()))]
    kept = [
        (token.type, token.tag) for token in tokens if token.type not in ("text", "code_inline", "softbreak", "inline")
    ]
    return [token for token in kept if not token[0].startswith("link")], sum(token[0] == "link_open" for token in kept)


def check(card: str, plain: str) -> None:
    unseen = {c for c in card if unicodedata.category(c) in escape.UNSEEN} - {"\n"}
    assert not unseen, unseen
    _, front, body = card.split("---\n", 2)
    _, plain_front, plain_body = plain.split("---\n", 2)
    assert yaml.safe_load(front).keys() <= yaml.safe_load(plain_front).keys() and len(yaml.safe_load(front)) >= 4
    assert structure(body) == structure(plain_body)
    outside = re.sub(r"```.*?```", "", body, flags=re.S)
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)
    assert not re.search(r"://|www\.|<|\S@\S", outside), "what some renderers make a link of"


def everywhere(original: dict[str, Any], payload: str) -> dict[str, Any]:
    """The record with a value in every one of its strings, and of names of one kind in the first."""
    changed, kinds = original, set()
    for path, is_name in fields(original):
        kind = path[:-1] if is_name else path
        if kind not in kinds:
            changed = with_value(changed, path, is_name, payload)
        kinds.add(kind)
    assert len(kinds) > 25
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_payload_in_every_field_makes_nothing(model, tmp_path, payload):
    plain = rendered(model, everywhere(record(), "benign"), tmp_path / "small")
    assert structure(plain.split("---\n", 2)[2])[1] == 0, "no link"
    check(rendered(model, everywhere(record(), payload), tmp_path / "small"), plain)


@pytest.mark.slow
def test_a_payload_in_one_field_makes_nothing(model, tmp_path):
    """Of everything a little: some are only harmful beside words that are not."""
    payload, kinds = "x|`<b>` [a](https://b.c)\n\n# h\u202e", {}
    for path, is_name in fields(record()):
        kinds[tuple("#" if isinstance(key, int) or "." in key else key for key in path) + (is_name,)] = (path, is_name)
    assert len(kinds) > 35
    for path, is_name in kinds.values():
        plain = rendered(model, with_value(record(), path, is_name, "benign"), tmp_path / "small")
        check(rendered(model, with_value(record(), path, is_name, payload), tmp_path / "small"), plain)


@pytest.mark.slow
@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_names_of_the_model_of_its_folder_and_of_what_is_said_to_be_on_the_hub(model, tmp_path, payload):
    known = record()
    plain = rendered(model, known, tmp_path)
    if "\0" not in payload and "\ud800" not in payload:  # no folder can be called that
        check(rendered(model, known, tmp_path / payload.replace("/", "")), plain)
    check(rendered(model, known, tmp_path, repo_id=payload), rendered(model, known, tmp_path, repo_id="me/small"))
    known["base"] = {"name": "bert", "on_hub": False}
    plain = rendered(model, known, tmp_path)
    for source in (known["base"], known["training"]["teacher"], known["training"]["data"]):
        source |= {"name": payload, "on_hub": True}
    check(rendered(model, known, tmp_path), plain)
    if "\0" not in payload and "\ud800" not in payload:
        odd, usual = pruned(tiny_bert()), pruned(tiny_bert())
        odd.__class__ = type(payload, (type(odd),), {"__module__": payload})
        usual.__class__ = type("Own", (type(usual),), {"__module__": "own"})
        check(rendered(odd, record(), tmp_path), rendered(usual, record(), tmp_path))


def test_a_payload_is_still_told():
    assert words("<b>\n") == "`<b>⟨U+000A⟩`" and code("a`b") == "``a`b``" and code("`") == "`` ` ``"
    assert escape.python('a"\u202e') == '"a\\"\\u202e"' and escape.identifier("a.b-c") == "a.b_c"
    assert not on_hub({"name": "../datasets/x", "on_hub": True}) and on_hub({"name": "a/b", "on_hub": True})
    assert len(shown("x" * 10**6)) == escape.LONGEST + 1


@pytest.mark.slow
@given(value=st.text(max_size=40))
def test_any_text_is_text(value):
    for place in ("A {} b\n", "# {}\n", "* {}\n", "| {} | b |\n| --- | --- |\n| c | d |\n"):
        escaped = escape.in_cell(value) if "|" in place else words(value)
        plain = structure(place.format("a"))
        assert structure(place.format(escaped)) == plain or not escaped.strip()


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_the_committed_cards_read_as_they_did(path):
    known, card = json.loads(path.read_text()), (path.parent / "README.md").read_text()
    shapes = text.shapes_of(known["efficiency"])
    told = [text.table(text.cost_rows(known["efficiency"])), text.config_words(known["compression"]["config"])]
    told += [text.hyperparameter_words(known.get("training", {}).get("hyperparameters", {})), words(shapes)]
    told += [words(known["efficiency"]["context"]["device_name"]), words(path.parent.name)]
    told += [text.table(rows)] if (rows := text.score_rows(known)) else []
    told += [text.data_words(known.get("training", {}).get("data")), text.source_words(known.get("base"))]
    assert all(part in card for part in told), [part for part in told if part not in card]
    assert first_fault(known) is None


class TestTheSchema:
    @given(data=st.data())
    def test_is_read_as_its_validator_reads_it(self, data):
        known = record()
        paths = [path for path in places(known) if len(path) < 7]
        path = data.draw(st.sampled_from(paths))
        inner: Any = known
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = data.draw(st.sampled_from([None, True, -1, 0, 1, 2.5, 2**70, "", "a", "0" * 64, [], [1], {}]))
        try:
            CHECK.validate(known)
            valid = True
        except jsonschema.ValidationError:
            valid = False
        assert (first_fault(known) is None) is valid

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" + "0" * 400])
    def test_refuses_numbers_that_no_card_can_show(self, number):
        content = json.dumps(record()).replace(str(record()["efficiency"]["latency_ms"]["1"]["median"]), number)
        assert first_fault(json.loads(content)) is not None


class TestWriting:
    def test_a_file_that_cannot_be_written_stays(self, tmp_path):
        file = tmp_path / "README.md"
        replace(file, "whole")
        with pytest.raises(UnicodeEncodeError):
            replace(file, "\ud800")
        assert file.read_text() == "whole" and list(tmp_path.iterdir()) == [file]

    def test_a_failure_leaves_nothing_half_written(self, model, tmp_path, monkeypatch):
        write.write_card(model, tmp_path, measuring=False)
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}

        def fail(self, target):
            raise OSError("no space left")

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            write.write_card(model, tmp_path, measuring=False, metrics={"accuracy": 0.5})
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before

    @pytest.mark.slow
    @pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
    def test_metrics_and_an_earlier_file_are_told_whatever_their_names(self, tmp_path, payload):
        """End to end, figures included."""
        model = pruned(tiny_bert())
        model.save_pretrained(tmp_path)
        (tmp_path / "README.md").write_bytes(f"---\ntags: {payload}\nlicense: [\n---\n".encode(errors="ignore"))
        write.write_card(model, tmp_path, measuring=False, metrics={payload: 0.5, "accuracy": 0.5})
        again = write.write_card(model, tmp_path, measuring=False)
        assert again["evaluations"][0]["metrics"][payload] == 0.5
        damaged = json.loads((tmp_path / "efficiency.json").read_text())
        damaged |= {payload: {}, "evaluations": {payload: payload}}
        (tmp_path / "efficiency.json").write_text(json.dumps(damaged))
        model.__dict__.pop("dendritic_facts")
        assert "evaluations" not in write.write_card(model, tmp_path, measuring=False)
