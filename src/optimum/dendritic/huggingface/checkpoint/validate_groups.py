"""What is wrong with the dependency groups of a layout that was read from a file, and with numbers of modules."""

from collections.abc import Iterator

from torch import nn

from ...layout.layout import Layout
from ...layout.records import Group, Member, Segments
from ...nn import channels_of, is_weight_layer, weight_layer, widths


def group_faults(model: nn.Module, layout: Layout, group: Group) -> Iterator[str]:
    """The rules that one group breaks; the first is raised, so later ones may rely on earlier ones."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    if any(member.name not in modules for member in group.members):
        yield "its members must be modules of the model"
    ends = {member.name: modules[member.name] for member in (*group.producers, *group.consumers)}
    tables = {name for name, module in ends.items() if isinstance(module, nn.Embedding)}
    if not all(is_weight_layer(module) for name, module in ends.items() if name not in tables):
        yield "its producers and consumers must be layers of one weight, or embeddings that produce"
    if not group.producers or tables & {member.name for member in group.consumers}:
        yield "must be fed by layers or embeddings"
    if len({member.name for member in group.producers}) != len(group.producers):
        yield "no producer may be named twice"
    host = layout.modules.get(group.host)
    if not isinstance(host, Segments):
        yield "its first consumer must be a recorded layer"
        return
    if host.sprout or (group.cut and (host.arbors, host.segments) != (1, group.units)):
        yield f"its first consumer must have one arbor, {group.units} segments and no sprout"
    if not group.cut and (len(group.consumers) > 1 or group.parameters or tables):
        yield "a group of several consumers, embeddings or parameters must be cut"
    for member in group.consumers[1:]:
        record = layout.modules.get(member.name)
        if isinstance(record, Segments) and record.segments:
            yield f"{member.name} must have no segments of its own"
    for number in group.numbers:
        path = f"{number.module}.{number.name}"
        yield from number_faults(model, path, number.value)
        if number.value % group.units or number.value != vars(modules[number.module])[number.name]:
            yield f"{path} must be the stock number, a multiple of {group.units}"
    read: set[int] = set()
    for member in group.consumers:
        inputs = widths(weight_layer(model, member.name))[0]
        yield from _run_faults(member, inputs, group.units)
        read |= {unit for run in member.runs for unit in range(run.unit, min(run.unit + run.count, group.units))}
    if len(read) != group.units:
        yield f"each of its {group.units} units must be read"
    for member in group.producers:
        module = modules[member.name]
        channels = (
            module.embedding_dim if isinstance(module, nn.Embedding) else widths(weight_layer(model, member.name))[1]
        )
        yield from _run_faults(member, channels, group.units)
    for member in group.passers:
        if channels_of(modules[member.name]) is None:
            yield f"the passer {member.name} has nothing for each channel"
        yield from _run_faults(member, channels_of(modules[member.name]) or 0, group.units)
        if member.axis > 8:
            yield f"{member.name} has its channels at no axis of a tensor"
    for member in group.parameters:
        parameter = parameters.get(member.name)
        if parameter is None or member.axis >= parameter.dim():
            yield f"{member.name} must be a parameter with the axis {member.axis}"
            return
        yield from _run_faults(member, parameter.shape[member.axis], group.units)


def number_faults(model: nn.Module, path: str, value: int) -> Iterator[str]:
    """What is wrong with a number that stands in place of one that a module of the stock model keeps."""
    owner, _, name = path.rpartition(".")
    module = dict(model.named_modules()).get(owner)
    stock = None if module is None or name.startswith("_") else vars(module).get(name)
    if type(stock) is not int or not 0 < value <= stock:
        yield f"must be at least 1 and at most what a {type(module).__name__} has there: {stock}"


def _run_faults(member: Member, length: int, units: int) -> Iterator[str]:
    start = 0
    if not member.runs:
        yield f"{member.name} has no run"
    for run in member.runs:
        end = run.start + run.count * run.size
        if not start <= run.start or end > length or run.unit + run.count > units:
            yield f"{run} of {member.name} must ascend within {length} indices and {units} units"
        start = end
