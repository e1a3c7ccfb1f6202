"""Which dials a stock config has for a model, found by turning them: no tables of families or of field names.

Pruning can take from a model whatever its wiring allows; a stock config can say only a few things: one FFN width for all
layers, the number of heads where the width of a head is a number of its own, the number of layers. To find out, every
number of the config that could mean it is changed, one at a time, and the model is built from it on the meta device. A
number is a dial for some readers (or stacks of blocks) when exactly the tensors change that pruning them would change,
and exactly to those shapes. Several numbers are one dial when only together they do that (query heads and key-value
heads); one that is None counts, too (GPT-2's `n_inner`). Lists with one entry for each layer lose entries with it.

Then each dial is proved: part of it is turned on the real tensors, and the outputs must be those of the pruned model;
of blocks that are left, the numbers inside must be the same, too. What proves wrong is no dial. A model without dials
(ResNet, Swin: their configs say no width within a block, or one that is shared) is refused.
"""

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .config import DendriticConfig
from .errors import invalid
from .importance import IMPORTANCE
from .layout import Bundle, Dial
from .nn import block_input, is_prunable, weight_layer, widths, with_output
from .packing import inputs_fed, pack_modules
from .probing import outputs_differ, probe, quiet, tolerance
from .surgery import swap
from .vanilla import NoSuchModel, Shapes, alike, assemble, changed, fields_of, shapes, skeleton, stacks_kept, turned

logger = logging.get_logger(__name__)

Change = dict[str, torch.Size | None]  # tensor -> its new shape, None where it goes
COUNTED = 128  # of so many units each number is tried on the config; wider ones (neurons) are taken to be free
REMEDY = "Leave out native=True: the packed model then loads after import optimum.dendritic."


@torch.no_grad()
def find_dials(
    model: nn.Module, inputs: Mapping[str, Any], config: DendriticConfig, targets: Sequence[str], bundles: Sequence[Bundle]
) -> tuple[Dial, ...]:
    """The dials of a stock model, each proved.

    Args:
        inputs: keyword arguments of `model.forward`.
        targets: names of the layers that may be pruned; a block is skipped only if all its prunable layers are.
        bundles: the wiring between them.

    Raises:
        DendriticError: the model has none: it is no `PreTrainedModel`, its config does not rebuild it, or no number in
            the config does what pruning would do. The model is as it was.
    """
    if not isinstance(model, PreTrainedModel):
        raise invalid("native", True, f"a {type(model).__name__} has no config that could say its shape", REMEDY)
    readers = {b.reader: b for b in bundles if b.cut and inputs_fed(b, widths(weight_layer(model, b.reader))[0]).all()}
    units = {name: widths(weight_layer(model, name))[0] // bundle.block for name, bundle in readers.items()}
    stacks = {} if IMPORTANCE[config.importance].needs_activity else _stacks(model, targets)  # they have no one input
    try:
        rebuilt = shapes(skeleton(model, changed(model.config, {})))
    except NoSuchModel as error:
        raise invalid("native", True, str(error), REMEDY) from error
    if rebuilt != shapes(model):
        rule = f"{type(model).__name__} is not what its config says: layers were changed after it was made"
        raise invalid("native", True, rule, REMEDY)
    with quiet(model):
        found = _search(model, readers, units | stacks, set(stacks))
        dials = _proved(model, inputs, found, readers, units | stacks)
    if not dials:
        rule = f"no number in {type(model.config).__name__} says the width within a layer, the heads or the layers of"
        raise invalid("native", True, f"{rule} {type(model).__name__}", REMEDY)
    logger.info(f"{type(model.config).__name__} says {', '.join('/'.join(dial.fields) for dial in dials)}.")
    return dials


def _stacks(model: nn.Module, targets: Sequence[str]) -> dict[str, int]:
    """Outermost stacks of two blocks or more, all of the same tensors, whose prunable layers all are targets."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if type(module) is not nn.ModuleList or len(module) < 2 or any(name.startswith(f"{n}.") for n in found):
            continue
        prunable = {f"{name}.{inner}" for inner, layer in module.named_modules() if is_prunable(layer)}
        if prunable and prunable <= set(targets) and all(shapes(block) == shapes(module[0]) for block in module):
            found[name] = len(module)
    return found


def _search(
    model: PreTrainedModel, readers: Mapping[str, Bundle], units: Mapping[str, int], stacks: set[str]
) -> list[Dial]:
    before, dials = shapes(model), []
    for size in sorted(set(units.values()), reverse=True):
        left = [name for name in units if units[name] == size]
        for count in sorted({size - 1, size // 2, 1} - {0, size}, reverse=True):
            if not left:
                break
            wants = {m: _wanted(model, before, readers.get(m), m, size, count) for m in left}
            for fields, lists, members in _turning(model, before, wants, size, count, bool(stacks & wants.keys())):
                dial = Dial(fields, members, (), lists)
                dials.append(Dial(fields, members, _admitted(model, dial, size), lists))
                left = [name for name in left if name not in members]
    return dials


def _wanted(
    model: nn.Module, before: Shapes, bundle: Bundle | None, member: str, size: int, count: int
) -> Change:
    """What becomes of the tensors when `count` of a member's `size` units are left."""
    if bundle is None:
        gone = tuple(f"{member}.{index}." for index in range(count, size))
        return {name: None for name in before if name.startswith(gone)}
    packed = pack_modules(model, _kept(model, bundle, range(size - count, size)), [bundle])
    after = {f"{name}.{key}": shape for name, module in packed.items() for key, shape in shapes(module).items()}
    return {name: shape for name, shape in after.items() if before.get(name) != shape}


def _kept(model: nn.Module, bundle: Bundle, units: Sequence[int]) -> dict[str, list[torch.Tensor]]:
    """What the layers of a bundle keep when its reader keeps some units."""
    inputs = torch.arange(widths(weight_layer(model, bundle.reader))[0]).unflatten(0, (-1, bundle.block))
    kept = {p.name: [torch.arange(widths(weight_layer(model, p.name))[0])] for p in bundle.producers}
    return kept | {bundle.reader: [inputs[list(units)].flatten()]}


Turning = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]  # fields, lists, members


