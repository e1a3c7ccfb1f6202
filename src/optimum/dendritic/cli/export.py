"""`optimum-cli dendritic export`: a packed or dense model as an ONNX file, checked against the model."""

from argparse import Namespace
from pathlib import Path

from ..export import export_onnx
from .loading import Refusal, check_json, example_inputs, import_modules, load_model, processor_beside, write_json


def run(args: Namespace) -> str:
    """Load, export, write the JSON file if one is asked for, and return what was written.

    Raises:
        Refusal: the arguments name something that is not there or cannot be exported.
    """
    check_json(args)
    import_modules(args.modules)
    model = load_model(args.model, args)
    inputs = example_inputs(model, args.sequence_length)
    processor = processor_beside(args.model, args)
    try:
        path = export_onnx(model, inputs, args.output, processor=processor)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise Refusal(f"cannot export {args.model!r}: {error}") from error
    files = {name: (path.parent / name).stat().st_size for name in _files(path)}
    write_json(args, {"model": args.model, "output": str(path), "bytes": files})
    beside = "no processor was found beside it" if processor is None else f"with its {type(processor).__name__}"
    return f"Exported to {path}, {sum(files.values()):,} bytes, {beside}. ONNX Runtime answers as the model does."


def _files(path: Path) -> list[str]:
    """The graph, and the weights where they are in a file of their own."""
    return [name for name in (path.name, f"{path.name}.data") if (path.parent / name).exists()]
