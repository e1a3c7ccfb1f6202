"""Draws `block.svg`: an FFN before and after. What a segment, a dependency group and a gather are.

python docs/figures/block.py
"""

from pathlib import Path

FILE = Path(__file__).with_suffix(".svg")
LEFT, GONE, GROUP, SEGMENT, INK = "#0072B2", "#E3E3E3", "#E69F00", "#009E73", "#222222"  # of Okabe and Ito
CELL, GAP = 20, 3
STEP = CELL + GAP
SEGMENTS, NEURONS = 6, 8
DEAD_NEURONS, DEAD_SEGMENTS = {1, 4, 5}, {1, 4}
UNIT = 4  # the neuron that is shown as a unit of the group
LIVE_NEURONS = [i for i in range(NEURONS) if i not in DEAD_NEURONS]
LIVE_SEGMENTS = [i for i in range(SEGMENTS) if i not in DEAD_SEGMENTS]
LEGEND = 700
WIDTH, HEIGHT = 980, 550


def cell(x: float, y: float, colour: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{CELL}" height="{CELL}" rx="2" fill="{colour}"/>'


def grid(x: float, y: float, colours: list[list[str]]) -> str:
    return "".join(cell(x + STEP * j, y + STEP * i, c) for i, row in enumerate(colours) for j, c in enumerate(row))


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 14, weight: str = "normal") -> str:
    style = f'font-family="Helvetica, Arial, sans-serif" font-size="{size}" font-weight="{weight}" fill="{INK}"'
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {style}>{words}</text>'


def frame(x: float, y: float, columns: int, rows: int, colour: str) -> str:
    width, height = STEP * columns - GAP + 6, STEP * rows - GAP + 6
    return (
        f'<rect x="{x - 3:g}" y="{y - 3:g}" width="{width}" height="{height}" rx="4" fill="none" stroke="{colour}" '
        'stroke-width="3"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str = INK, width: float = 1.5) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="{width:g}"/>'


def arrow(x: float, y: float, length: float = 34) -> str:
    head = f'<path d="M{x + length:g} {y:g} l-8 -5 v10 z" fill="{INK}"/>'
    return line(x, y, x + length - 6, y) + head


def before(y: float) -> list[str]:
    up_x, down_x = 150, 430
    middle = y + STEP * NEURONS / 2
    up = [[GONE if n in DEAD_NEURONS or s in DEAD_SEGMENTS else LEFT for s in range(SEGMENTS)] for n in range(NEURONS)]
    down = [[GONE if n in DEAD_NEURONS else LEFT for n in range(NEURONS)] for _ in range(SEGMENTS)]
    down_y = middle - STEP * SEGMENTS / 2
    return [
        text(30, y - 34, "While it trains: pruned means zero, in place", size=16, weight="bold"),
        text(60, middle - STEP * SEGMENTS / 2 - 10, "x", "middle"),
        grid(50, middle - STEP * SEGMENTS / 2, [[LEFT]] * SEGMENTS),
        arrow(90, middle),
        text(up_x, y - 10, "up: a row is a neuron"),
        grid(up_x, y, up),
        frame(up_x, y + STEP * UNIT, SEGMENTS, 1, GROUP),
        frame(up_x + STEP * 4, y, 1, NEURONS, SEGMENT),
        arrow(up_x + STEP * SEGMENTS + 60, middle),
        text(down_x, down_y - 10, "down: a column reads a neuron"),
        grid(down_x, down_y, down),
        frame(down_x + STEP * UNIT, down_y, 1, SEGMENTS, GROUP),
        text(LEGEND, y + 18, "segment", weight="bold") + line(LEGEND - 12, y + 4, LEGEND - 12, y + 40, SEGMENT, 4),
        text(LEGEND, y + 38, "some inputs of one layer"),
        text(LEGEND, y + 78, "dependency group", weight="bold")
        + line(LEGEND - 12, y + 64, LEGEND - 12, y + 120, GROUP, 4),
        text(LEGEND, y + 98, "a neuron's row and the"),
        text(LEGEND, y + 116, "column that reads it go together"),
        text(LEGEND, y + 158, "removed", weight="bold") + line(LEGEND - 12, y + 144, LEGEND - 12, y + 180, GONE, 4),
        text(LEGEND, y + 178, "may return until the freeze"),
    ]


def after(y: float) -> list[str]:
    up_x, down_x = 220, 430
    rows, columns = len(LIVE_NEURONS), len(LIVE_SEGMENTS)
    middle = y + STEP * SEGMENTS / 2
    top = middle - STEP * columns / 2
    picked = [[LEFT if s in LIVE_SEGMENTS else GONE] for s in range(SEGMENTS)]
    threads = [
        line(50 + CELL + 2, y + STEP * s + CELL / 2, 128, top + STEP * i + CELL / 2, LEFT, 2)
        for i, s in enumerate(LIVE_SEGMENTS)
    ]
    return [
        text(30, y - 34, "Packed: small dense layers", size=16, weight="bold"),
        text(60, y - 10, "x", "middle"),
        grid(50, y, picked),
        *threads,
        grid(130, top, [[LEFT]] * columns),
        text(108, y + STEP * SEGMENTS + 18, "gather", "middle", weight="bold"),
        arrow(166, middle),
        text(up_x, middle - STEP * rows / 2 - 10, f"up, {rows} × {columns}"),
        grid(up_x, middle - STEP * rows / 2, [[LEFT] * columns] * rows),
        arrow(up_x + STEP * columns + 60, middle),
        text(down_x, y - 10, f"down, {SEGMENTS} × {rows}"),
        grid(down_x, y, [[LEFT] * rows] * SEGMENTS),
        text(LEGEND, y + 18, "gather", weight="bold") + line(LEGEND - 12, y + 4, LEGEND - 12, y + 60, LEFT, 4),
        text(LEGEND, y + 38, "picks the inputs that are left;"),
        text(LEGEND, y + 56, "where whole units go, none is left"),
    ]


def picture() -> str:
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *before(80), *after(380)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = "<title>Two layers of a block while it trains, with removed neurons and segments, and packed</title>"
    return "\n".join([head, title, *parts, "</svg>", ""])


if __name__ == "__main__":
    FILE.write_text(picture())