def _turning(
    model: PreTrainedModel, before: Shapes, wants: Mapping[str, Change], size: int, count: int, with_lists: bool
) -> list[Turning]:
    """The fields that do to some members what is wanted, and nothing else: single ones, then one group of several."""
    numbers = [path for path, value in fields_of(model.config, int).items() if value >= size and value % size == 0]
    empty = list(fields_of(model.config, type(None)))
    found: list[Turning] = []
    moved: dict[str, Change] = {}
    for path in [*numbers, *empty]:
        lists = _lists_beside(model, path, size) if with_lists and path in numbers else ()
        for beside in dict.fromkeys([lists, ()]):
            change = _change(model, before, Dial((path,), (), (), beside), size, count)
            members = tuple(m for m in wants if wants[m] and wants[m].items() <= change.items())
            if members and change == _all(wants[m] for m in members):
                found.append(((path,), beside, members))
                wants = {m: want for m, want in wants.items() if m not in members}
                break
            moved[path] = change
    parts = [path for path in moved if moved[path] and moved[path].items() <= _all(wants.values()).items()]
    reached = _all(moved[path] for path in parts)
    members = tuple(m for m in wants if wants[m] and wants[m].items() <= reached.items())
    wanted = _all(wants[m] for m in members)
    parts = [path for path in parts if moved[path].items() <= wanted.items()]
    if members and _change(model, before, Dial(tuple(parts), (), (), ()), size, count) == wanted:
        found.append((tuple(parts), (), members))
    return found


