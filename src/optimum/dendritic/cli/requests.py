"""What a command refuses before it imports anything heavy: there is no torch in here, nor in what it imports."""

import importlib.util
import json
import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import RECIPES, TARGETS, DendriticConfig
from ..errors import DendriticError, invalid

GGUF, NIR = "gguf", "nir"  # one file each
VLLM = "vllm"
FORMATS = ("onnx", "openvino", "executorch", "litert", GGUF, NIR, VLLM)
QUANTIZED = ("onnx", "openvino")  # to int8, without samples
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")

REPO_ID = re.compile(r"[\w][\w.-]*(/[\w.-]+)?")  # of the Hub: a name, or an owner and a name
OPTIONS = (
    "budget",
    "scope",
    "units",
    "importance",
    "native",
    "floor",
    "segment_size",
    "multiple_of",
)  # by the fields' names


def check(command: str, args: Namespace) -> None:
    """Refuse what is wrong whatever the model is.

    Raises:
        DendriticError: it names the option.
    """
    check_file("--json", args.json)
    check_model("MODEL", args.model)
    match command:
        case "compress":
            configs_of(args)
            check_model("--dataset", args.dataset)
            check_dry_run(args)
        case "search":
            check_search(args)
        case "bench":
            check_model("--baseline", args.baseline)
            check_energy(args)
        case "card":
            check_energy(args)
        case "show":
            check_file("--figure", args.figure)
        case "export":
            check_format(args)
    if command in ("compress", "card") and args.output is not None:
        check_folder("--output", args.output)


def check_search(args: Namespace) -> None:
    """Refuse a search of several budgets, one without data or a place for its result, and options of compress alone."""
    if len(configs_of(args)) > 1:
        raise invalid("--sparsity", args.sparsity, "is several", "Search for one budget at a time.")
    for option, value in (("--dataset", args.dataset), ("--output", args.output)):
        if value is None:
            raise invalid(option, None, "is missing", "Name what to judge by, and the file to write.")
    for option in ("dry_run", "no_reconstruct", "allocation"):
        if vars(args)[option]:
            rule = "means nothing to a search, which packs no model"
            raise invalid(f"--{option.replace('_', '-')}", vars(args)[option], rule, "Leave it out.")
    check_model("--dataset", args.dataset)
    check_file("--output", args.output)


def check_file(option: str, file: str | None) -> None:
    """Refuse a file to write if its folder does not exist or a folder has its name."""
    if file is None:
        return
    if not Path(file).absolute().parent.is_dir():
        raise invalid(option, file, "its folder does not exist", "Create the folder first.")
    if Path(file).is_dir():
        raise invalid(option, file, "is a folder", "Name a file.")


def check_folder(option: str, folder: str) -> None:
    """Refuse a folder to write if it cannot be made, and make nothing."""
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        raise invalid(option, folder, f"cannot be created ({there} is a file)", "Name another folder.")
    if not os.access(there, os.W_OK):
        raise invalid(option, folder, f"cannot be written ({there} is read-only)", "Name another folder.")


def check_model(option: str, name: str | None) -> None:
    """Refuse a name that is neither a folder nor can be an id on the Hub."""
    if name is None or Path(name).exists() or REPO_ID.fullmatch(name):
        return
    raise invalid(option, name, "there is no such folder", "Name a folder that exists, or an id on the Hub.")


def check_energy(args: Namespace) -> None:
    """Refuse `--energy` before anything is measured if the package that reads the counters is missing."""
    if args.energy and importlib.util.find_spec("zeus") is None:
        remedy = "Install it: pip install optimum-dendritic[energy]."
        raise invalid("--energy", True, "is measured by zeus, which is not installed", remedy)


