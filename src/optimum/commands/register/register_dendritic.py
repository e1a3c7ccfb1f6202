"""`optimum-cli dendritic ...`: the command line of optimum-dendritic.

`optimum-cli` imports this file at every start, whatever it is asked to do: it imports no torch, and the work is in
`optimum.dendritic.cli`, imported when a command runs and its arguments are sound. A new command is a subclass of
`Command`, one line in `DendriticCommand.SUBCOMMANDS`, a function of its name in `optimum.dendritic.cli.arguments`, what
can be refused at once in `cli.requests` beside it, and a module of its name there with a function `run(args) -> str`.
"""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from optimum.dendritic.cli import arguments, requests
from optimum.dendritic.errors import DendriticError


class Command(BaseOptimumCLICommand):
    """A command that ends with one line on stderr and exit code 1 if it is refused or a file cannot be read or written.

    Other errors are faults of the program, and `--debug` shows the traceback of all of them.
    """

    @classmethod
    def parse_args(cls, parser: ArgumentParser) -> None:
        vars(arguments)[cls.COMMAND.name](parser)

    def run(self) -> None:
        assert self.args is not None
        name = self.COMMAND.name
        with self._told():
            requests.check(name, self.args)
        with redirect_stdout(sys.stderr):  # stdout is for the result, and others print while they are imported
            work = importlib.import_module(f"optimum.dendritic.cli.{name}")
        from optimum.dendritic.cli.noise import quiet

        with self._told(), quiet(self.args):
            print(work.run(self.args))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """End with one line where something inside is refused or cannot be read or written."""
        assert self.args is not None
        try:
            yield
        except (DendriticError, OSError) as error:
            if self.args.debug:
                raise
            line = " ".join(str(error).split())
            print(f"optimum-cli dendritic {self.COMMAND.name}: {line}", file=sys.stderr)
            raise SystemExit(1) from None


class BenchCommand(Command):
    COMMAND = CommandInfo(name="bench", help="Measure what a model costs, beside a baseline.")


class CardCommand(Command):
    COMMAND = CommandInfo(name="card", help="Write the model card of a compressed model, with its efficiency.")


class CompressCommand(Command):
    COMMAND = CommandInfo(name="compress", help="Prune a trained model in one shot, without training.")


class SearchCommand(Command):
    COMMAND = CommandInfo(name="search", help="Search how to divide the budget between the parts of a model.")


class ShowCommand(Command):
    COMMAND = CommandInfo(name="show", help="Draw what is left of each layer of a compressed model.")


class ExportCommand(Command):
    COMMAND = CommandInfo(name="export", help="Export a packed model to ONNX, OpenVINO, ExecuTorch or GGUF.")


class PushCommand(Command):
    COMMAND = CommandInfo(name="push", help="Push a packed model and its card to the Hub.")


class DendriticCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="dendritic", help="Structured pruning: compress models, measure, show and publish them.")
    SUBCOMMANDS = tuple(
        CommandInfo(name=command.COMMAND.name, help=command.COMMAND.help, subcommand_class=command)
        for command in (
            CompressCommand,
            SearchCommand,
            BenchCommand,
            CardCommand,
            ShowCommand,
            ExportCommand,
            PushCommand,
        )
    )


REGISTER_COMMANDS = [DendriticCommand]