def _change(model: PreTrainedModel, before: Shapes, dial: Dial, size: int, count: int) -> Change:
    """What turning a dial does to the tensors; nothing where the config or the class refuses."""
    try:
        values = turned(model.config, dial, size, range(count))
        after = shapes(skeleton(model, changed(model.config, values)))
    except NoSuchModel:
        return {}
    return {name: after.get(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _lists_beside(model: PreTrainedModel, path: str, size: int) -> tuple[str, ...]:
    """Lists of `size` entries in the config that holds the field at `path`."""
    holder = path.rpartition(".")[0]
    lists = fields_of(model.config, list).items()
    return tuple(name for name, value in lists if len(value) == size and name.rpartition(".")[0] == holder)


def _admitted(model: PreTrainedModel, dial: Dial, size: int) -> tuple[int, ...]:
    """The numbers of units that the config admits; empty for all."""
    counts = []
    for count in range(1, size + 1) if size <= COUNTED else ():
        try:
            changed(model.config, turned(model.config, dial, size, range(count)))
            counts.append(count)
        except NoSuchModel:
            continue
    return () if len(counts) in (0, size) else tuple(counts)


def _proved(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    dials: Sequence[Dial],
    readers: Mapping[str, Bundle],
    units: Mapping[str, int],
) -> tuple[Dial, ...]:
    """The dials that hold on the real tensors: all at once first, then each alone."""
    if _holds(model, inputs, dials, readers, units):
        return tuple(dials)
    proved = [dial for dial in dials if len(dials) > 1 and _holds(model, inputs, [dial], readers, units)]
    for dial in dials:
        if dial not in proved:
            logger.info(f"{'/'.join(dial.fields)} says more than what pruning {', '.join(dial.members)} would do")
    return tuple(proved)


def _holds(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    dials: Sequence[Dial],
    readers: Mapping[str, Bundle],
    units: Mapping[str, int],
) -> bool:
    """Whether the turned stock model computes what the pruned one does; each unit of a stack is missing once."""
    parts = [[(dial, _part(dial, units, odd)) for dial in dials] for odd in (0, 1)]
    return all(_holds_at(model, inputs, part, readers, units) for part in parts)


def _part(dial: Dial, units: Mapping[str, int], odd: int) -> list[int]:
    """Every other unit, or as near to it as the config admits."""
    size = units[dial.members[0]]
    half = list(range(odd, size, 2)) or [0]
    if not dial.counts or len(half) in dial.counts:
        return half
    return list(range(size))[-max(count for count in dial.counts if count < size) :]


def _holds_at(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    dials: Sequence[tuple[Dial, list[int]]],
    readers: Mapping[str, Bundle],
    units: Mapping[str, int],
) -> bool:
    chosen = {member: kept for dial, kept in dials for member in dial.members}
    stacks, bundles = stacks_kept(dials, model), [readers[name] for name in chosen if name in readers]
    producing = {name: kept for b in bundles for name, kept in _kept(model, b, chosen[b.reader]).items()}
    kept = producing | {b.reader: _kept(model, b, chosen[b.reader])[b.reader] for b in bundles}
    skipped = [f"{name}.{i}" for name, left in stacks.items() for i in set(range(units[name])) - set(left)]
    try:
        values = {dial: turned(model.config, dial, units[dial.members[0]], left) for dial, left in dials}
        fewer = [value for dial, value in values.items() if dial.members[0] in stacks]
        if stacks and not alike(model, assemble(model, changed(model.config, dict(ChainMap(*fewer))), stacks), stacks):
            logger.info(f"The blocks of {', '.join(stacks)} are not made alike")
            return False
        with _swapped(model, pack_modules(model, kept, [])), _skipping(model, skipped):
            expected = probe(model, inputs, ())
        with _swapped(model, pack_modules(model, kept, bundles)):
            small = assemble(model, changed(model.config, dict(ChainMap(*values.values()))), stacks)
        return outputs_differ(expected, probe(small, inputs, ())) <= tolerance(next(model.parameters()).dtype)
    except Exception as error:  # whatever a model raises on a smaller config, it is not that model
        logger.info(f"Turning {', '.join(chain(*(d.fields for d, _ in dials)))} failed: {type(error).__name__}: {error}")
        return False


@contextmanager
def _swapped(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    stock = swap(model, modules)
    try:
        yield
    finally:
        swap(model, stock)


@contextmanager
def _skipping(model: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Let what comes into these blocks out of them again."""
    blocks_ = [model.get_submodule(name) for name in blocks]
    hooks = [block.register_forward_hook(_skip, prepend=True, with_kwargs=True) for block in blocks_]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _skip(block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    return with_output(output, block_input(args, kwargs))


def _all(changes: Iterable[Change]) -> Change:
    return dict(chain.from_iterable(change.items() for change in changes))
