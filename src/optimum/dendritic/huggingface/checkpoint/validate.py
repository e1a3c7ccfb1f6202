"""What is wrong with a layout that was read from a file, compared with the stock model of the same config.json.

Every record must name a module of the right kind, and nothing may be wider than that module. So no number in a file
asks for more memory than the dense model would.
"""

import dataclasses
from collections.abc import Callable, Iterator

from torch import nn

from ...functional.importance import IMPORTANCE
from ...layout.layout import Layout
from ...layout.records import Dial, Follower, Form, Record, Recurrent, Segments, Skipped, Stack
from ...nn import (
    FactoredEmbedding,
    RecurrentLayer,
    WeightLayer,
    can_sprout,
    channels_of,
    is_prunable,
    is_recurrent_layer,
    is_weight_layer,
    states,
    weight_layer,
    widths,
)
from .validate_groups import group_faults, number_faults

Fault = tuple[str, object, str]


def faults(model: nn.Module, layout: Layout) -> Iterator[Fault]:
    """Field, value and rule of whatever is wrong; the first is raised, so later rules may rely on earlier ones."""
    injected = [isinstance(record, Segments | Stack) for record in layout.modules.values()]
    if len(set(injected)) > 1:
        yield "modules", sorted(layout.modules), "must be all injected or all packed"
    for name, rank in layout.factored.items():
        factors = dict(model.named_modules()).get(name)
        if not isinstance(factors, FactoredEmbedding) or factors.table.embedding_dim != rank:
            yield "factored", layout.factored, "must be the embedding that begins as two factors, and their rank"
    for name, record in layout.modules.items():
        for rule in _record_faults(model.get_submodule(name), record, layout):
            yield f"modules.{name}", dataclasses.asdict(record), rule
    if not all(injected) and (layout.groups or layout.positions or layout.dials):
        yield "groups", len(layout.groups), "a packed model has no groups, positions and dials left"
    skipped = tuple(f"{name}." for name, record in layout.modules.items() if isinstance(record, Skipped))
    inside = [n for n in (*layout.modules, *layout.parameters, *layout.numbers) if n.startswith(skipped)]
    if inside:
        yield "modules", inside, "nothing is left within a block that is skipped"
    for name in (name.rstrip(".") for name in skipped):
        stack, _, index = name.rpartition(".")
        if type(model.get_submodule(stack)) is not nn.ModuleList or not index.isdecimal():
            yield f"modules.{name}", {"skipped": {}}, "must be a block of a stack"
    for name, shape in layout.parameters.items():
        for rule in _parameter_faults(model, name, shape):
            yield f"parameters.{name}", shape, rule
    for path, value in layout.numbers.items():
        for rule in number_faults(model, path, value):
            yield f"numbers.{path}", value, rule
    if all(injected) and (layout.parameters or layout.numbers):
        yield "parameters", sorted([*layout.parameters, *layout.numbers]), "an injected model has them in full"
    stacks = {name for name, record in layout.modules.items() if isinstance(record, Stack)}
    called = {name for name, module in model.named_modules() if is_prunable(module)}
    counted = called if layout.config.counts_model else layout.modules.keys() - stacks
    unknown = layout.positions.keys() - counted
    unplaced = layout.modules.keys() - stacks - layout.positions.keys()
    if unknown or (unplaced and all(injected) and layout.config.counted == "macs"):
        yield "positions", sorted(unknown or unplaced), "must belong to the layers that are counted, one to each"
    yield from _time_faults(layout, called)
    for side in ("consumers", "passers", "parameters"):
        ends = [(member.name, member.axis) for group in layout.groups for member in getattr(group, side)]
        if len(ends) != len(set(ends)):
            yield "groups", ends, f"no two groups may have {side} in common"
    for i, group in enumerate(layout.groups):
        for rule in group_faults(model, layout, group):
            yield f"groups[{i}]", group.host, rule
    masked = {group.host for group in layout.groups if group.cut}
    for name, record in layout.modules.items():
        if isinstance(record, Segments) and name not in masked:
            inputs = widths(weight_layer(model, name))[0] if is_weight_layer(model.get_submodule(name)) else 0
            if record.segments and inputs % record.segments:
                yield f"modules.{name}", dataclasses.asdict(record), f"segments must divide {inputs} inputs"
    members = [member for dial in layout.dials for member in dial.members]
    native = layout.config.native
    if len(members) != len(set(members)) or bool(members) != native or (native and not stacks <= set(members)):
        yield "dials", members, "native has dials, no module has two of them, and each stack has one"
    if stacks and not native and not layout.config.may_go("blocks"):
        yield "modules", sorted(stacks), "a stack is injected where blocks are among the units that may go"
    for i, dial in enumerate(layout.dials):
        for rule in _dial_faults(layout, dial):
            yield f"dials[{i}]", dial.members, rule


