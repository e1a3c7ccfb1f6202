"""Packed layers: gather -> smaller dense product -> scatter, or a plain smaller layer where neither is needed.

The weight keeps the name `weight` and holds only live rows and columns: `[rows, kept]`, `[rows, kept, *kernel]` or
(Conv1D) `[kept, rows]`. Rows are sorted by output; each arbor owns a run of them and reads `kept` inputs of its own.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from wrapt import when_imported

from ..distributed.dtensor import whole
from ..errors import invalid
from ..functional.channels import gather_channels, laid_out_like, longest_span, scatter_channels, spans, unfolded
from ..layout.records import Form
from ..unofficial import before_merging_, children_of, convolve
from .base import drop_own_buffers
from .injected import own_type, stock_type
from .sprout import Sprout, empty_sprout
from .surgery import shallow_copy
from .weight import DendriticWeight, WeightLayer


class PackedLayer(nn.Module):
    """What the packed layers share. Indices are int64, ascending and persistent buffers.

    Attributes:
        inputs: The runs of inputs that each arbor reads from the incoming tensor, `[arbors, kept / form.span]`; None
            where it reads all.
        outputs: The positions of the rows in the outgoing tensor, `[rows]`, whose other entries are zero; None where
            every output has a row.
        sprout: The branch that reads the whole incoming tensor and adds to the rows; None without one.
        form: The shape of the layer, as its layout records it.
        channel_axis: The axis of the inputs and outputs in the tensors that the layer reads and makes.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    inputs: Tensor | None
    outputs: Tensor | None
    sprout: Sprout | None
    form: Form
    channel_axis = -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a packed layer is made by `pack_layer` alone. PEFT's LoRA of convolutions tries to construct one."""
        remedy = "Name only linear layers in the adapter's target_modules."
        raise invalid("layer", type(self).__name__, "is made by packing alone", remedy)

    def gather(self, x: Tensor) -> Tensor:
        """`[..., inputs] -> [..., arbors * kept]`; `x` itself where every input is read."""
        if self.inputs is None:
            return x
        width = x.shape[self.channel_axis]
        if width != self.form.inputs:  # the indices were checked against this width alone
            raise invalid(
                "width", width, f"this layer reads tensors of width {self.form.inputs}", "Save the model again."
            )
        return gather_channels(x, self.inputs.flatten(), self.channel_axis, self.form.span)

    def reads(self) -> Tensor | None:
        """The positions that each arbor reads from the incoming tensor, `[arbors, kept]`; None where it reads all."""
        return None if self.inputs is None else unfolded(self.inputs, self.form.span)

    def scatter(self, y: Tensor) -> Tensor:
        """`[..., rows] -> [..., outputs]`, zero where no row exists; `y` itself where all exist."""
        if self.outputs is None:
            return y
        return scatter_channels(y, self.outputs, self.form.outputs, self.channel_axis)

    def grow(self, y: Tensor, x: Tensor) -> Tensor:
        """Rows `y` of the incoming tensor `x`, and what the sprout adds to them."""
        return y if self.sprout is None else y + self.sprout(x).to(y.dtype)

    def extra_repr(self) -> str:
        return str(self.form)


