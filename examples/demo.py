"""A page to play with a compressed classifier: type a sentence or drop an image, turn the dials, and see what it
answers, how sure it is, how long it takes, and which groups of its units are at work.

    pip install "optimum-dendritic[demo]"
    python examples/demo.py MODEL [--dense MODEL] [--processor MODEL] [--port 7860]

MODEL is a folder or an id on the Hub: a packed model, one with something dormant (which has a wake dial), or what a
training of several sizes left (which has a size dial).
"""

import argparse
import html
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo_subject import Answer, Group, Subject

STYLE = """
#groups .groups {display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 14px; align-items: center}
#groups .bar {display: flex; height: 12px; border-radius: 6px; overflow: hidden; background: #8883}
#groups .told {opacity: .75; font-variant-numeric: tabular-nums; text-align: right}
#groups .lit {background: #0072B2}
#groups .woken {background: #E69F00}
#groups .asleep {background: repeating-linear-gradient(45deg, #E69F0088 0 3px, #E69F0022 3px 6px)}
#groups .legend {display: flex; gap: 20px; flex-wrap: wrap; margin-top: 14px}
#groups .legend i {display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px}
#groups .gone {background: #8883}
#costs table, #costs tr {width: 100%; border-collapse: collapse; border: 0 !important; margin: 0}
#costs td, #costs th {padding: 6px 12px 6px 0; text-align: left; white-space: nowrap}
#costs td, #costs th {border: 0; border-bottom: 1px solid #8883}
"""


def bars(groups: Sequence[Group], woke: bool) -> str:
    """The groups as HTML: of each what is at work for an input, what sleeps, and what is gone."""
    if not groups:
        return "<p>This model has no groups: it is dense, or an earlier release packed it.</p>"
    dormant = "woken" if woke else "asleep"
    lines = []
    for group in groups:
        parts = {"lit": group.kept, dormant: group.awake - group.kept}
        shares = {name: 100 * count / group.units for name, count in parts.items() if count}
        inner = "".join(f'<div class="{name}" style="width:{share:.2f}%"></div>' for name, share in shares.items())
        told = f"{group.awake if woke else group.kept:,} of {group.units:,}"
        lines.append(
            f'<div>{html.escape(group.name)}</div><div class="bar">{inner}</div><div class="told">{told}</div>'
        )
    words = {"lit": "at work for every input", "woken": "awake for this input", "asleep": "dormant", "gone": "gone"}
    sleeps = any(group.awake > group.kept for group in groups)
    marks = ["lit", *([dormant] if sleeps else []), "gone"]
    legend = "".join(f'<span><i class="{name}"></i>{words[name]}</span>' for name in marks)
    return f'<div class="groups">{"".join(lines)}</div><div class="legend">{legend}</div>'


def table(rows: Sequence[tuple[str, Answer, str]]) -> str:
    """Answer, confidence, latency and size of each model, by its name, as an HTML table."""
    head = "".join(f"<th>{name}</th>" for name in ("", "answer", "confidence", "latency", "parameters"))
    lines = [
        f"<tr><td>{html.escape(name)}</td><td><b>{html.escape(answer.best)}</b></td>"
        f"<td>{100 * answer.scores[answer.best]:.1f} %</td><td>{answer.milliseconds:.2f} ms</td>"
        f"<td>{parameters}</td></tr>"
        for name, answer, parameters in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def page(subject: Subject, dense: Subject | None = None) -> Any:
    """The page, as Gradio's `Blocks`."""
    gradio: Any = importlib.import_module("gradio")  # here: what is shown is made, and tested, without it

    def show(given: Any, sparsity: float | None, rate: float) -> tuple[dict[str, float] | None, str, str]:
        groups = subject.groups(sparsity)
        if not given:
            return None, "", bars(groups, woke=False)
        answer = subject.answer(given, sparsity, rate)
        rows = [("this model", answer, subject.parameters(sparsity))]
        if dense is not None:
            rows.append(("dense", dense.answer(given), dense.parameters()))
        return answer.scores, table(rows), bars(groups, answer.woke)

    with gradio.Blocks(title=f"{subject.name} · optimum-dendritic") as blocks:
        gradio.Markdown(f"# {Path(subject.name).name}")
        with gradio.Row():
            with gradio.Column():
                if subject.kind == "text":
                    given = gradio.Textbox(label="Sentence", lines=3, placeholder="Type a sentence", elem_id="given")
                else:
                    given = gradio.Image(label="Image", type="pil", height=280, elem_id="given")
                choices = [(f"{100 * each:g} % removed", each) for each in subject.sizes]
                largest = subject.sizes[0] if subject.sizes else None
                size = gradio.Radio(choices, value=largest, label="Size", visible=bool(choices), elem_id="size")
                wake = gradio.Slider(
                    0,
                    1,
                    value=0,
                    step=subject.step or 1,
                    label="Wake dial",
                    info="The part of the inputs, the least certain first, that wakes what is dormant.",
                    visible=subject.step is not None,
                    elem_id="wake",
                )
            with gradio.Column():
                label = gradio.Label(label="Answer", num_top_classes=5, elem_id="answer")
                costs = gradio.HTML(elem_id="costs")
        gradio.Markdown("### Groups of units")
        figure = gradio.HTML(elem_id="groups")
        dials, shown = [given, size, wake], [label, costs, figure]
        for each in dials:
            each.change(show, dials, shown, show_progress="hidden", trigger_mode="always_last")
        blocks.load(show, dials, shown)
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or an id on the Hub")
    parser.add_argument("--dense", help="the dense model, to compare with")
    parser.add_argument("--processor", help="where the tokenizer or image processor is, if not beside the model")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    subject = Subject(args.model, args.processor)
    dense = None if args.dense is None else Subject(args.dense, args.processor)
    page(subject, dense).launch(server_port=args.port, css=STYLE)


if __name__ == "__main__":
    main()