def _record_faults(module: nn.Module, record: Record, layout: Layout) -> Iterator[str]:
    if not FITS[type(record)](module):
        yield f"is not a record of a {type(module).__name__}"
    match record:
        case Follower():
            yield from _follower_faults(module, record)
        case Stack():
            yield from _stack_faults(module, record)
        case Recurrent():
            yield from _recurrent_faults(module, record)
        case Segments():
            yield from _segments_faults(module, record, layout)
        case Form():
            yield from _form_faults(module, record, layout)


FITS: dict[type[Record], Callable[[nn.Module], bool]] = {
    Follower: lambda module: True,  # its channels tell
    Stack: lambda module: type(module) is nn.ModuleList,
    Recurrent: is_recurrent_layer,
    Segments: is_prunable,
    Form: is_weight_layer,
    Skipped: lambda module: True,  # its place tells
}


def _follower_faults(module: nn.Module, record: Follower) -> Iterator[str]:
    channels = channels_of(module) or 0
    if not 0 < record.channels <= channels:
        yield f"must have 1 to {channels} channels of {module}"


def _stack_faults(module: nn.Module, record: Stack) -> Iterator[str]:
    assert isinstance(module, nn.ModuleList)
    if len(module) != record.blocks:
        yield f"is not a record of a {type(module).__name__}"


def _recurrent_faults(module: nn.Module, record: Recurrent) -> Iterator[str]:
    assert isinstance(module, RecurrentLayer)
    if record.hidden != module.hidden_size:
        yield f"must have the {module.hidden_size} hidden units of the stock layer"


def _segments_faults(module: nn.Module, record: Segments, layout: Layout) -> Iterator[str]:
    if record.activity != (IMPORTANCE[layout.config.importance].needs_activity or record.sprout > 0):
        yield f"activity contradicts importance = {layout.config.importance!r} and sprout = {record.sprout}"
    if isinstance(module, RecurrentLayer):
        if record != Segments(states(module), module.hidden_size):
            yield f"must have {states(module)} arbors of {module.hidden_size} segments, without activity and sprout"
        return
    yield from _sprout_faults(module, record, layout)
    inputs, outputs = widths(module)
    if outputs % record.arbors or record.segments > inputs:
        yield f"arbors must divide {outputs} outputs, and segments {inputs} inputs"


def _form_faults(module: nn.Module, record: Form, layout: Layout) -> Iterator[str]:
    yield from _sprout_faults(module, record, layout)
    inputs, outputs = widths(module)
    if record.sprout and record.inputs != inputs:
        yield f"a sprout reads all {inputs} inputs"
    if record.inputs > inputs or record.outputs > outputs:
        yield f"must not be wider than the stock layer of {inputs} inputs and {outputs} outputs"
    if record.scatter and record.outputs != outputs:
        yield f"rows are scattered into all {outputs} outputs"
    if outputs % len(record.arbors) or max(record.arbors) > outputs // len(record.arbors):
        yield f"arbors must be equal groups of {outputs} outputs"


def _sprout_faults(module: nn.Module, record: Segments | Form, layout: Layout) -> Iterator[str]:
    assert isinstance(module, WeightLayer)
    if record.sprout and (record.sprout != layout.config.sprout_rank or not can_sprout(module, record.sprout)):
        yield f"sprout must be 0, or sprout_rank = {layout.config.sprout_rank} where that costs less than {module}"


def _parameter_faults(model: nn.Module, name: str, shape: tuple[int, ...]) -> Iterator[str]:
    stock = dict(model.named_parameters()).get(name)
    if (
        stock is None
        or stock.dim() != len(shape)
        or any(not 0 < n <= m for n, m in zip(shape, stock.shape, strict=True))
    ):
        yield f"is not a part of a parameter of {type(model).__name__}"


def _time_faults(layout: Layout, called: set[str]) -> Iterator[tuple[str, object, str]]:
    """What is wrong with the measured times."""
    if layout.packed or layout.config.counted != "time":
        if layout.times is not None:
            yield "times", sorted(layout.times.layers), "only an injected model whose target is a time has them"
        return
    if layout.times is None or not layout.modules.keys() <= layout.times.layers.keys() <= called:
        yield "times", layout.times, "must be given of the layers that are called, one to each target"
    elif not layout.times.units.keys() <= {group.host for group in layout.groups if group.cut}:
        yield "times.units", sorted(layout.times.units), "must be of groups that are cut"


def _dial_faults(layout: Layout, dial: Dial) -> Iterator[str]:
    readers, sizes = {group.host for group in layout.groups if group.cut}, set()
    for member in dial.members:
        record = layout.modules.get(member)
        if isinstance(record, Stack):
            sizes.add(record.blocks)
        elif isinstance(record, Segments) and member in readers:
            sizes.add(record.segments)
        else:
            yield f"{member} must be a recorded stack or the host of a group that is cut"
    kinds = {type(layout.modules.get(member)) for member in dial.members}
    if not dial.fields or len(kinds) != 1 or any(size % max(1, min(sizes)) for size in sizes):
        yield "must name fields of the config, and stacks or groups whose units are multiples of those of the smallest"
    if any(not below < count <= min(sizes) for below, count in zip((0, *dial.counts), dial.counts, strict=False)):
        yield f"counts must ascend within {sizes}"
