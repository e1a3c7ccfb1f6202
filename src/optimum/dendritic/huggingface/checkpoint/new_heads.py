"""Another head on a packed body: its layers read the tensors that are left, which may be narrower than the config says.

A head that was not saved is not in the layout, and is built as wide as the dense model's; one for another number of
labels is in it with the former number. What arrives where is told by one forward pass of the skeleton on the meta
device, which computes shapes alone. The tensors of such layers are then new, or a mismatch that transformers reports,
as they are where a dense checkpoint is loaded so.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ...errors import CheckpointError, invalid
from ...layout.layout import Layout
from ...layout.records import Form
from ...nn import is_weight_layer, packed_skeleton, weight_layer, widths
from ...nn.surgery import swap
from ...process_state import kept_random_state
from ...structure.example_inputs import tensors_of
from ...structure.made_inputs import TRACING_IMAGE_SIZE, example_inputs_for
from ...structure.readers import answer_shape, channel_axis
from ...unofficial import answering

logger = logging.get_logger(__name__)

Forms = dict[str, Form]


def labelling(model: PreTrainedModel, layout: Layout) -> Forms:
    """Records of the layers that may be for another number of labels: they have as many outputs as the config of the
    stock skeleton `model` has labels, and another number in the layout. The records are for the config's number."""
    count = model.config.num_labels
    recorded = {name: record for name, record in layout.modules.items() if isinstance(record, Form)}
    return {
        name: dataclasses.replace(form, outputs=count, arbors=(count,))
        for name, form in recorded.items()
        if len(form.arbors) == 1 and not form.scatter and form.outputs != count == _outputs(model, name)
    }


def too_wide(layout: Layout, labels: Forms) -> list[str]:
    """Those of `labels` that are recorded for more labels than the config has."""
    records = {name: layout.modules[name] for name in labels}
    return [
        name for name, record in records.items() if isinstance(record, Form) and record.outputs > labels[name].outputs
    ]


def without(layout: Layout, names: Collection[str]) -> Layout:
    """The layout without some of its records."""
    left = {name: record for name, record in layout.modules.items() if name not in names}
    return dataclasses.replace(layout, modules=left)


def put_new_heads_(model: PreTrainedModel, layout: Layout, labels: Forms) -> Forms:
    """Put in the layers of a new head that read less than the dense model's would, or that answer for other labels.

    Args:
        model: a skeleton with what the layout records already in it.
        layout: without those that are `too_wide`.
        labels: what `labelling` found.

    Returns:
        The records of the layers that were put in. None where the class is the one that was saved and has as many
        labels, and where the skeleton does not run without values.

    Raises:
        CheckpointError: such a layer shares its weight with another one, or gathers, and so cannot have another shape.
    """
    if not layout.packed or (type(model).__name__ in (model.config.architectures or ()) and not labels):
        return {}
    found, answered = _run(model, layout)
    for name, form in labels.items():
        former = layout.modules.get(name)
        if former is None or (isinstance(former, Form) and former.outputs == answered):
            found[name] = form
    gathering = [name for name, form in found.items() if not form.plain]
    if gathering:
        raise _refused(model, f"{gathering[0]} gathers, and was packed for another number of labels")
    swap(model, {name: packed_skeleton(weight_layer(model, name), form) for name, form in found.items()})
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, source in model.all_tied_weights_keys.items():
        if name in shapes and source in shapes and shapes[name] != shapes[source]:
            raise _refused(
                model, f"{name} has the shape {shapes[name]} and is the same as {source} of {shapes[source]}"
            )
    return found


def _outputs(model: nn.Module, name: str) -> int | None:
    return widths(weight_layer(model, name))[1] if is_weight_layer(model.get_submodule(name)) else None


@torch.no_grad()
def _run(model: PreTrainedModel, layout: Layout) -> tuple[Forms, int | None]:
    """Records of the layers that the layout does not name and that read less than they could; and for how many labels
    the model answers."""
    named = {module: name for name, module in model.named_modules() if is_weight_layer(module)}
    new = {module: name for module, name in named.items() if name not in layout.modules}
    found: Forms = {}

    def answer(layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        x, (inputs, outputs) = tensors_of([args, kwargs])[0], widths(weight_layer(model, new[layer]))
        width = x.shape[channel_axis(layer)]
        if width < inputs:
            shape: dict[str, Any] = {"inputs": width, "outputs": outputs, "kept": width, "arbors": (outputs,)}
            found[new[layer]] = Form(**shape, gather=False, scatter=False)
        return x.new_empty(answer_shape(weight_layer(model, new[layer]), x, outputs))

    try:
        with kept_random_state([]), answering(new, answer):
            inputs = example_inputs_for(model, image_size=TRACING_IMAGE_SIZE)
            inputs.pop("attention_mask", None)  # it masks nothing, and is looked into
            answers = model.eval()(**inputs)
    except Exception as error:  # what comes after this is loaded as it is
        logger.info(f"{type(model).__name__} does not run without values: {type(error).__name__}: {error}")
        return found, None
    logits = answers.get("logits") if isinstance(answers, Mapping) else None
    return found, None if logits is None else logits.shape[-1]


def _refused(model: PreTrainedModel, rule: str) -> CheckpointError:
    remedy = "Load the body alone (AutoModel) and put a head on it, or prune the dense model of this class."
    error = invalid("model", type(model).__name__, rule, remedy, CheckpointError)
    assert isinstance(error, CheckpointError)
    return error
