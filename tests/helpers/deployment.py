"""The page of what runs where, made from the cases that the tests prove, and never written by hand.

cd tests
python -m helpers.deployment                               # print it
python -m helpers.deployment --write ../docs/deployment.md
"""

import sys
from pathlib import Path

from helpers.exports import EXPORTS, FAMILIES, GGUF, INT8, SPIKING, SPIKING_FORMS

PAGE = """\
# Where packed models run

Made by `python -m helpers.deployment` in `tests` from the cases that `tests/test_runtimes.py`, `tests/test_gguf.py`,
`tests/test_int8.py` and `tests/test_nir.py` prove: a small packed model of the family is exported, run in the runtime
itself on several shapes, and compared with the model. All of them run in PyTorch with this package, too.

{families}

llama.cpp by architecture (`--format gguf`; fp32, fp16, bf16 and Q8_0; a block may have lost its attention or its FFN):

{gguf}

int8 on top, every linear layer, those behind a gather as well:

{int8}

Spiking networks for neuromorphic chips, as a NIR file (`--format nir`, extra `neuromorphic`):

{nir}

What each runtime needs:

{needs}
"""
NEEDS = {
    "onnx": ["`--format onnx`, extra `onnx`.", "Batch and sequence are open."],
    "openvino": [
        "`--format openvino`, extra `openvino`.",
        "Batch and sequence are open. On a processor with bfloat16 units OpenVINO rounds to bfloat16,",
        "unless it is told `INFERENCE_PRECISION_HINT=f32`.",
    ],
    "executorch": [
        "`--format executorch`, extra `executorch`.",
        "The batch is that of the example, a sequence at most as long. Float32, on the CPU by XNNPACK.",
    ],
    "litert": [
        "`--format litert`, extra `litert` (2 GB, with JAX; put it into an environment of its own).",
        "All shapes are those of the example. Float32.",
    ],
}


def page() -> str:
    """The page, as Markdown."""
    header = ["packed model", *(export.name for export in EXPORTS.values())]
    rows = [
        [name, *(export.refused.get(family, "yes") for export in EXPORTS.values())] for family, name in FAMILIES.items()
    ]
    gguf = [["model", "blocks that differ", "blocks that are alike"], *GGUF.values()]
    int8 = [["runtime", "by", "what is quantized"], *INT8]
    refused = [[why.model, f"refused: {why.shown}"] for why in SPIKING.values()]
    nir = table([["model", "spiking network"], *SPIKING_FORMS, *refused])
    needs = "\n".join(f"* {EXPORTS[name].name}: {' '.join(words)}" for name, words in NEEDS.items())
    return PAGE.format(families=table([header, *rows]), gguf=table(gguf), int8=table(int8), nir=nir, needs=needs)


def table(rows: list[list[str]]) -> str:
    """Markdown; the first row is the header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str]) -> None:
    if arguments:
        flag, file = arguments
        assert flag == "--write", "usage: python -m helpers.deployment [--write ../docs/deployment.md]"
        Path(file).write_text(page())
    else:
        sys.stdout.write(page())


if __name__ == "__main__":
    main(sys.argv[1:])
