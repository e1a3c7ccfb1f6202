"""README and the pages of docs: their blocks of code, their links and their anchors."""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_made" not in page.parts)]
NEEDS_HUB = "# doc: not run"  # the first line of a block that only a Hub could run


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: What stands behind the fence.
        code: Its text.
        line: The line of the fence, counted from 1.
        shown: The output that the page shows for it, which is the block of text behind it; None if there is not one.
    """

    language: str
    code: str
    line: int
    shown: str | None = None


def blocks(page: Path) -> list[Block]:
    """All of its fenced blocks, in order."""
    tokens = MarkdownIt().parse(page.read_text())
    found = []
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "fence" and token.map is not None:
            output = following is not None and following.type == "fence" and following.info == "text"
            shown = following.content if output and following is not None else None
            found.append(Block(language=token.info.strip(), code=token.content, line=token.map[0] + 1, shown=shown))
    return found


def python_blocks(page: Path) -> list[Block]:
    """Those of Python that are run."""
    return [b for b in blocks(page) if b.language == "python" and not b.code.startswith(NEEDS_HUB)]


def commands(page: Path, program: str) -> list[str]:
    """The lines of its blocks of shell that call a program."""
    shell = [block.code for block in blocks(page) if block.language == "bash"]
    return [line.strip() for code in shell for line in code.splitlines() if line.strip().startswith(f"{program} ")]


def links(page: Path) -> list[str]:
    """The targets of its links and images, also those in tables, but none in code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """What its headings are linked as."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
