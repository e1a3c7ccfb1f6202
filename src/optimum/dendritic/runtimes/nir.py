"""NIR: a packed or dense network of ReLUs as a spiking network, in the format that simulators and the tools of
neuromorphic chips exchange.

The value of a ReLU becomes the rate at which a neuron spikes: the weights are scaled so that rates stay below one spike
a time step, and by nothing else is the network changed.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import invalid
from ..nn.waking import asleep
from ..structure.example_inputs import as_mapping, tensors_of
from ..structure.probing import quiet
from ..structure.verification import compared
from .comparison import check_exportable, check_on_cpu, needed, open_axes, staged
from .firing_rates import scaled
from .relu_chain import relu_chain

RATE = 0.5  # spikes of a neuron in a time step, where the ReLU has its largest value
CHECKED_STEPS = 8  # in which the file that was read back must spike as what was written


def export_nir(model: nn.Module, example_inputs: Mapping[str, Any], file: str | Path, *, rate: float = RATE) -> Path:
    """Write a model as a spiking network: one NIR graph of `Conv2d`, `Affine`, `IF`, `SumPool2d` and `Flatten` nodes.

    Each ReLU becomes integrate-and-fire neurons: a neuron adds up its input, spikes once in a time step in which it is
    above its threshold of 1, and begins again at 0, as NIR 1.0.8 has it (1.0.4 subtracts the threshold). The network is
    given its input, such as the pixels, as a current in every time step; the mean of its output over the time steps is
    about the logits, the nearer the more steps there are. BatchNorm becomes part of the layer before it.

    Before the file is kept, the plain layers that were read from the model must answer as the model does, and the file,
    read back by sinabs, must spike as what was written.

    Args:
        model: packed, loaded or stock, in float32, on the CPU, a chain of layers without gathers; it is not changed.
        example_inputs: one tensor `(batch, ...)`: some hundred samples of the training data, by whose activations the
            weights are scaled; labels are left out.
        file: replaced if it exists.
        rate: how often a neuron spikes in a time step at the largest value of its ReLU, in (0, 1]. A smaller rate is
            nearer to the model and takes more time steps.

    Returns:
        The path of the file.

    Raises:
        DendriticError: the model is injected and not yet packed, or has something that has no spiking form, such as a
            gather, a branch, max pooling, GELU, attention or a BatchNorm that cannot be folded; nothing was written.
        ImportError: the extra `neuromorphic` is missing.
    """
    nir, _ = _needed("nir"), _needed("sinabs.from_torch")
    chain, samples = spiking_chain(model, example_inputs, rate=rate)
    file = Path(file)
    with staged(file.parent) as staging:
        nir.write(staging / file.name, _graph(chain, samples[:1]))
        _check_spikes_alike(chain, nir.read(staging / file.name), samples[:2], type(model).__name__)
    return file


def spiking_chain(
    model: nn.Module, example_inputs: Mapping[str, Any], *, rate: float = RATE
) -> tuple[nn.Sequential, Tensor]:
    """The layers of the spiking network, with a ReLU where its neurons are to be, and the example's tensor.

    Arguments and errors are those of `export_nir`. `spiking_network` makes the network of it.
    """
    if not 0 < rate <= 1:
        raise invalid("rate", rate, "must be in (0, 1]", "Give the spikes of a neuron in a time step, such as 0.5.")
    check_exportable(model, (torch.float32,))
    check_on_cpu(model, "sinabs")
    with torch.no_grad(), quiet(model), asleep(model):
        inputs, _ = open_axes(as_mapping(model, example_inputs))
        chain = relu_chain(model, inputs)
        (samples,) = inputs.values()
        found = compared(tensors_of(model(**inputs)), [chain(samples)], like=next(model.parameters()))
        if not found.is_rounding:
            rule = f"its chain of layers differs by {found.value:.1e} of the largest output"
            raise invalid("model", type(model).__name__, rule, "Please report it with its config.")
        return scaled(chain, samples, rate), samples


def spiking_network(chain: nn.Sequential, batch_size: int) -> nn.Module:
    """The spiking network of a `spiking_chain`, by sinabs, with neurons as `export_nir` describes.

    It takes the time steps of each sample one after the other, `(batch_size * steps, ...)`, and answers alike.
    """
    from_model = _needed("sinabs.from_torch").from_model
    return from_model(chain, batch_size=batch_size, **_neurons()).spiking_model


@torch.no_grad()
def run_spiking(network: nn.Module, samples: Tensor, steps: int) -> Tensor:
    """What comes out in each time step, `(batch, steps, classes)`, where `samples` is the current that goes in."""
    (first, *_) = tensors_of(network(samples.repeat_interleave(steps, 0)))  # behind it, the states of what was read
    return first.unflatten(0, (len(samples), steps))


def _graph(chain: nn.Sequential, sample: Tensor) -> Any:
    """The NIR graph of a scaled chain; shapes are those of one sample, without the batch."""
    nir = _needed("nir")
    nodes, value = {"input": nir.Input(_type("input", sample))}, sample
    for name, layer in chain.named_children():
        before, value = value, layer(value)
        nodes[name] = _node(layer, before, value)
    nodes["output"] = nir.Output(_type("output", value))
    return nir.NIRGraph(nodes, list(pairwise(nodes)))


def _node(layer: nn.Module, before: Tensor, after: Tensor) -> Any:
    """The node of a layer, from tensors `(1, ...)` before and behind it."""
    nir = _needed("nir")
    if isinstance(layer, nn.ReLU):
        ones = torch.ones(after.shape[1:]).numpy()
        return nir.IF(r=ones, v_threshold=ones)
    if isinstance(layer, nn.LPPool2d):
        size, stride = (torch.tensor(each).numpy() for each in (layer.kernel_size, layer.stride))
        return nir.SumPool2d(kernel_size=size, stride=stride, padding=0 * size)
    if isinstance(layer, nn.Flatten):
        return nir.Flatten(_type("input", before), start_dim=0, end_dim=-1)
    assert isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
    weight, bias = layer.weight.numpy(), layer.bias.numpy()
    if isinstance(layer, nn.Linear):
        return nir.Affine(weight, bias)
    size = (before.shape[2], before.shape[3])
    return nir.Conv2d(size, weight, layer.stride, layer.padding, layer.dilation, layer.groups, bias)


def _type(name: str, value: Tensor) -> dict[str, Any]:
    return {name: torch.tensor(value.shape[1:]).numpy()}


def _neurons() -> dict[str, Any]:
    """What sinabs is told of neurons: at most one spike in a time step, then 0 again, and no lower bound."""
    activation = _needed("sinabs.activation")
    return {"spike_fn": activation.SingleSpike, "reset_fn": activation.MembraneReset(), "min_v_mem": None}


def _needed(module: str) -> Any:
    return needed(module, "neuromorphic")


def _check_spikes_alike(chain: nn.Sequential, graph: Any, samples: Tensor, name: str) -> None:
    """Refuse a graph that sinabs, given the neurons of NIR, runs otherwise than the network of the chain."""
    read = _needed("sinabs.nir").from_nir(graph, batch_size=len(samples))
    for layer in read.modules():
        if isinstance(layer, _needed("sinabs.layers").IAFSqueeze):
            for name, value in _neurons().items():
                setattr(layer, name, value)
    expected = run_spiking(spiking_network(chain, len(samples)), samples, CHECKED_STEPS)
    found = compared([expected], [run_spiking(read, samples, CHECKED_STEPS)], like=next(chain.parameters()))
    if not found.is_rounding:
        rule = f"its NIR file, read back, differs by {found.value:.1e} of the largest output"
        raise invalid("model", name, rule, "Nothing was written; please report it with its config.")
