"""What is wrong with a layout that was read from a file, compared with the stock model of the same config.json.

Every record must name a module of the right kind, and nothing may be wider than that module. So no number in a file
asks for more memory than the dense model would.
"""

import dataclasses
from collections.abc import Callable, Iterator

from torch import nn

from ...functional.importance import IMPORTANCE
from ...layout.layout import Layout
from ...layout.records import Bundle, Dial, Follower, Form, Record, Recurrent, Segments, Stack, Wire
from ...nn import (
    RecurrentLayer,
    WeightLayer,
    can_sprout,
    follower_channels,
    is_prunable,
    is_recurrent_layer,
    is_weight_layer,
    states,
    weight_layer,
    widths,
)

Fault = tuple[str, object, str]


def faults(model: nn.Module, layout: Layout) -> Iterator[Fault]:
    """Field, value and rule of whatever is wrong; the first is raised, so later rules may rely on earlier ones."""
    injected = [isinstance(record, Segments | Stack) for record in layout.modules.values()]
    if len(set(injected)) > 1:
        yield "modules", sorted(layout.modules), "must be all injected or all packed"
    for name, record in layout.modules.items():
        for rule in _record_faults(model.get_submodule(name), record, layout):
            yield f"modules.{name}", dataclasses.asdict(record), rule
    if not all(injected) and (layout.bundles or layout.positions or layout.dials):
        yield "bundles", len(layout.bundles), "a packed model has no bundles, positions and dials left"
    stacks = {name for name, record in layout.modules.items() if isinstance(record, Stack)}
    unknown = layout.positions.keys() - (layout.modules.keys() - stacks)
    unplaced = layout.modules.keys() - stacks - layout.positions.keys()
    if unknown or (unplaced and all(injected) and layout.config.budget == "macs"):
        yield "positions", sorted(unknown or unplaced), "must belong to the recorded modules, one to each"
    ends = [[b.reader for b in layout.bundles], [p.name for b in layout.bundles for p in b.producers]]
    if any(len(names) != len(set(names)) for names in ends):
        yield "bundles", ends, "no module may read or feed twice"
    followers = [follower.name for bundle in layout.bundles for follower in bundle.followers]
    if len(followers) != len(set(followers)):
        yield "bundles", followers, "no module may follow twice"
    for i, bundle in enumerate(layout.bundles):
        for rule in _bundle_faults(model, layout, bundle):
            yield f"bundles[{i}]", bundle.reader, rule
    members = [member for dial in layout.dials for member in dial.members]
    if len(members) != len(set(members)) or not stacks <= set(members) or bool(members) != layout.config.native:
        yield "dials", members, "native has dials, no module has two of them, and each stack has one"
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
}


def _follower_faults(module: nn.Module, record: Follower) -> Iterator[str]:
    channels = follower_channels(module) or 0
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
    if outputs % record.arbors or inputs % record.segments:
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


def _bundle_faults(model: nn.Module, layout: Layout, bundle: Bundle) -> Iterator[str]:
    ends = {bundle.reader, *(p.name for p in bundle.producers)}
    if not ends <= layout.modules.keys() or not all(is_weight_layer(model.get_submodule(name)) for name in ends):
        yield "its reader and producers must be recorded modules of one weight"
    if bundle.reader in {p.name for p in bundle.producers} or not bundle.producers:
        yield "must be fed, and not by itself"
    reader, inputs = layout.modules[bundle.reader], widths(weight_layer(model, bundle.reader))[0]
    assert isinstance(reader, Segments)
    if reader.sprout:
        yield "its reader has no sprout: the inputs that are pruned of it die with their producers"
    if inputs % bundle.block or (inputs // reader.segments) % bundle.block:
        yield f"block = {bundle.block} must divide segments of {inputs // reader.segments} inputs"
    if bundle.cut and (reader.arbors != 1 or reader.segments != inputs // bundle.block):
        yield "the reader of a cut bundle has one arbor and one segment for each block"
    for producer in bundle.producers:
        outputs = widths(weight_layer(model, producer.name))[1]
        yield from _run_faults(producer, outputs, inputs, bundle.block)
    for follower in bundle.followers:
        channels = follower_channels(model.get_submodule(follower.name))
        if channels != sum(run.count * run.size for run in follower.runs):
            yield f"the runs of {follower.name} must cover its {channels} channels"
        yield from _run_faults(follower, channels or 0, inputs, bundle.block)


def _dial_faults(layout: Layout, dial: Dial) -> Iterator[str]:
    readers, sizes = {bundle.reader for bundle in layout.bundles if bundle.cut}, set()
    for member in dial.members:
        record = layout.modules.get(member)
        if isinstance(record, Stack):
            sizes.add(record.blocks)
        elif isinstance(record, Segments) and member in readers:
            sizes.add(record.segments)
        else:
            yield f"{member} must be a recorded stack or the reader of a cut bundle"
    if not dial.fields or len(sizes) != 1:
        yield "must name fields of the config, and members of equally many units"
    if any(not below < count <= max(sizes) for below, count in zip((0, *dial.counts), dial.counts, strict=False)):
        yield f"counts must ascend within {sizes}"


def _run_faults(wire: Wire, outputs: int, inputs: int, block: int) -> Iterator[str]:
    start = 0
    for run in wire.runs:
        end = run.start + run.count * run.size
        inside = start <= run.start and end <= outputs and run.reach + run.count * run.width <= inputs
        if not inside or block % run.width or run.reach % run.width:
            yield f"{run} of {wire.name} must ascend within {outputs} outputs and blocks of {inputs} inputs"
        start = end
