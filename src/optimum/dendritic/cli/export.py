"""`optimum-cli dendritic export`: a packed or dense model as an ONNX file, checked against the model."""

from argparse import Namespace
from pathlib import Path

from ..errors import DendriticError, invalid
from ..export import export_onnx
from .loading import check_json, example_inputs, import_modules, load_model, processor_beside, told, write_json


def run(args: Namespace) -> str:
    """Load, export, write the JSON file if one is asked for, and return what was written.

    Raises:
        DendriticError: an argument names something that does not exist or cannot be exported.
    """
    check_json(args)
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise invalid("--output", args.output, "is not a folder", "Name a folder, which need not exist.")
    import_modules(args.modules)
    model = load_model(args.model, args)
    inputs = example_inputs(model, args.sequence_length)
    processor = processor_beside(args.model, args)
    try:
        path = export_onnx(model, inputs, args.output, processor=processor)
    except (DendriticError, OSError):
        raise
    except ImportError as error:  # it says what to install
        raise invalid("MODEL", args.model, "cannot be exported without a package", str(error)) from error
    except Exception as error:  # the model's own code and the exporter's run, and what the latter raises has no class
        remedy = "Report it with its config, or export another model."
        raise invalid("MODEL", args.model, f"cannot be exported ({told(error)})", remedy) from error
    files = {name: (path.parent / name).stat().st_size for name in _files(path)}
    write_json(args, {"model": args.model, "output": str(path), "bytes": files})
    beside = "no processor was found beside it" if processor is None else f"with its {type(processor).__name__}"
    return f"Exported to {path}, {sum(files.values()):,} bytes, {beside}. ONNX Runtime answers as the model does."


def _files(path: Path) -> list[str]:
    """The graph, and the weights where they are in a file of their own."""
    return [name for name in (path.name, f"{path.name}.data") if (path.parent / name).exists()]
