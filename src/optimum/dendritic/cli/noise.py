"""How much a command says beside its result: `--quiet`, `--verbose`, and progress bars on terminals only."""

import logging
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as library_logging

OURS = "optimum.dendritic"


@contextmanager
def quiet(args: Namespace) -> Iterator[None]:
    """Inside, show what the arguments ask for; afterwards everything is as it was."""
    verbosity, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    ours = logging.getLogger(OURS)
    level, propagate, handler = ours.level, ours.propagate, logging.StreamHandler()
    try:
        if args.quiet or not sys.stderr.isatty():
            library_logging.disable_progress_bar()
        if args.verbose:
            ours.addHandler(handler)
            ours.setLevel(logging.INFO)
            ours.propagate = False
        with warnings.catch_warnings():
            if args.quiet:
                library_logging.set_verbosity_error()
                ours.setLevel(logging.ERROR)
                warnings.simplefilter("ignore")
            yield
    finally:
        library_logging.set_verbosity(verbosity)
        if bars:
            library_logging.enable_progress_bar()
        ours.removeHandler(handler)
        ours.setLevel(level)
        ours.propagate = propagate