def check_format(args: Namespace) -> None:
    """Refuse an output of the wrong kind, and int8 where there is not one."""
    if args.int8 and args.format not in QUANTIZED:
        remedy = "Give --gguf-type q8_0." if args.format == GGUF else f"Choose {' or '.join(QUANTIZED)}."
        raise invalid("--int8", True, f"is not made for {args.format}", remedy)
    if (args.calibration is not None) != (args.format == NIR):
        rule = (
            "is needed: its samples say how large the rates become" if args.format == NIR else "is read for nir alone"
        )
        remedy = "Name a .npy file of a hundred inputs." if args.format == NIR else "Leave it out."
        raise invalid("--calibration", args.calibration, rule, remedy)
    if args.calibration is not None and not Path(args.calibration).is_file():
        raise invalid("--calibration", args.calibration, "there is no such file", "Name a .npy file.")
    if args.format in (GGUF, NIR):
        check_file("--output", args.output)
    elif Path(args.output).exists() and not Path(args.output).is_dir():
        raise invalid("--output", args.output, "is not a folder", "Name a folder, which need not exist.")


def check_dry_run(args: Namespace) -> None:
    """Refuse a missing dataset or output, which only a dry run does without, and an output that holds the model."""
    for option, value in (("--dataset", args.dataset), ("--output", args.output)):
        if value is None and not args.dry_run:
            raise invalid(option, None, "is required", "Give it, or --dry-run, which saves nothing.")
    if args.output is not None and Path(args.output).exists() and Path(args.model).exists():
        if Path(args.output).samefile(args.model):
            raise invalid("--output", args.output, "holds the model that is compressed", "Name another folder.")


def configs_of(args: Namespace) -> list[DendriticConfig]:
    """The config of each model that is asked for: preset, then file, then named options, then `--set`.

    What comes later wins.

    There are several where `--sparsity` has several values.
    """
    fields = {} if args.config is None else _fields_of_file(args.config)
    named = {name: vars(args)[name] for name in OPTIONS if vars(args)[name] is not None}
    targets = {name: vars(args)[name] for name in TARGETS if vars(args)[name] is not None}
    if targets:
        fields = {name: value for name, value in fields.items() if name not in TARGETS}
    own = dict(_assignment(text) for text in args.set)
    several: Sequence[Any] = targets.pop("sparsity", [None])
    if len(set(several)) < len(several):
        raise invalid("--sparsity", several, "has a value twice", "Give each once.")
    preset = RECIPES.get(args.preset, {})
    if not targets and several == [None] and not {*preset, *fields, *own} & {*TARGETS}:
        rule = "nothing says how much is to go"
        raise invalid("--sparsity", None, rule, f"Give one of {', '.join(map(_option, TARGETS))}, or --config.")
    configs = []
    for sparsity in several:
        dial = {} if sparsity is None else {"sparsity": sparsity}
        configs.append(_config(args.preset, {"seed": args.seed, **fields, **named, **targets, **dial, **own}))
    return configs


def _config(preset: str | None, fields: dict[str, Any]) -> DendriticConfig:
    try:
        return DendriticConfig.from_dict(fields) if preset is None else DendriticConfig.preset(preset, **fields)
    except DendriticError as error:
        name = str(error).partition(" = ")[0]
        raise DendriticError(str(error).replace(name, _option(name), 1)) from error


def _option(field: str) -> str:
    """The option that sets a field: its own, or `--set`."""
    return f"--{field.replace('_', '-')}" if field in (*OPTIONS, *TARGETS, "seed") else f"--set {field}"


def _fields_of_file(file: str) -> dict[str, Any]:
    """The fields that a JSON file holds, all of a config or some of them."""
    try:
        read = json.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise invalid("--config", file, f"cannot be read ({error.strerror})", "Name a JSON file.") from error
    except ValueError as error:
        raise invalid("--config", file, f"is not JSON ({error})", "Write what config.to_json() returns.") from error
    if not isinstance(read, dict):
        raise invalid("--config", file, "holds no JSON object", "Write what config.to_json() returns.")
    return read


def _assignment(text: str) -> tuple[str, Any]:
    """`floor=0.0` -> ("floor", 0.0). A value that is not JSON is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise invalid("--set", text, "is not field=value", "Write for example --set floor=0.0.")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value
