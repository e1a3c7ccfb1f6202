"""`optimum-cli dendritic ...`: the command line of optimum-dendritic.

`optimum-cli` imports this file at every start, whatever it is asked to do: torch, transformers and optimum.dendritic
are imported only in the functions that a command runs. A new command is a class like `BenchCommand` and one line in
`DendriticCommand.SUBCOMMANDS`.
"""

from __future__ import annotations

import importlib
import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

OWN_ARCHITECTURE = "If the architecture is your own, name the module that registers it: --import my_module"


class Refusal(Exception):
    """A mistake of the user's, told in a sentence and without a traceback."""


class BenchCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="bench", help="Measure what a model costs, beside a baseline.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.description = "Measure what a model costs: parameters, bytes, MACs, latency and peak memory."
        parser.add_argument("model", metavar="MODEL", help="A folder or the id of a model on the Hub.")
        parser.add_argument("--baseline", metavar="MODEL", help="The model to compare with, a folder or an id.")
        parser.add_argument(
            "--batch-size", type=_positive(int), default=32, metavar="N", help="Batch of the second latency (32)."
        )
        parser.add_argument(
            "--sequence-length", type=_positive(int), default=128, metavar="N", help="Tokens per text sample (128)."
        )
        parser.add_argument("--threads", type=_positive(int), metavar="N", help="CPU threads (those torch would use).")
        parser.add_argument(
            "--seconds", type=_positive(float), default=2.0, metavar="S", help="Time for each latency (2)."
        )
        parser.add_argument(
            "--dtype",
            choices=["auto", "float32", "bfloat16", "float16"],
            default="auto",
            help="What to load the weights as (auto: as they are stored).",
        )
        parser.add_argument("--device", default="cpu", help="Where to measure, for example cuda:0 (cpu).")
        parser.add_argument("--json", metavar="FILE", help="Also write the report to this file.")
        parser.add_argument(
            "--import",
            dest="modules",
            action="append",
            default=[],
            metavar="MODULE",
            help="Import a Python module that registers its own architecture with the Auto classes; may be repeated.",
        )
        parser.add_argument(
            "--trust-remote-code", action="store_true", help="Allow a model to run code from its repository."
        )

    def run(self) -> None:
        assert self.args is not None
        try:
            table = bench(self.args)
        except Refusal as refusal:
            print(f"optimum-cli dendritic bench: {refusal}", file=sys.stderr)
            raise SystemExit(1) from None
        print(table)


class DendriticCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="dendritic", help="Training-time structured pruning: measure pruned models.")
    SUBCOMMANDS = (CommandInfo(name="bench", help=BenchCommand.COMMAND.help, subcommand_class=BenchCommand),)


REGISTER_COMMANDS = [DendriticCommand]


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """An argparse type: a number greater than zero."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not number > 0:
            raise ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'} greater than 0")
        return number

    return parse


def bench(args: Namespace) -> str:
    """Load, measure, write the JSON file if one is asked for, and return the table.

    Raises:
        Refusal: the arguments name something that is not there or cannot be measured.
    """
    if args.json is not None and not Path(args.json).absolute().parent.is_dir():
        raise Refusal(f"--json {args.json}: its folder does not exist. Create the folder first.")
    _import_modules(args.modules)

    from optimum.dendritic.efficiency import measure  # importing the package registers the loader of packed models

    model = _load(args.model, args)
    baseline = None if args.baseline is None else _load(args.baseline, args)
    report = measure(
        model,
        _example_inputs(model, args),
        baseline=baseline,
        large_batch=args.batch_size,
        threads=args.threads,
        seconds=args.seconds,
    )
    if args.json is not None:
        Path(args.json).write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    return report.table()


def _import_modules(names: list[str]) -> None:
    sys.path.insert(0, "")  # the present folder, as for `python -m`
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Refusal(f"--import {name}: {error}. Name a module of the present folder or of PYTHONPATH.") from error


def _load(name: str, args: Namespace) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig

    trust = args.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust)
        auto_class = _auto_class_for(name, config)
        model = auto_class.from_pretrained(name, config=config, dtype=args.dtype, trust_remote_code=trust)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refusal(f"cannot load {name!r}: {error}\n{OWN_ARCHITECTURE}") from error
    try:
        return model.to(torch.device(args.device))
    except (AssertionError, RuntimeError) as error:  # torch built without CUDA asserts
        raise Refusal(f"--device {args.device}: {error}. Name a device that this machine has, such as cpu.") from error


def _auto_class_for(name: str, config: PretrainedConfig) -> type:
    """The Auto class that builds the architecture that `config` names."""
    from transformers.models.auto import modeling_auto

    architectures = config.architectures or []
    auto_classes = {key: value for key, value in vars(modeling_auto).items() if key.startswith("AutoModel")}
    for key in config.to_dict().get("auto_map", {}):  # code of its own repository; loading it asks for trust
        if key in auto_classes:
            return auto_classes[key]
    for auto_class in auto_classes.values():
        found = auto_class._model_mapping.get(type(config), ())
        if any(
            model_class.__name__ in architectures for model_class in (found if isinstance(found, tuple) else (found,))
        ):
            return auto_class
    raise Refusal(
        f"cannot load {name!r}: no Auto class knows its architecture {architectures} "
        f"(model type {config.model_type!r}).\n{OWN_ARCHITECTURE}"
    )


def _example_inputs(model: PreTrainedModel, args: Namespace) -> dict[str, torch.Tensor]:
    """One sample; text is repeated or cut to the wanted number of tokens."""
    from optimum.dendritic.inputs import example_inputs_for

    try:
        inputs = example_inputs_for(model)
    except ValueError as error:
        raise Refusal(f"{error}\nFor such a model call optimum.dendritic.measure from Python.") from error
    if model.main_input_name != "input_ids":
        return inputs
    length, most = args.sequence_length, model.config.to_dict().get("max_position_embeddings", args.sequence_length)
    if length > most:
        raise Refusal(f"--sequence-length {length}: the model takes at most {most} tokens. Give {most} or fewer.")
    return {key: value.repeat(1, -(-length // value.shape[1]))[:, :length] for key, value in inputs.items()}
