"""Example inputs in one form, `Batch`, which has a size, can be resized and can be run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import invalid

ExampleInputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """The arguments of one forward call; every tensor is `(batch, ...)`, with the same batch size.

    Attributes:
        args: The positional arguments.
        kwargs: The keyword arguments.
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]

    @classmethod
    def of(cls, example_inputs: ExampleInputs) -> Batch:
        """Normalise a mapping of keyword tensors, a tuple of positional tensors, or a single tensor.

        Raises:
            DendriticError: an input is not a tensor or has no batch dimension, there is no input, or the batch sizes
                differ.
        """
        if isinstance(example_inputs, Tensor):
            batch = cls((example_inputs,), {})
        elif isinstance(example_inputs, Mapping):
            batch = cls((), dict(example_inputs))
        elif isinstance(example_inputs, tuple):
            batch = cls(example_inputs, {})
        else:
            rule = "must be a mapping of keyword tensors, a tuple of positional tensors or one tensor"
            remedy = "Pass for example dict(tokenizer(text, return_tensors='pt'))."
            raise invalid("example_inputs", type(example_inputs).__name__, rule, remedy)
        batch._check()
        return batch

    def _named(self) -> dict[str, Tensor]:
        return {f"[{i}]": tensor for i, tensor in enumerate(self.args)} | {
            f"[{name!r}]": tensor for name, tensor in self.kwargs.items()
        }

    def _check(self) -> None:
        named = self._named()
        if not named:
            raise invalid("example_inputs", {}, "must hold at least one tensor", "Pass what forward takes.")
        sizes = {}
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor):
                rule = "every input must be a tensor whose first dimension is the batch"
                remedy = "Convert it with torch.as_tensor, or leave it out."
                raise invalid(f"example_inputs{name}", type(tensor).__name__, rule, remedy)
            if tensor.ndim == 0 or tensor.shape[0] == 0:
                rule = "the first dimension must be a batch of at least one sample"
                remedy = "Add it with tensor.unsqueeze(0)."
                raise invalid(f"example_inputs{name}.shape", tuple(tensor.shape), rule, remedy)
            sizes[name] = tensor.shape[0]
        if len(set(sizes.values())) > 1:
            raise invalid("example_inputs", sizes, "the batch sizes must agree", "Repeat the shorter ones.")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name or position of each input -> its shape."""
        return {name.strip("[']"): tuple(tensor.shape) for name, tensor in self._named().items()}

    def resized(self, size: int) -> Batch:
        """The first `size` samples, starting again from the first one when there are fewer."""

        def resize(tensor: Tensor) -> Tensor:
            return tensor[torch.arange(size, device=tensor.device) % tensor.shape[0]]

        return self._map(resize)

    def samples(self) -> list[Batch]:
        """Each of the samples as a batch of its own."""
        size = next(iter(self._named().values())).shape[0]
        return [self._map(lambda tensor, i=i: tensor[i : i + 1]) for i in range(size)]

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Every input on `device`; floating-point inputs in `dtype`, token ids and masks as they are."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        kwargs = {name: function(tensor) for name, tensor in self.kwargs.items()}
        return Batch(tuple(function(tensor) for tensor in self.args), kwargs)

    def run(self, model: nn.Module) -> object:
        """One forward call."""
        return model(*self.args, **self.kwargs)
