"""Stacks of equal blocks, and which of them can be skipped: the model then has something that returns what it is given
in the place of a block, and answers as it does while the block's gate is closed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers.utils import logging

from ..nn import SkippedBlock, block_input, is_prunable, with_output
from .verification import answers, answers_alike, exchanged

logger = logging.get_logger(__name__)


def stacks_in(model: nn.Module, targets: Sequence[str]) -> dict[str, int]:
    """Outermost stacks of two blocks or more, all of the same tensors, whose prunable layers all are targets; and how
    many blocks each has."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if type(module) is not nn.ModuleList or len(module) < 2 or any(name.startswith(f"{n}.") for n in found):
            continue
        prunable = {f"{name}.{inner}" for inner, layer in module.named_modules() if is_prunable(layer)}
        if prunable and prunable <= set(targets) and all(_shapes(block) == _shapes(module[0]) for block in module):
            found[name] = len(module)
    return found


def stacks_that_skip(model: nn.Module, inputs: Mapping[str, Any], targets: Sequence[str]) -> dict[str, nn.ModuleList]:
    """The stacks of which any block can be skipped, found by trial: every other block, then the others.

    Args:
        inputs: keyword arguments of `model.forward`.
    """
    proved: dict[str, nn.ModuleList] = {}
    for name, size in stacks_in(model, targets).items():
        halves = [[f"{name}.{i}" for i in range(size) if i % 2 == odd] for odd in (0, 1)]
        if all(_skips(model, inputs, blocks) for blocks in halves):
            stack = model.get_submodule(name)
            assert isinstance(stack, nn.ModuleList)
            proved[name] = stack
        else:
            logger.info(f"{name} keeps its blocks: the model does not do without one of them")
    return proved


@contextmanager
def skipping(model: nn.Module, blocks: Sequence[str]) -> Iterator[dict[str, int]]:
    """Let these blocks return what they are given; how many things each returns, once it has run: see `Skipped`."""
    returns: dict[str, int] = {}

    def skip(block: nn.Module, args: Any, kwargs: Any, output: Any, *, name: str) -> Any:
        returns[name] = len(output) if isinstance(output, tuple) else 0
        return with_output(output, block_input(args, kwargs))

    hooks = [
        model.get_submodule(name).register_forward_hook(partial(skip, name=name), prepend=True, with_kwargs=True)
        for name in blocks
    ]
    try:
        yield returns
    finally:
        for hook in hooks:
            hook.remove()


def _skips(model: nn.Module, inputs: Mapping[str, Any], blocks: Sequence[str]) -> bool:
    with skipping(model, blocks) as returns:
        expected = answers(model, inputs)
    if expected is None or returns.keys() != set(blocks):
        return False
    small = {name: SkippedBlock(model.get_submodule(name), returns[name]) for name in blocks}
    with exchanged(model, small):
        return answers_alike(model, inputs, expected, like=next(model.parameters()))


def _shapes(block: nn.Module) -> dict[str, Any]:
    named = [*block.named_parameters(remove_duplicate=False), *block.named_buffers(remove_duplicate=False)]
    return {name: tensor.shape for name, tensor in named}
