"""The arguments of each command, in a function of its name; there is no torch in here, nor in what it imports."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable

from ..config import BUDGETS, IMPORTANCES, PRESETS, RECIPES, SCOPES, SEARCHES
from .requests import FORMATS, GGUF_TYPES


def bench(parser: ArgumentParser) -> None:
    parser.description = "Measure what a model costs: parameters, bytes, MACs, latency and peak memory."
    _add_model(parser)
    parser.add_argument("--baseline", metavar="MODEL", help="The model to compare with, a folder or an id.")
    parser.add_argument(
        "--compiled", action="store_true", help="Time both as torch.compile makes them, frozen on a CPU."
    )
    _add_timing(parser)


def card(parser: ArgumentParser) -> None:
    parser.description = (
        "Write README.md, efficiency.json and figures for a compressed model, measured beside its dense baseline: "
        "a model of the same config with random weights."
    )
    _add_model(parser)
    parser.add_argument("--output", metavar="DIR", help="Where to write (the model's own folder).")
    parser.add_argument("--repo-id", metavar="ID", help="Under which the model will stand on the Hub.")
    parser.add_argument("--license", metavar="ID", help="Of the model, as the Hub calls it, for example apache-2.0.")
    parser.add_argument("--base-model", metavar="ID", help="On the Hub: what the model was made from.")
    parser.add_argument("--no-measure", action="store_true", help="Tell what is known, and measure nothing.")
    _add_timing(parser)


def compress(parser: ArgumentParser) -> None:
    parser.description = (
        "Prune a trained model in one shot: score on a few hundred samples, prune, reconstruct by least squares, "
        "pack, save. For sequence classification, image classification and causal language models."
    )
    _add_model(parser)
    _add_data(parser)
    _add_pruning(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Tell what would go, from which layers, and what would be left, and save nothing. Without --dataset, "
        "by the magnitude of the weights.",
    )
    parser.add_argument("--output", metavar="DIR", help="Where the packed model is saved.")


def search(parser: ArgumentParser) -> None:
    compress(parser)
    parser.description = (
        "Search how much each part of a trained model is to keep under one budget, by the loss on a few hundred "
        "samples. Takes what compress takes; the file that it writes is for compress --allocation and trainings."
    )
    group = parser.add_argument_group("search")
    group.add_argument(
        "--method",
        choices=SEARCHES,
        default="evolution",
        metavar="NAME",
        help="%(choices)s (evolution). rl needs the extra of that name.",
    )
    group.add_argument(
        "--evaluations", type=_positive(int), default=200, metavar="N", help="Passes over all samples (200)."
    )
    group.add_argument("--cache", metavar="FILE", help="Losses so far: a search started again goes on from it.")


def show(parser: ArgumentParser) -> None:
    parser.description = (
        "Draw what is left of each layer of a compressed model: inputs, outputs and parameters, and whether it is "
        "a plain smaller layer, gathers its inputs, scatters its outputs, or was never touched."
    )
    _add_model(parser, runs=False)
    parser.add_argument(
        "--figure", metavar="FILE", help="Also draw it, and what is left of each group of units, as .png, .svg or .pdf."
    )


def export(parser: ArgumentParser) -> None:
    parser.description = (
        "Export a packed or dense model to another runtime, and check there that the file answers as the model "
        "does. Its config and its tokenizer or image processor go beside it. To GGUF, for llama.cpp, a Llama-like "
        "model is written as one file, its tokenizer in it; for vLLM, as a folder of the form of its "
        "DeciLMForCausalLM; to NIR, for neuromorphic chips, a network of ReLUs as a spiking one."
    )
    _add_model(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        metavar="NAME",
        help="What to export to: %(choices)s (onnx). Each but vllm has an extra of its name; that of nir is "
        "`neuromorphic`.",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="Where the files are saved; of gguf and nir, the file."
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="For nir: a .npy file of some hundred inputs as the model gets them, by which the rates are scaled.",
    )
    parser.add_argument("--int8", action="store_true", help="Quantize the weights of an onnx or openvino file to int8.")
    parser.add_argument(
        "--gguf-type",
        choices=GGUF_TYPES,
        default="f16",
        metavar="TYPE",
        help="What the matrices of a GGUF file are stored as: %(choices)s (f16).",
    )


def push(parser: ArgumentParser) -> None:
    parser.description = (
        "Push a packed model, its tokenizer or image processor, and its card to the Hub, in one commit. "
        "Log in with `hf auth login` or set HF_TOKEN."
    )
    _add_model(parser, runs=False)
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name, made if it is not there yet.")
    parser.add_argument("--private", action="store_true", help="Let nobody else see it.")
    parser.add_argument("--revision", metavar="BRANCH", help="Push to a branch, made if it is not there (main).")
    parser.add_argument("--message", default="Upload model", metavar="TEXT", help="Of the commit (Upload model).")
    parser.add_argument(
        "--remote-code", action="store_true", help="Add a stub, so that trust_remote_code=True loads it."
    )
    parser.add_argument("--no-measure", action="store_true", help="Tell on the card what is known; measure nothing.")


def _add_data(parser: ArgumentParser) -> None:
    """What a model is scored and evaluated on."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="A folder that datasets.load_dataset reads, or a Hub id.")
    data.add_argument("--subset", metavar="NAME", help="The configuration of a dataset that has several.")
    data.add_argument("--split", default="train", help="Where the calibration samples come from (train).")
    data.add_argument("--eval-split", metavar="NAME", help="Where to evaluate (validation or test, if there).")
    data.add_argument("--text-column", nargs="+", metavar="NAME", help="One column of text, or two for pairs.")
    data.add_argument("--image-column", metavar="NAME", help="The column of images.")
    data.add_argument("--label-column", metavar="NAME", help="The column of labels.")
    data.add_argument("--samples", type=_positive(int), default=512, metavar="N", help="Calibration samples (512).")
    data.add_argument(
        "--eval-samples", type=_positive(int), default=1000, metavar="N", help="Evaluation samples, at most (1000)."
    )
    data.add_argument("--batch-size", type=_positive(int), default=16, metavar="N", help="Samples in one batch (16).")
    data.add_argument("--seed", type=int, default=0, help="Which samples are drawn (0).")


