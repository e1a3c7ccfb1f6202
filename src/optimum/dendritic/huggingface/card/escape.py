"""Values that anyone may have written, escaped for the place of a card where they are shown.

A name that reads as plain words stays as it is; any other becomes a code span, in which Markdown and HTML mean nothing.
Invisible characters (control, bidirectional and other format characters, lone surrogates) are shown by their numbers.
The template escapes whatever it is given, unless it is `Markdown`, which only this package writes.
"""

import json
import re
import shlex
import unicodedata
from collections.abc import Mapping
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

LONGEST = 200  # characters of one value; what is beyond is cut
UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")  # categories of Unicode
# Markdown, HTML and formulas; addresses that become links; what starts a list, a quote or a heading; emphasis by `_`
SPECIAL = re.compile(
    r"[`*\[\]<>&|~$\\#^{}]|://|www\.|\S@\S|:\w+:|^(?!-?\w)|\s$|^\d+[.)](\s|$)|(?<![^\W_])_|_(?![^\W_])", re.IGNORECASE
)


class Markdown(str):
    """Text in which every foreign value has been escaped."""


def shown(value: object) -> str:
    """`value` as one line of characters that can be seen, cut at `LONGEST`.

    >>> shown("a\\nb")
    'a⟨U+000A⟩b'
    """
    text = str(value)
    text = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return "".join(f"⟨U+{ord(c):04X}⟩" if _unseen(c) else c for c in text)


def words(value: object) -> Markdown:
    """`value` within a paragraph, a heading or an item of a list.

    >>> words("my_reviews"), words("<b>")
    ('my_reviews', '`<b>`')
    """
    if isinstance(value, Markdown):
        return value
    text = shown(value)
    return Markdown(text) if not text or not SPECIAL.search(text) else code(text)


def code(value: object) -> Markdown:
    """`value` as a code span, whose fence is longer than any within it."""
    text = shown(value)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) or not text else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def in_cell(value: object) -> Markdown:
    """`value` within a table: parsers differ in what they make of a bar behind a backslash, so it is shown."""
    return Markdown(words(value).replace("|", "⟨U+007C⟩"))


def python(value: object) -> Markdown:
    """`value` in a block of Python, as a literal that fits on its line."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | list) else repr(value)
    return Markdown("".join(_python_escape(c) if _unseen(c) else c for c in text))


def identifier(value: object) -> Markdown:
    """A dotted name in a block of Python; what cannot stand in one becomes `_`."""
    return Markdown("".join(c if c == "." or f"a{c}".isidentifier() else "_" for c in shown(value)))


def argument(value: object) -> Markdown:
    """`value` as one word of a shell's command."""
    return Markdown(shlex.quote(shown(value)))


def on_hub(source: Mapping[str, Any] | None) -> bool:
    """Whether a model or a dataset says that it is on the Hub, under a name that can be one there."""
    if source is None or not source["on_hub"]:
        return False
    try:
        validate_repo_id(source["name"])
    except HFValidationError:
        return False
    return True


def plain(value: Any) -> Any:
    """`value` for the metadata, which is written as YAML: strings that can be seen, or a list of such."""
    if isinstance(value, list):
        return [shown(item) for item in value if isinstance(item, str)]
    return shown(value) if isinstance(value, str) else None


def _unseen(character: str) -> bool:
    category = unicodedata.category(character)
    return category in UNSEEN or (category == "Zs" and character != " ")


def _python_escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
