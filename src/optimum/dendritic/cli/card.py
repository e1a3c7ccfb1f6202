"""`optimum-cli dendritic card`: the model card of a compressed model, written beside it."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DendriticError
from ..huggingface.card.efficiency_json import FILE
from ..huggingface.card.text import cost_rows
from ..huggingface.card.write import write_card
from .loading import Refusal, check_json, example_inputs, import_modules, load_model, write_json


def run(args: Namespace) -> str:
    """Load, measure beside the dense twin, write the card, and return where it is and the table of its costs.

    Raises:
        Refusal: the arguments name something that is not there, or no compressed model.
    """
    check_json(args)
    import_modules(args.modules)
    folder = _folder(args)
    model = load_model(args.model, args)
    timing = {"large_batch": args.batch_size, "threads": args.threads, "seconds": args.seconds}
    inputs = None if args.no_measure else example_inputs(model, args.sequence_length)
    repo_id = args.repo_id or (None if Path(args.model).is_dir() else args.model)
    measuring = False if args.no_measure else timing
    try:
        record = write_card(model, folder, repo_id=repo_id, example_inputs=inputs, measuring=measuring)
    except DendriticError as error:
        raise Refusal(str(error)) from error
    write_json(args, record)
    return f"{_table(record)}Written: {folder / 'README.md'}, {FILE} and figures."


def _folder(args: Namespace) -> Path:
    """Where the card goes, made now, so that a mistake is told before the work and not after it."""
    if args.output is None and not Path(args.model).is_dir():
        raise Refusal(f"{args.model} is no folder: name one for the card with --output.")
    folder = Path(args.model if args.output is None else args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"--output {folder}: {error}. Name a folder that can be made.") from error
    return folder


def _table(record: Mapping[str, Any]) -> str:
    """The costs, aligned for a terminal."""
    rows = cost_rows(record.get("efficiency"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", ""]) if rows else ""
