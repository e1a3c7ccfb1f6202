"""The native form: an injected model becomes a smaller stock model with a stock config.

Every dial of the layout has as many units in each of its members (`select_uniform` sees to it), so the pruned tensors
have exactly the shapes that the config asks for once its numbers are set. The model is built anew from its class and
that config, the tensors are put in, and when it answers like the masked one, `model` becomes it, in place. What is
saved from then on has no trace of this package; the layout stays on the model object alone, for `describe` and for
reports.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..distributed.dtensor import reshard
from ..distributed.fsdp import unshard_
from ..errors import invalid
from ..layout.layout import Layout
from ..layout.records import Dial, Record
from ..nn import DendriticLayer
from ..nn.pack_model import pack_modules, stock_record
from ..state import kept_in, set_dense_config, set_layout
from ..structure.probing import probe, quiet
from ..structure.verification import answers_alike, difference_of, exchanged
from .fields import Entries, UnsupportedConfig, changed, dial_values
from .models import assemble, source_name, stacks_kept, turn_into_
from .rescale import keep_scales_
from .verify import size_of

logger = logging.get_logger(__name__)
REMEDY = "It is still injected; please report it with its config."


@torch.no_grad()
def native_(
    model: nn.Module, inputs: Mapping[str, Any], layout: Layout, layers: Mapping[str, DendriticLayer]
) -> nn.Module:
    """Make an injected model whose layout has dials the stock model that is left of it, in place; see `compress_`.

    Args:
        inputs: keyword arguments of `model.forward` on which the stock model must answer as the masked one does.
        layout: the layout of the model, with dials.
        layers: the layers that it names.

    Raises:
        DendriticError: the masks are not uniform, the config cannot say them, or the outputs change. The model is then
            as it was.
    """
    assert isinstance(model, PreTrainedModel), "only these have dials"
    units = {member: layers[member].dendrite_mask.shape[1] for dial in layout.dials for member in dial.members}
    dials = [(dial, _left(dial, layers, units)) for dial in layout.dials]
    kept, alive = kept_in(model, layout, layers)
    stacks = stacks_kept(dials, model)
    with quiet(model):
        expected = probe(model, inputs)
        reshard(model)
        try:
            values: dict[str, Any] = {}
            for dial, left in dials:
                values |= dial_values(model.config, dial, size_of(dial, units), left)
            packed = pack_modules(model, kept, layout.groups, alive)
            with exchanged(model, packed.modules, packed.parameters):
                stock = assemble(model, changed(model.config, values), stacks)
                keep_scales_(stock, model, stacks, inputs)
        except UnsupportedConfig as error:
            raise invalid("native", True, str(error), REMEDY) from error
        if not answers_alike(stock, inputs, expected, like=next(model.parameters())):
            raise difference_of(model, inputs, expected, like=next(model.parameters()))
    modules = dict(model.named_modules())
    pairs = [(module, stock_name, source_name(stock_name, stacks)) for stock_name, module in stock.named_modules()]
    for module, _, source in pairs:
        module.training = modules[source].training  # it was built while the model was quiet
    records: dict[str, Record] = {name: stock_record(module) for module, name, source in pairs if source in kept}
    set_dense_config(model, changed(model.config, {}))
    turn_into_(model, stock)
    unshard_(model)  # its parameters are whole by now; its class is not the stock one yet
    set_layout(
        model, Layout(config=layout.config, modules=records, dense_cost=layout.dense_cost, allowed=layout.allowed)
    )
    said = ", ".join(f"{path} = {value}" for path, value in values.items() if not isinstance(value, Entries))
    logger.info(f"{type(model).__name__} is a stock model again, with {said}.")
    return model


def _left(dial: Dial, layers: Mapping[str, DendriticLayer], units: Mapping[str, int]) -> list[int]:
    """The units of a dial that are left, of the member with the fewest.

    Raises:
        DendriticError: it is not the same part of every member.
    """
    masks = {member: layers[member].dendrite_mask[0].cpu() for member in dial.members}
    counts, size = [int(mask.sum()) for mask in masks.values()], size_of(dial, units)
    parts = [count * size / units[member] for member, count in zip(masks, counts, strict=True)]
    if len(set(parts)) > 1:
        raise invalid("/".join(dial.fields), counts, "must be the same in all layers", "Choose them with update_.")
    fewest = next(mask for mask in masks.values() if len(mask) == size)
    return fewest.nonzero().flatten().tolist()