class PackedLinear(PackedLayer, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.scatter(self.grow(_products(self.gather(x), self.weight, self.bias, self.form), x))


class PackedConv1D(PackedLayer, Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return self.scatter(self.grow(_products(self.gather(x), self.weight.t(), self.bias, self.form), x))


class PackedConv2d(PackedLayer, nn.Conv2d):
    channel_axis = 1

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.numel() == 0:
            return self.scatter(self._empty(x))
        x = self.gather(x)
        if len(self.form.arbors) == self.groups:
            return self.scatter(convolve(self, x, self.weight, self.bias))
        parts = zip(x.split(self.form.kept, 1), self.weight.split(self.form.arbors), strict=True)
        y = torch.cat([convolve(self, x_a, w_a, None) for x_a, w_a in parts if w_a.shape[0]], 1)
        return self.scatter(y if self.bias is None else y + self.bias[:, None, None].to(y.dtype))

    def _empty(self, x: Tensor) -> Tensor:
        """The bias alone, in the shape of the convolution's output; torch refuses a convolution of no channels."""
        kernel = self.weight.new_zeros(1, 1, *self.weight.shape[2:])
        groups, self.groups = self.groups, 1
        try:
            y = convolve(self, x[:, :1], kernel, None).expand(-1, self.weight.shape[0], -1, -1)
        finally:
            self.groups = groups
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)


PACKED: dict[type[nn.Module], type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    Conv1D: PackedConv1D,
}


def pack_layer(
    layer: WeightLayer,
    keep_inputs: list[Tensor],
    keep_outputs: Tensor,
    arrives: Tensor,
    cut: bool,
    gathered: Mapping[int, Tensor] | None = None,
) -> nn.Module:
    """The small layer that computes what `layer` computes when everything else of its weight is zero.

    Args:
        layer: stock or injected layer with `in` inputs and `out` outputs; left as it was.
        keep_inputs: for each arbor the ascending inputs (of `in`) that it reads, the same number for all.
        keep_outputs: ascending outputs (of `out`) that exist.
        arrives: ascending inputs (of `in`) that the incoming tensor still has.
        cut: True when the outgoing tensor has only `keep_outputs`, False when the others are scattered in as zeros.
        gathered: parameters of a sharded model that are whole already, by identity.
    """
    known = (gathered or {}).get(id(layer.weight))
    weight = whole(layer.weight) if known is None else known  # this one alone, until the end of this function
    transposed = stock_type(layer) is Conv1D
    weight = weight.t() if transposed else weight
    device, outputs = weight.device, weight.shape[0]
    if all(torch.equal(keep, keep_inputs[0]) for keep in keep_inputs):
        keep_inputs = keep_inputs[:1]
    owner = keep_outputs // (outputs // len(keep_inputs))
    rows = [keep_outputs[owner == arbor] for arbor in range(len(keep_inputs))]
    gather = any(not torch.equal(keep, arrives) for keep in keep_inputs)
    scatter = not cut and len(keep_outputs) < outputs
    read = torch.stack([torch.searchsorted(arrives, keep) for keep in keep_inputs]) if gather else None
    span = 1 if read is None else longest_span(read, len(arrives))
    sprout = layer.active_sprout(keep_outputs) if isinstance(layer, DendriticWeight) else None
    assert sprout is None or len(arrives) == sprout.down.shape[1], "sprouts read inputs that nobody cuts"
    form = Form(
        inputs=len(arrives),
        outputs=len(keep_outputs) if cut else outputs,
        kept=len(keep_inputs[0]),
        arbors=tuple(len(r) for r in rows),
        gather=gather,
        scatter=scatter,
        sprout=0 if sprout is None else sprout.rank,
        span=span,
    )
    parts = [
        weight.index_select(0, r.to(device)).index_select(1, keep.to(device))
        for r, keep in zip(rows, keep_inputs, strict=True)
    ]
    bias = layer.bias
    return _build(
        layer,
        form,
        weight=torch.cat(parts).t().contiguous() if transposed else laid_out_like(torch.cat(parts), weight),
        bias=None if bias is None else whole(bias).index_select(0, keep_outputs.to(device)),
        inputs=None if read is None else spans(read, span).to(device),
        outputs=keep_outputs.to(device) if scatter else None,
        sprout=sprout,
    )


def packed_skeleton(layer: WeightLayer, form: Form) -> nn.Module:
    """`layer` in the shape that `form` records, with tensors of undefined content on the layer's device."""
    weight, rows = layer.weight, sum(form.arbors)
    transposed = stock_type(layer) is Conv1D
    shape = (form.kept, rows) if transposed else (rows, form.kept, *weight.shape[2:])
    index = torch.zeros(0, dtype=torch.int64, device=weight.device)
    return _build(
        layer,
        form,
        weight=laid_out_like(weight.new_empty(shape), weight),
        bias=None if layer.bias is None else weight.new_empty(rows),
        inputs=index.new_empty(len(form.arbors), form.kept // form.span) if form.gather else None,
        outputs=index.new_empty(rows) if form.scatter else None,
        sprout=empty_sprout(form.sprout, form.inputs, rows, like=weight) if form.sprout else None,
    )


def refuse_merging(name: str, layer: nn.Module) -> None:
    """Refuse to merge an adapter into a weight that has fewer rows or columns than the adapter has learnt for.

    Raises:
        DendriticError: `layer` gathers or scatters.
    """
    if isinstance(layer, PackedLayer) and (layer.inputs is not None or layer.outputs is not None):
        rule = f"{name} gathers or scatters, and the adapter reads and writes what its weight does not have"
        remedy = (
            "Keep the adapter beside the model (save_pretrained, PeftModel.from_pretrained), or name only plain layers "
            "in its target_modules: describe(model) tells which."
        )
        raise invalid("layer", type(layer).__name__, rule, remedy)


@when_imported("peft.tuners.tuners_utils")
def check_before_merging(tuners: ModuleType) -> None:
    """Let PEFT, once it is imported, refuse what `refuse_merging` refuses."""
    before_merging_(tuners, refuse_merging)


def _build(
    layer: WeightLayer,
    form: Form,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor | None,
    outputs: Tensor | None,
    sprout: Sprout | None,
) -> nn.Module:
    stock = stock_type(layer)
    packed = shallow_copy(layer, own_type(layer) if form.plain else PACKED[stock])
    drop_own_buffers(packed)
    children_of(packed).pop("sprout", None)
    packed.register_parameter("weight", nn.Parameter(weight, requires_grad=layer.weight.requires_grad))
    if layer.bias is not None and bias is not None:
        packed.register_parameter("bias", nn.Parameter(bias, requires_grad=layer.bias.requires_grad))
    if isinstance(packed, PackedLayer):
        packed.form = form
        packed.register_buffer("inputs", inputs)
        packed.register_buffer("outputs", outputs)
        packed.register_module("sprout", sprout)
    if isinstance(packed, nn.Conv2d):
        packed.in_channels, packed.out_channels = form.inputs, form.outputs
        packed.groups = len(form.arbors) if len(set(form.arbors)) == 1 else 1
    elif isinstance(packed, nn.Linear):
        packed.in_features, packed.out_features = form.inputs, form.outputs
    elif isinstance(packed, Conv1D):
        packed.nx, packed.nf = form.inputs, form.outputs
    return packed


def _products(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """One small product for each arbor: `x` `[..., arbors * kept]`, `weight` `[rows, kept]` -> `[..., rows]`."""
    if len(form.arbors) == 1:
        return F.linear(x, weight, bias)
    if len(set(form.arbors)) == 1:
        split = (len(form.arbors), -1)
        rows = x.flatten(0, -2) if x.dim() > 2 else x  # a matrix: with more axes einsum copies the weight
        y = torch.einsum("...ak,aok->...ao", rows.unflatten(-1, split), weight.unflatten(0, split)).flatten(-2)
        y = y.unflatten(0, x.shape[:-1]) if x.dim() > 2 else y
    else:
        parts = zip(x.split(form.kept, -1), weight.split(form.arbors), strict=True)
        y = torch.cat([F.linear(x_a, w_a) for x_a, w_a in parts], -1)
    return y if bias is None else y + bias.to(y.dtype)  # autocast lowers products, not sums
