"""Wiring: NaN tracing finds what feeds what, in every family without code for any, and leaves the model as it was."""

import logging
from dataclasses import dataclass

import pytest
import torch
from helpers import families
from helpers.compare import every
from helpers.families import ALL, inputs_of
from helpers.models import FACTORIES, ConcatMLP, build, outputs, roughen, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from optimum.dendritic import DendriticError, Wiring, trace_wiring
from optimum.dendritic.functional.codes import Reach
from optimum.dendritic.layout.records import Bundle, Run
from optimum.dendritic.nn import is_weight_layer
from optimum.dendritic.nn.pack_model import alive_channels, segments_reached
from optimum.dendritic.structure.dependency_groups import Spans, _runs
from optimum.dendritic.structure.nan_tracing import Tracer
from optimum.dendritic.structure.probing import quiet


def trace(name: str, **options) -> dict[str, Bundle]:
    model, inputs = build(name)
    return {bundle.reader: bundle for bundle in trace_wiring(model, inputs, **options).bundles}


def feeds(bundle: Bundle) -> tuple[list[str], list[str], int, bool]:
    return [p.name for p in bundle.producers], [f.name for f in bundle.followers], bundle.block, bundle.cut


@pytest.mark.parametrize("layer", [0, 1])
def test_bert_feeds_whole_heads_and_single_neurons(layer):
    found, at = trace("bert"), f"bert.encoder.layer.{layer}"
    heads = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
    assert feeds(found[f"{at}.attention.output.dense"]) == (heads, [], 4, True)
    assert feeds(found[f"{at}.output.dense"]) == ([f"{at}.intermediate.dense"], [], 1, True)


def test_vit_feeds_whole_heads_and_single_neurons():
    found, at = trace("vit"), "vit.layers.1"
    heads = [f"{at}.attention.{part}_proj" for part in ("q", "k", "v")]
    assert feeds(found[f"{at}.attention.o_proj"]) == (heads, [], 4, True)
    assert feeds(found[f"{at}.mlp.fc2"]) == ([f"{at}.mlp.fc1"], [], 1, True)


def runs(*numbers: tuple[int, int, int, int, int]) -> tuple[Run, ...]:
    """Runs by their start, size, reach, width and count."""
    names = ("start", "size", "reach", "width", "count")
    return tuple(Run(**dict(zip(names, each, strict=True))) for each in numbers)


def test_gpt2_splits_one_tensor_into_heads_which_cannot_shrink():
    found = trace("gpt2")
    bundle = found["transformer.h.0.attn.c_proj"]
    assert feeds(bundle) == (["transformer.h.0.attn.c_attn"], [], 4, False)
    assert bundle.producers[0].runs == runs((0, 4, 0, 4, 4), (16, 4, 0, 4, 4), (32, 1, 0, 1, 16))
    assert feeds(found["transformer.h.0.mlp.c_proj"]) == (["transformer.h.0.mlp.c_fc"], [], 1, True)


def test_llama_cuts_whole_groups_of_query_heads_with_the_key_and_value_head_that_they_share():
    found, at = trace("llama"), "model.layers.0"
    bundle = found[f"{at}.self_attn.o_proj"]
    assert feeds(bundle) == ([f"{at}.self_attn.{part}_proj" for part in "qkv"], [], 8, True)
    query, key, value = bundle.producers
    assert query.runs == runs((0, 4, 0, 4, 4)) and key.runs == value.runs == runs((0, 4, 0, 8, 2))
    assert feeds(found[f"{at}.mlp.down_proj"]) == ([f"{at}.mlp.{part}_proj" for part in ("gate", "up")], [], 1, True)


def test_a_fused_product_with_shared_key_and_value_heads_is_read_as_heads():
    """Phi-3: each row of a value head reaches scattered inputs of a group; the queries and keys tell the block."""
    family = next(family for family in ALL if family.name == "Phi-3")
    found = {b.reader: b for b in trace_wiring(families.build(family), inputs_of(family)).bundles}
    bundle = found["model.layers.0.self_attn.o_proj"]
    assert feeds(bundle) == (["model.layers.0.self_attn.qkv_proj"], [], 8, False)
    assert bundle.producers[0].runs == runs((0, 8, 0, 8, 2), (16, 4, 0, 8, 2), (24, 4, 0, 8, 2))


