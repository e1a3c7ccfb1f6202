"""NIR: what is in the file spikes in a second simulator as in the first, or the model is refused by name."""

import sys
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from helpers.checkpoints import pruned
from helpers.exports import SPIKING, needed
from helpers.models import roughen
from torch import Tensor, nn

from optimum.dendritic import DendriticConfig, DendriticError, compress_, inject_, prune_
from optimum.dendritic.runtimes.nir import export_nir, run_spiking, spiking_chain, spiking_network

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from convnet import ConvNetConfig, ConvNetForImageClassification  # noqa: E402

STEPS = 24


class Around(nn.Module):
    """Layers one behind the other, with another way from the input to the output."""

    def __init__(self, *layers: nn.Module, twice: bool = False, residual: bool = False) -> None:
        super().__init__()
        self.layers, self.twice, self.residual = nn.Sequential(*layers), twice, residual

    def forward(self, x: Tensor):
        y = self.layers(x)
        return (y, x) if self.twice else y + x if self.residual else y


def pixels(samples: int = 16, channels: int = 1, size: int = 10) -> Tensor:
    return torch.randn(samples, channels, size, size, generator=torch.Generator().manual_seed(0))


def convnet() -> ConvNetForImageClassification:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        config = ConvNetConfig(image_size=10, conv_channels=(8, 12), hidden_size=16, pooling="average")
        return ConvNetForImageClassification(config).eval()


def packed(**fields) -> ConvNetForImageClassification:
    model, batch = convnet(), {"pixel_values": pixels(), "labels": torch.arange(16) % 10}
    inject_(model, DendriticConfig(**{"sparsity": 0.5, "units": "structured", **fields}), example_inputs=batch)
    return compress_(prune_(model, [batch]), batch)