def _add_pruning(parser: ArgumentParser) -> None:
    """The fields of the config."""
    pruning = parser.add_argument_group("pruning")
    target = pruning.add_mutually_exclusive_group()
    target.add_argument(
        "--sparsity",
        type=float,
        nargs="+",
        metavar="S",
        help="Fraction of the budget that goes, 0 to 1; several make a model each, and a table.",
    )
    target.add_argument("--speedup", type=float, metavar="X", help="How many times as fast it is to be.")
    target.add_argument("--latency-ms", type=float, metavar="MS", help="How long one forward pass may take.")
    target.add_argument("--parameters", type=float, metavar="N", help="How many parameters it may have, e.g. 15e6.")
    target.add_argument("--megabytes", type=float, metavar="MB", help="How large its file may be, in 10^6 bytes.")
    pruning.add_argument(
        "--preset",
        choices=RECIPES,
        metavar="NAME",
        help="A recipe of fields, which a file and options add to or win over: %(choices)s.",
    )
    pruning.add_argument(
        "--config", metavar="FILE", help="A JSON file with fields of DendriticConfig; options given here win."
    )
    pruning.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="Set any field of DendriticConfig, for example floor=0.0; may be repeated.",
    )
    pruning.add_argument("--budget", choices=BUDGETS, metavar="NAME", help="What is counted: %(choices)s (params).")
    pruning.add_argument(
        "--scope", choices=SCOPES, metavar="NAME", help="Of what --sparsity is a fraction: %(choices)s (targets)."
    )
    pruning.add_argument(
        "--units",
        choices=PRESETS,
        metavar="NAME",
        help="What may go: %(choices)s (fine). Structured models get narrower throughout and gather nothing.",
    )
    pruning.add_argument(
        "--importance",
        choices=IMPORTANCES,
        metavar="NAME",
        help="What segments are ranked by: %(choices)s (dendritic).",
    )
    pruning.add_argument("--floor", type=float, metavar="F", help="Smallest fraction that a layer keeps (0.05).")
    pruning.add_argument("--segment-size", type=_positive(int), metavar="N", help="Inputs in one segment (32).")
    pruning.add_argument(
        "--multiple-of",
        type=_positive(int),
        metavar="N",
        help="What every width stays a multiple of, for devices that compute such widths faster (1).",
    )
    pruning.add_argument("--no-reconstruct", action="store_true", help="Leave out the least-squares reconstruction.")
    pruning.add_argument(
        "--native",
        action="store_true",
        default=None,
        help="Prune evenly, to a stock model that loads without this package.",
    )
    pruning.add_argument(
        "--allocation", metavar="FILE", help="How the budget is divided, as the command search has found it."
    )


def _add_model(parser: ArgumentParser, runs: bool = True) -> None:
    """What every command asks for: a model, how to load it (and, where it `runs`, on what), where the figures go."""
    parser.add_argument("model", metavar="MODEL", help="A folder or the id of a model on the Hub.")
    if runs:
        parser.add_argument(
            "--sequence-length", type=_positive(int), default=128, metavar="N", help="Tokens per text sample (128)."
        )
        parser.add_argument("--device", default="cpu", help="Where to run the model, for example cuda:0 (cpu).")
    else:
        parser.set_defaults(device="cpu")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="What to load the weights as (auto: as they are stored).",
    )
    parser.add_argument("--json", metavar="FILE", help="Also write the figures to this file.")
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
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="Show no progress and no warnings.")
    loudness.add_argument("-v", "--verbose", action="store_true", help="Also tell what becomes of each layer.")


def _add_timing(parser: ArgumentParser) -> None:
    """How latencies are measured."""
    parser.add_argument(
        "--batch-size", type=_positive(int), default=32, metavar="N", help="Batch of the second latency (32)."
    )
    parser.add_argument("--threads", type=_positive(int), metavar="N", help="CPU threads (those torch would use).")
    parser.add_argument("--seconds", type=_positive(float), default=2.0, metavar="S", help="Time for each latency (2).")
    parser.add_argument(
        "--energy", action="store_true", help="Also measure joules per sample, where the machine has a counter."
    )


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