def test_resnet_feeds_inside_its_blocks_through_batch_norm():
    found, at = trace("resnet_basic"), "resnet.encoder.stages.0.layers.1.layer"
    expected = ([f"{at}.0.convolution"], [f"{at}.0.normalization"], 1, True)
    assert feeds(found[f"{at}.1.convolution"]) == expected
    found, at = trace("resnet_bottleneck"), "resnet.encoder.stages.1.layers.1.layer"
    for i in (1, 2):
        expected = ([f"{at}.{i - 1}.convolution"], [f"{at}.{i - 1}.normalization"], 1, True)
        assert feeds(found[f"{at}.{i}.convolution"]) == expected


def test_mobilenet_feeds_through_its_depthwise_convolution():
    found, at = trace("mobilenet"), "mobilenet_v2.layer.1"
    followers = [
        f"{at}.{part}" for part in ("conv_3x3.convolution", "conv_3x3.normalization", "expand_1x1.normalization")
    ]
    assert feeds(found[f"{at}.reduce_1x1.convolution"]) == ([f"{at}.expand_1x1.convolution"], followers, 1, True)


def test_convnext_feeds_between_its_pointwise_layers():
    at = "convnext.encoder.stages.0.layers.0"
    assert feeds(trace("convnext")[f"{at}.pwconv2"]) == ([f"{at}.pwconv1"], [], 1, True)


def test_a_channel_feeds_all_its_pixels_of_a_flattened_layer():
    found = trace("plain_cnn")
    assert feeds(found["conv2"]) == (["conv1"], ["bn1"], 1, True)
    assert feeds(found["fc1"]) == (["conv2"], ["bn2"], 4, True)
    assert found["fc1"].producers[0].runs == runs((0, 1, 0, 4, 16))
    assert feeds(found["fc2"]) == (["fc1"], [], 1, True)


def test_a_grouped_convolution_is_neither_fed_nor_feeds():
    assert list(trace("grouped_cnn")) == ["project"]


