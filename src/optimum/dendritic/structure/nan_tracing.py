"""NaN tracing: which output channel of which layer reaches which input of which other layer, found by running a model.

Channels of a layer (the producer) are marked with NaN in one forward pass in evaluation mode. A layer that multiplies
by a weight notes which of its inputs are NaN, in which sample, and answers with fixed numbers instead of its product:
where the mark arrives is all that matters, so a traced pass multiplies by no weight, and its cost is that of the
activations. A norm hands the mark on channel by channel, although it mixes the channels to take its statistics.
Everything else computes as always, and NaN passes through it.

Producers are also the columns of embeddings and the axes of parameters that stand alone (class tokens, positions, layer
scales). What begins with a batch of one is spread over the samples of a pass; what has no batch at all (`lone`) is
marked alike in all of them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..nn import RecurrentLayer, WeightLayer, directions, follower_channels, widths
from ..unofficial import answering
from .example_inputs import repeat_first, tensors_of
from .marks import (
    Axis,
    Tangled,
    any_nan,
    by_channel,
    map_tensors,
    marked,
    marked_parameters,
    spread_in_groups,
    spread_over,
)
from .norm_axes import may_be_norm, mixes_channels, norm_axis_of
from .readers import READERS, answer_shape, channel_axis, is_wide

OUTPUTS = ""  # stands for the model's outputs among those that a channel reaches

Words = Mapping[str, Bool[Tensor, "samples channels"]]
Seen = dict[str, Bool[Tensor, "samples inputs"]]


class Tracer:
    """Runs the model with marks.

    Every layer of one weight is a producer and a consumer. Other modules that multiply by a weight are consumers only.

    Attributes:
        layers: The layers of one weight, by name.
        tables: The embeddings, by name.
        axes: The axes of parameters that stand alone, by key.
        followers: The names of modules with something for each channel.
        norms: The names of norms; `positions` finds them.
        widths: The channels of every producer.
        lone: The producers whose marks are alike in all samples.
        largest_activation: The bytes of the largest tensor that a layer reads or makes of one sample; `positions` finds
            it.
    """

    def __init__(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        self.model, self.inputs = model, inputs
        self.names = {module: name for name, module in reversed(list(model.named_modules()))}
        self.followers = {m: n for m, n in self.names.items() if follower_channels(m) is not None}
        readers = [m for m in self.names if isinstance(m, READERS) and m not in self.followers]
        self.layers = {self.names[m]: m for m in reversed(readers) if isinstance(m, WeightLayer) and is_wide(m)}
        self.tables = {n: m for m, n in reversed(self.names.items()) if isinstance(m, nn.Embedding)}
        self.opaque = [m for m in readers if not is_wide(m)]
        self.norms: dict[nn.Module, str] = {}
        self.axes: dict[str, Axis] = {}
        self.widths = {name: widths(layer)[1] for name, layer in self.layers.items()}
        self.widths |= {name: table.embedding_dim for name, table in self.tables.items()}
        self.lone: set[str] = set()
        self.largest_activation = 0
        self._norm_axes: dict[nn.Module, int] = {}
        self._rows: dict[int, Tensor] = {}

    def positions(self) -> dict[str, int]:
        """One pass without marks, in which layers answer with random numbers: how often each layer and each recurrent
        layer multiplies. Finds the norms, the parameters that stand alone and what is `lone`, too.

        Raises:
            Tangled: the outputs hold no tensors, or the model itself makes NaN.
        """
        found: dict[str, int] = {}
        read: dict[nn.Module, Tensor] = {}
        other: set[nn.Module] = set()

        def note(module: nn.Module, args: Any, output: Any) -> None:
            made = directions(module) * module.hidden_size if isinstance(module, RecurrentLayer) else 0
            name = self.names[module]
            width = made or self.widths[name]
            found[name] = found.get(name, 0) + tensors_of(output)[0].numel() // (2 * width)
            largest = max((t.nbytes // 2 for t in tensors_of([args, output])), default=0)
            self.largest_activation = max(self.largest_activation, largest)

        def compare(module: nn.Module, args: Any, output: Any) -> None:
            before, after = tensors_of(args), tensors_of(output)
            if len(before) == len(after) == 1 and before[0].shape == after[0].shape:
                read.setdefault(module, before[0])
            else:
                other.add(module)

        norms = [m for m in self.names if may_be_norm(m) and m not in self.followers]
        recurrent = [m for m in self.opaque if isinstance(m, RecurrentLayer)]
        hooks = [m.register_forward_hook(note) for m in [*self.layers.values(), *recurrent]]
        hooks += [m.register_forward_hook(compare) for m in norms]
        random = torch.Generator().manual_seed(0)

        def answer(module: WeightLayer, *args: Any, **kwargs: Any) -> Tensor:
            x = tensors_of([args, kwargs])[0]
            numbers = torch.randn(answer_shape(module, x, widths(module)[1]), generator=random)
            return numbers.to(x.device, x.dtype if x.is_floating_point() else module.weight.dtype)

        try:
            with answering(self.layers.values(), answer):
                outputs = self.model(**repeat_first(self.inputs, 2))
        finally:
            for hook in hooks:
                hook.remove()
        if not tensors_of(outputs):
            raise Tangled("the model's outputs hold no tensors that could be watched")
        if any(t.isnan().any() for t in tensors_of(outputs) if t.is_floating_point()):
            raise Tangled("the outputs of the unmarked model contain NaN")
        axes = {m: norm_axis_of(m, x) % x.dim() - x.dim() for m, x in read.items() if m not in other}
        self._norm_axes = {m: axis for m, axis in axes.items() if mixes_channels(m, read[m], axis)}
        self.norms = {m: self.names[m] for m in self._norm_axes}
        self._find_alone()
        return found

    def _find_alone(self) -> None:
        """Find the parameters that stand alone, and which tables and parameters are `lone`."""
        owners = {*self.layers.values(), *self.tables.values(), *self.opaque, *self.followers, *self.norms}
        owned = {id(p) for module in owners for p in module.parameters()}
        for name, parameter in self.model.named_parameters():
            long = [axis for axis, length in enumerate(parameter.shape) if length > 1]
            if id(parameter) not in owned and parameter.is_floating_point() and len(long) <= 2:
                self.axes |= {a.key: a for a in (Axis(name, axis, parameter.shape[axis]) for axis in long)}
                if parameter.dim() < 2 or parameter.shape[0] > 1:
                    self.lone |= {f"{name}@{axis}" for axis in long}
        self.widths |= {key: axis.length for key, axis in self.axes.items()}
        begins: dict[str, list[int]] = {name: [] for name in self.tables}

        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            begins[self.names[module]].append(len(output))

        hooks = [table.register_forward_hook(note) for table in self.tables.values()]
        try:
            for samples in (1, 3):
                self.mark({}, samples)
        finally:
            for hook in hooks:
                hook.remove()
        for name, found in begins.items():
            once, thrice = found[: len(found) // 2], found[len(found) // 2 :]
            if any(b not in (3 * a, a if a == 1 else 0) for a, b in zip(once, thrice, strict=True)):
                self.lone.add(name)

    def mark(self, patterns: Words, samples: int) -> Seen:
        """One pass in which channels are NaN as `patterns` say. Returns which inputs of which module were NaN, in which
        sample; modules that no mark reached are left out."""
        reached: Seen = {}
        patterned = {self.layers[name]: pattern for name, pattern in patterns.items() if name in self.layers}
        tables = {self.tables[name]: pattern for name, pattern in patterns.items() if name in self.tables}
        alone = {self.axes[key]: pattern for key, pattern in patterns.items() if key in self.axes}

        def read(module: nn.Module, args: Any, kwargs: Any) -> None:
            nans = [t.isnan() for t in tensors_of([args, kwargs]) if t.is_floating_point()]
            if not any(nan.any() for nan in nans):
                return
            name = self.names[module]
            known = module in self.followers or module in self.norms or is_wide(module)
            columns = by_channel(nans[0], samples, self._axis(module)) if known else any_nan(nans, samples)
            reached[name] = columns | reached.get(name, torch.zeros_like(columns))

        def answer(module: WeightLayer, *args: Any, **kwargs: Any) -> Tensor:
            read(module, args, kwargs)
            (x,) = tensors_of([args, kwargs])[:1]
            output = self._answer(module, x)
            pattern = patterned.get(module)
            return output if pattern is None else marked(output, pattern, channel_axis(module))

        def hand_on(module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
            read(module, args, kwargs)
            x = tensors_of([args, kwargs])[0]
            return spread_in_groups(x, module.num_groups) if isinstance(module, nn.GroupNorm) else x.clone()

        def clear(module: nn.Module, args: Any, output: Any) -> Any:
            return map_tensors(output, torch.nan_to_num)

        def look_up(module: Any, args: Any, output: Tensor) -> Tensor:
            return marked(spread_over(output, samples), tables[module], -1)

        hooks = [m.register_forward_pre_hook(read, with_kwargs=True) for m in [*self.opaque, *self.followers]]
        hooks += [m.register_forward_hook(clear) for m in self.opaque]
        hooks += [table.register_forward_hook(look_up) for table in tables]
        layers = self.layers.values()
        try:
            with answering(layers, answer), answering(self.norms, hand_on), marked_parameters(self.model, alone):
                outputs = self.model(**repeat_first(self.inputs, samples))
        finally:
            for hook in hooks:
                hook.remove()
        nans = [t.isnan() for t in tensors_of(outputs) if t.is_floating_point()]
        if any(nan.any() for nan in nans):
            reached[OUTPUTS] = any_nan(nans, samples)
        return reached

    def _axis(self, module: nn.Module) -> int:
        return self._norm_axes[module] if module in self.norms else channel_axis(module)

    def norm_axis(self, norm: nn.Module) -> int:
        """Where the input of a norm has its channels, counted from the end: -1 is the last axis."""
        return self._norm_axes[norm]

    def _answer(self, layer: WeightLayer, x: Tensor) -> Tensor:
        """A tensor of the shape of the layer's product, with a number of its own in each channel."""
        dtype = x.dtype if x.is_floating_point() else layer.weight.dtype
        outputs = widths(layer)[1]
        if outputs not in self._rows:
            self._rows[outputs] = torch.randn(outputs, generator=torch.Generator().manual_seed(outputs))
        row = self._rows[outputs].to(x.device, dtype)
        row = row.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else row
        return row.expand(answer_shape(layer, x, outputs)).clone()
