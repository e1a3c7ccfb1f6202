"""`optimum-cli dendritic export`: a packed or dense model as a file of another runtime, checked against the model."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from ..errors import DendriticError, invalid
from ..runtimes.executorch import export_executorch
from ..runtimes.gguf import export_gguf
from ..runtimes.litert import export_litert
from ..runtimes.nir import export_nir
from ..runtimes.onnx import export_onnx
from ..runtimes.openvino import export_openvino
from ..runtimes.vllm import export_vllm
from .loading import example_inputs, import_modules, load_model, processor_beside, told, write_json
from .requests import GGUF, NIR, VLLM

RUNTIMES: dict[str, tuple[str, Callable[..., Path]]] = {  # the runtime that answers, and the function that exports
    "onnx": ("ONNX Runtime", export_onnx),
    "openvino": ("OpenVINO", export_openvino),
    "executorch": ("ExecuTorch", export_executorch),
    "litert": ("LiteRT", export_litert),
}


def run(args: Namespace) -> str:
    """Load, export, write the JSON file if one is asked for, and return what was written.

    Raises:
        DendriticError: an argument names something that does not exist or cannot be exported.
    """
    import_modules(args.modules)
    model = load_model(args.model, args)
    processor = processor_beside(args.model, args)
    if args.format == GGUF:
        path = _exported(args, lambda: export_gguf(model, args.output, tokenizer=processor, dtype=args.gguf_type))
        checked = "It is read by llama.cpp."
    elif args.format == VLLM:
        path = _exported(args, lambda: export_vllm(model, args.output, tokenizer=processor))
        checked = "vLLM reads the folder with --trust-remote-code."
    elif args.format == NIR:
        inputs = {model.main_input_name: _calibration(args.calibration)}
        path = _exported(args, lambda: export_nir(model, inputs, args.output))
        checked = "Read back by sinabs, it spikes as what was written."
    else:
        runtime, export = RUNTIMES[args.format]
        inputs = example_inputs(model, args.sequence_length)
        options = {"processor": processor, **({"int8": True} if args.int8 else {})}
        path = _exported(args, lambda: export(model, inputs, args.output, **options))
        checked = f"{runtime} answers as the model does{', as nearly as int8 can' if args.int8 else ''}."
    files = {name: (path.parent / name).stat().st_size for name in _files(path)}
    write_json(args, {"model": args.model, "format": args.format, "output": str(path), "bytes": files})
    beside = "no processor was found beside it" if processor is None else f"with its {type(processor).__name__}"
    written = f"Exported to {path}, {sum(files.values()):,} bytes"
    return f"{written}. {checked}" if args.format == NIR else f"{written}, {beside}. {checked}"


def _calibration(file: str) -> torch.Tensor:
    """The inputs of a `.npy` file, as float32."""
    try:
        return torch.from_numpy(numpy.load(file, allow_pickle=False)).float()
    except (OSError, ValueError, TypeError) as error:
        remedy = "Write it with numpy.save(file, pixels), with pixels of shape (samples, ...)."
        raise invalid("--calibration", file, f"cannot be read ({told(error)})", remedy) from error


def _exported(args: Namespace, export: Callable[[], Any]) -> Any:
    """What `export` returns; whatever it raises as an error of ours."""
    try:
        return export()
    except (DendriticError, OSError):
        raise
    except ImportError as error:  # it says what to install
        raise invalid("MODEL", args.model, "cannot be exported without a package", str(error)) from error
    except Exception as error:  # the model's own code and the exporter's run, and what the latter raises has no class
        remedy = "Report it with its config, or export another model."
        raise invalid("MODEL", args.model, f"cannot be exported ({told(error)})", remedy) from error


def _files(path: Path) -> list[str]:
    """The graph, and the weights where they are in a file of their own."""
    names = dict.fromkeys((path.name, f"{path.name}.data", path.with_suffix(".bin").name))
    return [name for name in names if (path.parent / name).exists()]
