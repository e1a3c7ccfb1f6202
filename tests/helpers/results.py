"""The tables of results in README and in docs/results.md, made from the committed files of the benchmarks.

cd tests && python -m helpers.results --write
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from helpers import published
from helpers.pages import README, ROOT
from optimum.dendritic.efficiency.words import faster, smaller

CARDS = ROOT / "model_cards"
PAGE = ROOT / "docs/results.md"
START, END = "<!-- results -->", "<!-- /results -->"
SHOWN = [  # in README: the file, what it is of, the level, what was removed, and the batch sizes
    ("minilm-sst2", "MiniLM, SST-2", 0.8, "80 % of the encoder's parameters", (1, 8)),
    ("resnet20-cifar10", "ResNet-20, CIFAR-10", 0.5, "50 % of the MACs", (1, 64)),
]
BENCHMARKS = ["minilm-sst2", "minilm-sst2-replaced", "minilm-sst2-low-rank", "minilm-sst2-whole", "resnet20-cifar10"]
BENCHMARKS += ["vit-cifar10", "mnist-convnet", "gpt2-tinyshakespeare", "lstm-sst2"]
NOTES = {
    "minilm-sst2": (
        "From a fine-tuned model with itself as teacher. At 60 and 80 % it is not separable from dense; at every "
        "level it is better than every control (paired bootstrap, 95 %)."
    ),
    "minilm-sst2-replaced": (
        "Trained for 4 epochs, not 2, on sentences in which tokens are replaced by similar ones, all methods "
        "alike. This training made the dense model worse: to the one above, 90 % loses 1.19 points."
    ),
    "minilm-sst2-low-rank": (
        "Here the level is a share of the *whole* model. Its embedding begins as two factors "
        "(`embedding_rank=192`), whose rank is pruned like everything else: at 60 % the "
        "rank is 105 and the hidden width stays 384, and nothing is lost."
    ),
    "minilm-sst2-whole": (
        "One seed: the same budgets without the factors, which is why they are there. The only way to a smaller "
        "embedding is then a narrower model (194 of 384 at 60 %), which costs four points; magnitude loses ten."
    ),
    "resnet20-cifar10": (
        "With the dense model as teacher; older than the [bases](../examples/benchmarks/bases/README.md) that "
        "`cifar10.py` starts from now. Not separable from dense, nor from magnitude; better than random and "
        "smaller dense."
    ),
    "vit-cifar10": (
        "From scratch, with the dense model as teacher. Magnitude (in two seeds) and random take colour channels "
        "from its input."
    ),
    "mnist-convnet": (
        "On this task no ranking is separable from magnitude; random and a smaller dense model are worse at 90 %. "
        "A small call is mostly overhead: on two threads batch 1 took 0.70 of dense."
    ),
    "gpt2-tinyshakespeare": (
        "From a model that was trained from scratch until it was flat (10,000 steps), heads, neurons and channels "
        "of the stream go: better than every control, magnitude and growing shrinkage among them. 600 steps do not "
        "make up for 60 %."
    ),
    "lstm-sst2": "Trained from scratch and short, nothing is separable from the controls, nor from dense.",
}
EARLIER = ["resnet20-cifar10", "vit-cifar10", "mnist-convnet"]
OTHERS = {
    "peers": "other packages that prune, on our models, data and recipes: accuracy, bytes, reloading, time, lines",
    "oneshot": "without training, MiniLM at 30 and 50 %",
    "ranking-resnet20": "what each score knows of a ResNet-20's channels, and what it does not",
    "dormant-sst2": "what waking on doubt buys over static models of the same mean time: nothing sure",
    "int8-sst2": "dense and packed MiniLM in float32 and int8, in PyTorch and ONNX Runtime: accuracy, bytes, time",
    "int8-sst2-low-rank": "the same where the whole model pays and the embedding is two factors",
    "int8-cifar10": "dense and packed ResNet-20 in float32 and int8, one seed",
    "allocation-sst2": "divisions of the budget, ranked, uniform, evolved and learned, in one shot and trained",
    "early-packing-sst2": "what a training saves that packs its model when the mask is final, and that time spent",
    "equal-latency-sst2": "the same speed asked for, and times, multiplications or parameters counted: MiniLM",
    "equal-latency-cifar10": "the same asked of ResNet-20, where times in training were not those in use",
    "sizes-sst2": "one training of three sizes of MiniLM against a training for each",
    "llama-cpp": "a Llama in llama.cpp, dense and packed: size of file, milliseconds per token",
    "speed": "packed models of full size against dense and evenly narrower ones, in fp32 and bf16, on a busy machine",
    "robustness": "what hostile files, interruptions, kills and a failing Hub do, in counts",
}
INTRO = """\
# Results

