"""`optimum-cli dendritic card`: the model card of a compressed model, written beside it."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import invalid
from ..huggingface.card.efficiency_json import FILE
from ..huggingface.card.text import cost_rows
from ..huggingface.card.write import write_card
from .loading import example_inputs, import_modules, load_model, output_folder, write_json


def run(args: Namespace) -> str:
    """Load, measure beside the dense baseline, write the card, and return where it is and the table of its costs.

    Raises:
        DendriticError: an argument names something that does not exist or cannot be loaded.
    """
    import_modules(args.modules)
    folder = _folder(args)
    model = load_model(args.model, args)
    timing = {"large_batch": args.batch_size, "threads": args.threads, "seconds": args.seconds, "energy": args.energy}
    inputs = None if args.no_measure else example_inputs(model, args.sequence_length)
    output_folder(folder)
    repo_id = args.repo_id or (None if Path(args.model).is_dir() else args.model)
    measuring = False if args.no_measure else timing
    told = {"license": args.license, "base_model": args.base_model}
    record = write_card(model, folder, repo_id=repo_id, example_inputs=inputs, measuring=measuring, **told)
    write_json(args, record)
    return f"{_table(record)}Written: {folder / 'README.md'}, {FILE} and figures."


def _folder(args: Namespace) -> Path:
    """The folder that the card is written to."""
    if args.output is None and not Path(args.model).is_dir():
        raise invalid("MODEL", args.model, "is not a folder", "Name a folder for the card with --output.")
    return Path(args.model if args.output is None else args.output)


def _table(record: Mapping[str, Any]) -> str:
    """The costs, aligned for a terminal."""
    rows = cost_rows(record.get("efficiency"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", ""]) if rows else ""