STREAMS = {
    "bert": ["bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense"],
    "gpt2": ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"],
    "llama": ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"],
    "vit": ["vit.layers.0.attention.o_proj", "vit.layers.0.mlp.fc2"],
    "resnet_basic": ["resnet.embedder.embedder.convolution", "resnet.encoder.stages.0.layers.0.layer.1.convolution"],
    "convnext": ["convnext.encoder.stages.0.layers.0.pwconv2", "convnext.encoder.stages.1.downsampling_layer.1"],
    "residual_mlp": ["stem", "down.0"],
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_layer_that_writes_to_a_residual_stream_is_never_cut(name):
    model, _ = build(name)
    cut = {producer.name for bundle in trace(name).values() if bundle.cut for producer in bundle.producers}
    assert cut and cut.isdisjoint(STREAMS[name])
    assert every(isinstance(model.get_submodule(layer), nn.Module) for layer in STREAMS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_positions_times_weights_are_the_products_of_one_sample(name):
    model, inputs = build(name)
    positions, seen = trace_wiring(model, inputs).positions, {}

    def note(layer_name):
        def hook(module, args, output):
            output = output[0] if isinstance(output, tuple) else output
            channels = output.shape[1 if isinstance(module, nn.Conv2d) else -1]
            seen[layer_name] = seen.get(layer_name, 0) + output[0].numel() // channels

        return hook

    for layer_name in positions:
        model.get_submodule(layer_name).register_forward_hook(note(layer_name))
    outputs(model, inputs)
    assert positions == seen


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_tracing_leaves_the_model_as_it_was(name):
    model, inputs = build(name)
    model.train()
    next(model.children()).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = {n: (m, m.training) for n, m in model.named_modules()}
    parameters = {n: (p, p.requires_grad) for n, p in model.named_parameters()}
    random, hooks = torch.get_rng_state(), hooks_of(model)
    trace_wiring(model, inputs)
    assert torch.equal(torch.get_rng_state(), random)
    assert {n: (m, m.training) for n, m in model.named_modules()} == modules
    assert every(p is parameters[n][0] and p.grad is None for n, p in model.named_parameters())
    assert {key: torch.equal(value, state[key]) for key, value in model.state_dict().items()} == dict.fromkeys(
        state, True
    )
    assert hooks_of(model) == hooks


def hooks_of(model: nn.Module) -> list[int]:
    return [hook for m in model.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise TypeError("no way")


def test_a_model_that_cannot_run_gives_an_empty_wiring_and_a_warning(caplog):
    model = Raises().train()
    assert trace_wiring(model, {"x": torch.ones(1, 4)}) == Wiring()
    assert "no way" in caplog.text and caplog.records[0].levelno == logging.WARNING
    assert model.training and model.first.training


@pytest.mark.parametrize("bad", [None, [torch.ones(1, 4)], {}, {"x": "text"}])
def test_inputs_that_are_no_mapping_of_tensors_are_refused(bad):
    with pytest.raises(DendriticError, match="example_inputs"):
        trace_wiring(Raises(), bad)


class Between(nn.Module):
    """`up`, something, `down`."""

    def __init__(self, between, width: int = 8) -> None:
        super().__init__()
        self.up, self.down, self.between = nn.Linear(6, width), nn.Linear(width, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.between(self.up(x)))


def bundles_of(model: nn.Module) -> tuple[Bundle, ...]:
    return trace_wiring(roughen(model), vectors()).bundles


@pytest.mark.parametrize("between", [nn.GELU(), nn.Dropout(0.5), nn.PReLU(8), nn.BatchNorm1d(8)], ids=repr)
def test_what_treats_each_channel_alone_is_cut_through(between):
    (bundle,) = bundles_of(Between(between))
    assert bundle.cut and bundle.block == 1


@pytest.mark.parametrize(
    "between", [nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False), nn.Softmax(-1)], ids=repr
)
def test_what_mixes_all_channels_is_not_cut_through(between):
    assert bundles_of(Between(between)) == ()


def test_a_parameter_along_the_channels_keeps_the_tensor_wide():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    (bundle,) = bundles_of(Between(Scale()))
    assert not bundle.cut


def test_a_permutation_of_channels_is_never_cut_wrongly():
    order = torch.tensor([3, 1, 0, 2, 7, 6, 4, 5])

    class Permute(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., order]

    assert not [bundle for bundle in bundles_of(Between(Permute())) if bundle.cut]


def test_a_producer_that_is_also_returned_is_shared():
    class Returned(Between):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.up(x)
            return self.down(hidden), hidden

    assert bundles_of(Returned(nn.Identity())) == ()


def test_a_producer_that_is_returned_in_a_dataclass_is_shared():
    @dataclass
    class Both:
        logits: Tensor
        hidden: Tensor

    class Returned(Between):
        def forward(self, x: Tensor) -> Both:
            hidden = self.up(x)
            return Both(self.down(hidden), hidden)

    assert bundles_of(Returned(nn.Identity())) == ()


def test_a_layer_called_twice_is_left_alone():
    class Twice(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x)) + self.down(self.up(2 * x))

    assert bundles_of(Twice(nn.Identity())) == ()


def test_two_readers_of_one_producer_share_it():
    class Readers(Between):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.other = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.up(x)
            return self.down(hidden) + self.other(hidden)

    assert bundles_of(Readers()) == ()


def test_outputs_that_cannot_be_watched_give_an_empty_wiring(caplog):
    class Hidden(Between):
        def forward(self, x: Tensor) -> object:
            return type("Custom", (), {"hidden": self.down(self.up(x))})()

    assert trace_wiring(Hidden(nn.Identity()), vectors()) == Wiring()
    assert "hold no tensors" in caplog.text


def test_channels_that_nobody_can_cut_do_not_stop_those_that_can_be_cut():
    (join, head) = bundles_of(ConcatMLP())
    assert feeds(join) == (["branch"], [], 1, True) and feeds(head) == (["join"], [], 1, True)


def test_unknown_targets_are_refused():
    with pytest.raises(DendriticError, match="missing"):
        trace_wiring(Between(nn.ReLU()), vectors(), targets=["missing"])


def test_the_wiring_does_not_depend_on_the_number_of_samples():
    for name in ("bert", "plain_cnn"):
        model, inputs = build(name)
        one = {key: value[:1] for key, value in inputs.items()}
        assert trace_wiring(model, one) == trace_wiring(model, inputs)


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_runs_describe_the_reach_that_they_were_read_from(size, width, count, skip, more):
    reach = torch.zeros(size * count * 2, width * (skip + count + more), dtype=torch.bool)
    for start in (0, size * count):
        for i in range(count):
            lo = (skip + i) * width
            reach[start + i * size : start + (i + 1) * size, lo : lo + width] = True
    runs = _runs(Spans.of(Reach(*reach.nonzero().unbind(1), width=reach.shape[1]), len(reach)))
    assert runs is not None
    drawn = torch.zeros_like(reach)
    for run in runs:
        for i in range(run.count):
            rows = slice(run.start + i * run.size, run.start + (i + 1) * run.size)
            drawn[rows, run.reach + i * run.width : run.reach + (i + 1) * run.width] = True
    assert torch.equal(drawn, reach)
    assert torch.equal(segments_reached(runs, len(reach), width), (reach.int().argmax(1) // width))


def test_channels_that_nobody_reads_stay():
    found = runs((1, 1, 0, 2, 2))
    assert alive_channels(found, 4, torch.tensor([False, False, True, True])).tolist() == [0, 2, 3]
    assert segments_reached(found, 4, 2).tolist() == [-1, 0, 1, -1]


def tracer_of(name: str) -> Tracer:
    model, inputs = build(name)
    layers = {n: m for n, m in model.named_modules() if n and is_weight_layer(m)}
    tracer = Tracer(model, inputs, layers, {})
    with quiet(model), torch.no_grad():
        tracer.positions()
    return tracer


@pytest.mark.parametrize("name", ["bert", "gpt2", "plain_cnn"])
def test_a_traced_pass_multiplies_by_no_weight(name, monkeypatch):
    tracer = tracer_of(name)
    with quiet(tracer.model), torch.no_grad():
        expected, failed = tracer.reach(list(tracer.layers))
        assert expected and not failed

        def multiply(*args, **kwargs):
            raise AssertionError("a weight was multiplied")

        monkeypatch.setattr(nn.Linear, "forward", multiply)
        monkeypatch.setattr(nn.Conv2d, "forward", multiply)
        monkeypatch.setattr(Conv1D, "forward", multiply)
        found, _ = tracer.reach(list(tracer.layers))
    for producer, reached in expected.items():
        assert reached.keys() == found[producer].keys()
        for module, reach in reached.items():
            assert torch.equal(reach.channels, found[producer][module].channels)
            assert torch.equal(reach.inputs, found[producer][module].inputs)


def test_layers_that_reach_no_common_module_share_the_samples_of_a_pass(monkeypatch):
    samples: list[int] = []
    mark = Tracer.mark
    monkeypatch.setattr(Tracer, "mark", lambda self, patterns, n: samples.append(n) or mark(self, patterns, n))
    counts = []
    for _ in range(2):
        tracer = tracer_of("llama")
        names = list(tracer.layers)
        first = [name for name in names if "layers.0.mlp" in name and "down" not in name]
        second = [name for name in names if "layers.1.mlp" in name and "down" not in name]
        for chosen in (first, first + second):
            samples.clear()
            with quiet(tracer.model), torch.no_grad():
                tracer.reach(chosen)
            counts.append(sum(samples))
    assert (
        counts[1] - counts[0] == len(second) and counts[:2] == counts[2:]
    )  # one more sample each, in the census alone


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8)], ids=repr)
def test_a_norm_hands_the_mark_on_by_channel_or_by_its_groups(norm):
    model = roughen(Between(norm))
    tracer = Tracer(model, vectors(), {"up": model.up, "down": model.down}, {})
    with quiet(model), torch.no_grad():
        tracer.positions()
        reached, _ = tracer.reach(["up"])
    size = 4 if isinstance(norm, nn.GroupNorm) else 1
    expected = torch.eye(8 // size, dtype=torch.bool).repeat_interleave(size, 0).repeat_interleave(size, 1)
    assert torch.equal(reached["up"]["down"].dense(8), expected)