Made by `python -m helpers.results --write` in `tests` from the cards in `model_cards/`, which the scripts in
`examples/benchmarks/` write from the files of their runs. Every method is trained as long as the others, from the same
start, with the same recipe; the claims were written down with the benchmark, and one that fails reads as failed. Costs
are shares of the dense model's, timed in turn with it on one CPU thread. Each heading leads to the card with all
conditions, methods and figures.
"""


def rows_of(card: str) -> list[dict[str, Any]]:
    return json.loads((CARDS / f"{card}.json").read_text())["rows"]


def readme_table() -> str:
    """Dense, ours and the best control of each benchmark that README shows."""
    lines = ["| | accuracy % | file | time, small batch | time, large batch |", "| --- | --- | --- | --- | --- |"]
    for card, what, level, removed, sizes in SHOWN:
        rows = [row for row in rows_of(card) if not row["variant"]]
        at = {row["method"]: row for row in rows if row["level"] in (0, level)}
        controls = [row for name, row in at.items() if name not in ("dense", "dendritic")]
        best = max(controls, key=lambda row: row["mean"])
        lines.append(f"| **{what}**: dense, trained as long | {score(at['dense'])} | | | |")
        lines.append(f"| {removed} removed | {score(at['dendritic'])} | {costs(at['dendritic'], sizes)} |")
        lines.append(f"| best control ({best['label']}) | {score(best)} | {costs(best, sizes)} |")
    return "\n".join(lines)


def score(row: dict[str, Any]) -> str:
    return f"{row['mean']:.1f} ± {row['std']:.1f}"


def costs(row: dict[str, Any], sizes: tuple[int, int]) -> str:
    """The file and the times in words; empty where they were not measured."""
    ratios = row["ratios"]
    cells = [smaller(ratios["bytes"]) if "bytes" in ratios else ""]
    cells += [faster(ratios[f"latency_ms_batch_{n}"]) if f"latency_ms_batch_{n}" in ratios else "" for n in sizes]
    return " | ".join(cells)


def page() -> str:
    """docs/results.md."""
    others = "\n".join(f"* [{name}](../model_cards/{name}.md): {what}." for name, what in OTHERS.items())
    parts = [INTRO, *map(section, BENCHMARKS), published.section(grid), f"## More\n\n{others}\n"]
    return "\n".join(parts)


def section(card: str) -> str:
    """A benchmark: the claims that failed and how many held, its table, and its first figure."""
    text = (CARDS / f"{card}.md").read_text()
    title = next(line for line in text.splitlines() if line.startswith("# ")).removeprefix("# ")
    claims = [line for line in between(text, "## Claims").splitlines() if line.startswith("| ")][2:]
    failed = [claim for claim in claims if "**fails**" in claim]
    table = [line for line in between(text, "## Results").splitlines() if line.startswith("| ")]
    told = f"{len(claims) - len(failed)} of {len(claims)} claims hold."
    if failed:
        told += " These fail:\n\n" + "\n".join(f"* {' → '.join(cells(claim)[:2])}" for claim in failed)
    rows = "\n".join(table)
    if card in EARLIER:
        rows += "\n\nThe runs are older than the recipe that the script has now."
    return f"## [{title}](../model_cards/{card}.md)\n\n{NOTES[card]} {told}\n\n{rows}\n"


def grid(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def between(text: str, heading: str) -> str:
    """What stands under a heading."""
    return re.split(r"^## ", text.partition(f"{heading}\n")[2], flags=re.MULTILINE)[0]


def split(readme: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands after it."""
    before, start, rest = readme.partition(START)
    found, end, after = rest.partition(END)
    assert start and end, f"{START} and {END} must stand in README"
    return before + start, found.strip(), end + after


def write() -> None:
    PAGE.write_text(page())
    before, _, after = split(README.read_text())
    Path(README).write_text(f"{before}\n{readme_table()}\n{after}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    else:
        sys.stdout.write(f"{readme_table()}\n\n{page()}")
