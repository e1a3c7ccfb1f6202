"""The page of what runs where, made from the cases that the tests prove, and never written by hand.

cd tests
python -m helpers.deployment                               # print it
python -m helpers.deployment --write ../docs/deployment.md
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.exports import EXPORTS, FAMILIES, GGUF, INT8, PER_LAYER, SPIKING, SPIKING_FORMS, VLLM

PAGE = """\
# Where packed models run

Made by `python -m helpers.deployment` in `tests` from the cases that `tests/test_runtimes.py`, `tests/test_gguf.py`,
`tests/test_vllm.py`, `tests/test_int8.py` and `tests/test_nir.py` prove: a small packed model of the family is
exported, run in the runtime itself on several shapes, and compared with the model. All of them run in PyTorch with this
package, too.

{families}

llama.cpp by architecture (`--format gguf`; fp32, fp16, bf16 and Q8_0; a block may have lost its attention or its FFN):

{gguf}

vLLM, as a folder in the form of its `DeciLMForCausalLM` (`--format vllm`, `--trust-remote-code` there), in which every
block says the width of its FFN, and may lack it or its attention:

{vllm}

Query heads are one number there for all blocks: where they differ the export refuses, and names what avoids it.
{checked}

int8 on top, every linear layer, those behind a gather as well:

{int8}

Spiking networks for neuromorphic chips, as a NIR file (`--format nir`, extra `neuromorphic`):

{nir}

## What stock transformers reads per layer

`per_layer_config` of a stock config (transformers 5.23) gives single layers numbers of their own. A stock class of
which no code reads a number so raises `AmbiguousGlobalPerLayerAttributeError` where it reads the global one, so a
packed checkpoint that said its widths there would not load at all, with this package or without. With
`allow_global_per_layer_attribute_access` it is built, and has the global width in all layers, which does not fit. So
`native=True` writes a number there only where a model that is built with it has that number in that layer alone, and
other packed checkpoints never do. `tests/test_per_layer_config.py` asserts each row, and fails on the day on which it
changes:

{per_layer}

Gemma 4 reads the key/value heads of a kind of layer, the same in all of that kind, and not the query heads that share
them, so whole groups of heads cannot go there alone. The text model of Step 3.7 reads both: pruned with `native=True`
its layers differ in their heads, and it loads in stock transformers (`tests/test_native_per_layer.py`). A config that
takes a *list* says widths per layer, too: a Gemma 3n that is pruned with `native=True` has one FFN width for each layer
(`tests/test_native_lists.py`).

## What each runtime needs

{needs}
"""
CHECKED = (
    "The tests follow the published source of vLLM block by block, on the layers of stock transformers, and ask vLLM\n"
    "itself where it is installed. vLLM 0.32.0 on a CPU answered with the 16 tokens of the model, and with\n"
    "log-probabilities within 1e-6 of its own: a Llama with a block without FFN, one without attention in its first\n"
    "block, and a Qwen2 with a later block without attention."
)
NEEDS = {
    "onnx": [
        "`--format onnx`, extra `onnx`.",
        "Batch and sequence are open. On a CPU give the session `disabled_optimizers=['SkipLayerNormFusion']`: the",
        "fused operator took three times as long as the two that it replaces, which is much of a small BERT in int8",
        "(ONNX Runtime 1.32, one thread; [measured](../model_cards/int8-sst2-low-rank.md)).",
    ],
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
    vllm = [["model", "FFNs that differ"], *VLLM.values()]
    read = {True: "read", False: "`AmbiguousGlobalPerLayerAttributeError`"}
    per_layer = [["stock class", "number in `per_layer_config`", "in transformers 5.23"]]
    per_layer += [[name, f"`{field}`", read[found]] for (name, field), found in PER_LAYER.items()]
    needs = "\n".join(f"* {EXPORTS[name].name}: {' '.join(words)}" for name, words in NEEDS.items())
    return PAGE.format(
        families=table([header, *rows]), gguf=table(gguf), vllm=table(vllm), checked=CHECKED, int8=table(int8), nir=nir,
        per_layer=table(per_layer), needs=needs,
    )  # fmt: skip


def table(rows: Sequence[Sequence[str]]) -> str:
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