def cnn() -> nn.Module:
    """Every layer that has a spiking form, in each order."""
    return roughen(
        Around(
            *(nn.Conv2d(1, 6, 3, padding="same", bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.AvgPool2d((3, 1)), nn.ReLU()),
            *(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        ).eval()
    )


MODELS = {"packed ConvNet": lambda: (packed(), "pixel_values"), "CNN": lambda: (cnn(), "x")}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_second_simulator_reads_the_file_and_answers_alike(name: str, tmp_path):
    needed("sinabs"), needed("norse")
    model, key = MODELS[name]()
    samples = pixels()
    with quietly():
        import nir
        import norse.torch

        file = export_nir(model, {key: samples}, tmp_path / "new" / "spikes.nir")
        assert [path.name for path in file.parent.iterdir()] == ["spikes.nir"]
        chain, _ = spiking_chain(model, {key: samples})
        network = spiking_network(chain, 4)
        spikes = []
        for layer in network.modules():
            if type(layer).__name__ == "IAFSqueeze":
                layer.register_forward_hook(lambda *call: spikes.append(call[2].mean()))
        expected = run_spiking(network, samples[:4], STEPS)
        other, found = norse.torch.from_nir(nir.read(file)), []
        with torch.no_grad():
            for sample in samples[:4]:
                state = None
                for _ in range(STEPS):
                    answer, state = other(sample, state)
                    found.append(answer)
    assert all(0.01 < rate < 0.9 for rate in spikes) and len(spikes) >= 3
    torch.testing.assert_close(torch.stack(found).unflatten(0, (4, STEPS)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_mean_output_nears_the_logits_as_neurons_spike_less_often():
    needed("sinabs")
    model, samples = packed(), pixels()
    with quietly(), torch.no_grad():
        logits = model(samples[:4]).logits
        gaps = []
        for rate, steps in ((1.0, 32), (0.25, 128), (0.05, 640)):
            chain, _ = spiking_chain(model, {"pixel_values": samples}, rate=rate)
            mean = run_spiking(spiking_network(chain, 4), samples[:4], steps).mean(1)
            gaps.append(float((mean - logits).abs().max() / logits.abs().max()))
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.1, gaps


@pytest.mark.parametrize("name", MODELS)
def test_the_chain_is_the_model_and_leaves_it_alone(name: str):
    """`spiking_chain` compares both before it scales; here, that no largest value is above the rate by much."""
    model, key = MODELS[name]()
    before = {each: value.clone() for each, value in model.state_dict().items()}
    chain, samples = spiking_chain(model, {key: pixels()}, rate=0.25)
    value, above = samples, []
    for layer in chain:
        value = layer(value)
        if isinstance(layer, nn.ReLU):
            above.append(float((value > 0.2501).float().mean()))
    assert len(above) >= 3 and max(above) < 0.05
    with torch.no_grad():
        expected = model(**{key: samples})
    torch.testing.assert_close(
        value, expected if isinstance(expected, Tensor) else expected.logits, rtol=1e-3, atol=1e-4
    )
    assert all(torch.equal(value, before[each]) for each, value in model.state_dict().items())


def behind(layer: nn.Module, *last: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(1, 4, 3), nn.ReLU(), layer, *(last or [nn.Conv2d(4, 3, 1)])]


REFUSED = {  # the layers, and what the error says
    "GELU": (behind(nn.GELU()), "layers.2 = 'gelu.default'.*ReLU"),
    "max pooling": (behind(nn.MaxPool2d(2)), "layers.2 = 'max_pool2d.*average pooling"),
    "BatchNorm": (behind(nn.BatchNorm2d(4)), "layers.2 = 'batch_norm.*right behind a convolution"),
    "LayerNorm": (behind(nn.LayerNorm(8)), "layers.2 = 'layer_norm"),
    "uneven": ([nn.Conv2d(1, 4, 2, padding="same"), nn.ReLU(), nn.Conv2d(4, 3, 1)], "layers.0 = .*one side more"),
    "groups": (behind(nn.Conv2d(4, 4, 1, groups=2)), "layers.2 = .*groups of channels"),
    "overlap": (behind(nn.AdaptiveAvgPool2d(3)), "layers.2 = .*overlap"),
    "edges": (behind(nn.AvgPool2d(2, 2, 1)), "layers.2 = .*edges"),
    "shape": (behind(nn.Flatten(2), nn.Linear(64, 3)), "layers.2 = .*one vector"),
    "first": ([nn.ReLU(), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)], "layers.0 = 'relu.*before all"),
    "last": ([nn.Conv2d(1, 4, 3), nn.ReLU()], "must have a ReLU, and a layer with weights behind"),
    "none": ([nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1)], "must have a ReLU"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_spiking_form_is_refused_by_name(name: str):
    layers, message = REFUSED[name]
    with quietly(), pytest.raises(DendriticError, match=message):
        spiking_chain(Around(*layers).eval(), {"x": pixels()})


def test_branches_and_other_outputs_are_refused():
    layers = nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)
    with pytest.raises(DendriticError, match=r"'add.Tensor': .*residual"):
        spiking_chain(Around(*layers, residual=True).eval(), {"x": pixels()})
    with pytest.raises(DendriticError, match="returns more than one tensor"):
        spiking_chain(Around(*layers, twice=True).eval(), {"x": pixels()})
    with pytest.raises(DendriticError, match=r"\['pixel_values', 'x'\]: must be one tensor"):
        spiking_chain(Around(*layers).eval(), {"x": pixels(), "pixel_values": pixels()})
    with pytest.raises(DendriticError, match="rate = 1.5: must be in"):
        spiking_chain(Around(*layers).eval(), {"x": pixels()}, rate=1.5)


@pytest.mark.parametrize("family", SPIKING)
def test_families_without_a_spiking_form_are_refused(family: str):
    model, _, inputs = pruned(family, units="structured")
    compress_(model, inputs)
    with quietly(), pytest.raises(DendriticError, match=SPIKING[family].message):
        spiking_chain(model, inputs)


def test_a_gather_is_refused():
    model, _, inputs = pruned("plain_cnn", arbors=2, units=["inputs"])
    compress_(model, inputs)
    with pytest.raises(DendriticError, match="gathers or scatters, which has no spiking form.*units='structured'"):
        spiking_chain(model, inputs)


def test_nothing_is_left_where_the_file_spikes_otherwise(tmp_path, monkeypatch):
    needed("sinabs")
    with quietly():
        import sinabs.nir

    read = sinabs.nir.from_nir
    doubled = {"pixel_values": pixels()}

    def from_nir(graph, **options):
        graph.nodes["classifier"].weight = 2 * graph.nodes["classifier"].weight
        return read(graph, **options)

    monkeypatch.setattr(sinabs.nir, "from_nir", from_nir)
    with quietly(), pytest.raises(DendriticError, match="its NIR file, read back, differs by"):
        export_nir(convnet(), doubled, tmp_path / "spikes.nir")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(ImportError, match=r"pip install optimum-dendritic\[neuromorphic\]"):
        export_nir(convnet(), {"pixel_values": pixels()}, tmp_path / "spikes.nir")


@pytest.mark.slow
def test_the_command_exports_to_nir(cli, tmp_path):
    needed("sinabs")
    model = packed()
    model.save_pretrained(tmp_path / "small")
    numpy.save(tmp_path / "pixels.npy", pixels().numpy())
    command = ["dendritic", "export", "small", "--format", "nir", "--output", "small.nir", "--import", "convnet"]
    with quietly():
        code, _, errors = cli(*command)
        assert code == 1 and "--calibration = None: is needed" in errors
        code, _, errors = cli(*command, "--calibration", "small/config.json")
        assert code == 1 and "cannot be read" in errors and "numpy.save" in errors
        code, output, errors = cli(*command, "--calibration", "pixels.npy")
    assert code == 0, errors
    assert "it spikes as what was written" in output and (tmp_path / "small.nir").exists()


def quietly() -> warnings.catch_warnings:
    """The simulators warn of much that is not ours."""
    return warnings.catch_warnings(action="ignore")
