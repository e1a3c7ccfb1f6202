"""The command line, as the tests let a client of the local Hub use it."""

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from hub import actions


def save(folder: Path) -> None:
    """A packed model and its tokenizer in a folder."""
    actions.packed()[0].save_pretrained(folder)
    actions.tokenizer().save_pretrained(folder)


def run(arguments: list[str], token: str | None) -> tuple[int, str, str]:
    """`optimum-cli` with these arguments, by someone logged in; exit code, output, errors."""
    from optimum.commands.optimum_cli import main

    output, errors = io.StringIO(), io.StringIO()
    argv = patch.object(sys, "argv", ["optimum-cli", *arguments])
    with argv, patch.dict(os.environ, HF_TOKEN=token or ""), redirect_stdout(output), redirect_stderr(errors):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, output.getvalue(), errors.getvalue()
