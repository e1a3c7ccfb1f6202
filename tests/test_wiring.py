"""Wiring: NaN tracing finds what feeds what, in every family without code for any, and leaves the model as it was."""

import logging
from dataclasses import dataclass

import pytest
import torch
from helpers import families
from helpers.compare import every
from helpers.families import ALL, inputs_of
from helpers.models import FACTORIES, ConcatMLP, build, outputs, roughen, vectors
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from optimum.dendritic import DendriticError, Wiring, trace_wiring
from optimum.dendritic.functional.units import living, runs_along, units_along
from optimum.dendritic.layout.records import Group, Number, Run
from optimum.dendritic.structure.channel_reach import channel_reach
from optimum.dendritic.structure.nan_tracing import Tracer
from optimum.dendritic.structure.probing import quiet


def trace(name: str, **options) -> dict[str, Group]:
    """The groups of a model by the layers that read them."""
    if name in FACTORIES:
        model, inputs = build(name)
    else:
        family = next(family for family in ALL if family.name == name)
        model, inputs = families.build(family), inputs_of(family)
    return by_consumer(trace_wiring(model, inputs, **options).groups)


def by_consumer(groups: tuple[Group, ...]) -> dict[str, Group]:
    return {member.name: group for group in groups for member in group.consumers}


def feeds(group: Group) -> tuple[list[str], list[str], str, int, bool]:
    """The producers and passers of a group of one consumer, its kind, the inputs of a unit, and whether it is cut."""
    (consumer,) = group.consumers
    (size,) = {run.size for run in consumer.runs}
    return names(group, "producers"), names(group, "passers"), group.kind, size, group.cut


def names(group: Group, side: str) -> list[str]:
    return [member.name for member in getattr(group, side)]


@pytest.mark.parametrize("layer", [0, 1])
def test_bert_feeds_whole_heads_and_single_neurons(layer):
    found, at = trace("bert"), f"bert.encoder.layer.{layer}"
    heads = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
    assert feeds(found[f"{at}.attention.output.dense"]) == (heads, [], "heads", 4, True)
    assert feeds(found[f"{at}.output.dense"]) == ([f"{at}.intermediate.dense"], [], "neurons", 1, True)


def test_vit_feeds_whole_heads_and_single_neurons():
    found, at = trace("vit"), "vit.layers.1"
    heads = [f"{at}.attention.{part}_proj" for part in ("q", "k", "v")]
    assert feeds(found[f"{at}.attention.o_proj"]) == (heads, [], "heads", 4, True)
    assert feeds(found[f"{at}.mlp.fc2"]) == ([f"{at}.mlp.fc1"], [], "neurons", 1, True)


def runs(*numbers: tuple[int, int, int, int]) -> tuple[Run, ...]:
    """Runs by their start, size, first unit and count."""
    return tuple(Run(**dict(zip(("start", "size", "unit", "count"), each, strict=True))) for each in numbers)


def test_gpt2_splits_one_tensor_into_heads_by_a_number_that_shrinks_with_them():
    found = trace("gpt2")
    group = found["transformer.h.0.attn.c_proj"]
    assert feeds(group) == (["transformer.h.0.attn.c_attn"], [], "heads", 4, True)
    assert group.numbers == (Number(module="transformer.h.0.attn", name="split_size", value=16),)
    assert group.producers[0].runs == runs((0, 4, 0, 4), (16, 4, 0, 4), (32, 4, 0, 4))
    assert feeds(found["transformer.h.0.mlp.c_proj"]) == (["transformer.h.0.mlp.c_fc"], [], "neurons", 1, True)


@pytest.mark.parametrize("name", ["llama", "Qwen3"])
def test_whole_groups_of_query_heads_are_cut_with_the_key_and_value_head_that_they_share(name):
    """The norms of Qwen3, one for all heads, keep what they have."""
    found, at = trace(name), "model.layers.0"
    group = found[f"{at}.self_attn.o_proj"]
    assert feeds(group) == ([f"{at}.self_attn.{part}_proj" for part in "qkv"], [], "heads", 8, True)
    query, key, value = group.producers
    assert query.runs == runs((0, 8, 0, 2)) and key.runs == value.runs == runs((0, 4, 0, 2))
    expected = ([f"{at}.mlp.{part}_proj" for part in ("gate", "up")], [], "neurons", 1, True)
    assert feeds(found[f"{at}.mlp.down_proj"]) == expected


def test_a_fused_product_with_shared_key_and_value_heads_is_read_as_heads():
    """Phi-3: each row of a value head reaches scattered inputs of a group; the queries and keys tell the block."""
    group = trace("Phi-3")["model.layers.0.self_attn.o_proj"]
    assert feeds(group) == (["model.layers.0.self_attn.qkv_proj"], [], "heads", 8, False)
    assert group.producers[0].runs == runs((0, 8, 0, 2), (16, 4, 0, 2), (24, 4, 0, 2))


def test_resnet_feeds_inside_its_blocks_through_batch_norm():
    found, at = trace("resnet_basic"), "resnet.encoder.stages.0.layers.1.layer"
    expected = ([f"{at}.0.convolution"], [f"{at}.0.normalization"], "channels", 1, True)
    assert feeds(found[f"{at}.1.convolution"]) == expected
    found, at = trace("resnet_bottleneck"), "resnet.encoder.stages.1.layers.1.layer"
    for i in (1, 2):
        expected = ([f"{at}.{i - 1}.convolution"], [f"{at}.{i - 1}.normalization"], "channels", 1, True)
        assert feeds(found[f"{at}.{i}.convolution"]) == expected


def test_mobilenet_feeds_through_its_depthwise_convolution():
    found, at = trace("mobilenet"), "mobilenet_v2.layer.1"
    followers = [
        f"{at}.{part}" for part in ("conv_3x3.convolution", "conv_3x3.normalization", "expand_1x1.normalization")
    ]
    expected = ([f"{at}.expand_1x1.convolution"], followers, "channels", 1, True)
    assert feeds(found[f"{at}.reduce_1x1.convolution"]) == expected


def test_convnext_feeds_between_its_pointwise_layers():
    at = "convnext.encoder.stages.0.layers.0"
    assert feeds(trace("convnext")[f"{at}.pwconv2"]) == ([f"{at}.pwconv1"], [], "neurons", 1, True)


def test_a_channel_feeds_all_its_pixels_of_a_flattened_layer():
    found = trace("plain_cnn")
    assert feeds(found["conv2"]) == (["conv1"], ["bn1"], "channels", 1, True)
    assert feeds(found["fc1"]) == (["conv2"], ["bn2"], "channels", 4, True)
    assert found["fc1"].producers[0].runs == runs((0, 1, 0, 16))
    assert feeds(found["fc2"]) == (["fc1"], [], "neurons", 1, True)


def test_a_grouped_convolution_is_neither_fed_nor_feeds():
    assert list(trace("grouped_cnn")) == ["project"]


WRITERS = {
    "bert": ["bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense"],
    "gpt2": ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"],
    "llama": ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"],
    "vit": ["vit.layers.0.attention.o_proj", "vit.layers.0.mlp.fc2"],
    "resnet_basic": ["resnet.embedder.embedder.convolution", "resnet.encoder.stages.0.layers.0.layer.1.convolution"],
    "convnext": ["convnext.encoder.stages.0.layers.0.pwconv2"],
    "residual_mlp": ["stem", "down.0"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_layer_that_writes_to_a_residual_stream_is_cut_with_the_stream_alone(name):
    groups = {group.host: group for group in trace(name).values()}.values()
    for writer in WRITERS[name]:
        (kind,) = [group.kind for group in groups if writer in names(group, "producers")]
        assert kind == "streams"


def stream_of(name: str, consumer: str) -> Group:
    group = trace(name)[consumer]
    assert group.kind == "streams" and group.cut
    return group


def test_the_stream_of_bert_has_its_embeddings_and_norms():
    group, at = stream_of("bert", "bert.pooler.dense"), "bert.encoder.layer"
    tables = [f"bert.embeddings.{part}_embeddings" for part in ("word", "position", "token_type")]
    parts = ("attention.output", "output")
    writers = [f"{at}.{i}.{part}.dense" for i in (0, 1) for part in parts]
    read = ["attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"]
    assert group.units == 16 and set(names(group, "producers")) == {*tables, *writers}
    assert names(group, "consumers") == [*(f"{at}.{i}.{part}" for i in (0, 1) for part in read), "bert.pooler.dense"]
    norms = ["bert.embeddings.LayerNorm", *(f"{at}.{i}.{part}.LayerNorm" for i in (0, 1) for part in parts)]
    assert set(names(group, "passers")) == set(norms) and not group.parameters
    assert {member.runs for member in (*group.members,)} == {runs((0, 1, 0, 16))}


def test_the_stream_of_gpt2_has_both_embeddings_and_the_tied_head():
    group = stream_of("gpt2", "lm_head")
    assert {"transformer.wte", "transformer.wpe"} <= set(names(group, "producers"))
    norms = {f"transformer.h.{i}.ln_{j}" for i in (0, 1) for j in (1, 2)}
    assert set(names(group, "passers")) == norms | {"transformer.ln_f"}
    writers = {f"transformer.h.{i}.{part}.c_proj" for i in (0, 1) for part in ("attn", "mlp")}
    assert writers < set(names(group, "producers"))


def test_the_stream_of_vit_has_its_class_token_and_positions():
    group = stream_of("vit", "classifier")
    expected = {(f"vit.embeddings.{name}", 2) for name in ("cls_token", "position_embeddings")}
    assert {(member.name, member.axis) for member in group.parameters} == expected
    assert "vit.embeddings.patch_embeddings.projection" in names(group, "producers")
    assert "vit.layernorm" in names(group, "passers")


def test_the_stream_of_a_resnet_has_its_shortcut_among_the_readers():
    group = stream_of("resnet_basic", "resnet.encoder.stages.1.layers.0.shortcut.convolution")
    assert len(group.producers) == len(group.passers) == 3 and len(group.consumers) == 4


def test_the_heads_of_t5_that_share_a_position_bias_are_coupled_over_layers():
    config = T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0)
    inputs = build("t5")[1]
    with torch.random.fork_rng([]):
        model = roughen(T5ForConditionalGeneration(config))
    found = by_consumer(trace_wiring(model, inputs).groups)
    at = "encoder.block.{}.layer.0.SelfAttention"
    group = found[f"{at.format(0)}.o"]
    assert group is found[f"{at.format(1)}.o"] and group.units == 4 and group.cut
    expected = {f"{at.format(i)}.{part}" for i in (0, 1) for part in "qkv"}
    assert set(names(group, "producers")) == expected | {f"{at.format(0)}.relative_attention_bias"}


def test_the_layers_of_albert_that_are_shared_are_members_once():
    found, at = trace("ALBERT"), "albert.encoder.albert_layer_groups.0.albert_layers.0"
    group = found["albert.pooler"]
    assert group.kind == "streams" and group.cut and len(names(group, "consumers")) == 5
    assert {f"{at}.attention.dense", f"{at}.ffn_output"} < set(names(group, "producers"))
    assert feeds(found[f"{at}.ffn_output"]) == ([f"{at}.ffn"], [], "neurons", 1, True)


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
    assert trace_wiring(model, {"x": torch.ones(1, 4)}) == Wiring(fault="TypeError: no way")
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


def groups_of(model: nn.Module) -> tuple[Group, ...]:
    return trace_wiring(roughen(model), vectors()).groups


@pytest.mark.parametrize(
    "between",
    [nn.GELU(), nn.Dropout(0.5), nn.PReLU(8), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.RMSNorm(8)],
    ids=repr,
)
def test_what_treats_each_channel_alone_and_norms_are_cut_through(between):
    (group,) = groups_of(Between(between))
    assert group.cut and group.units == 8
    assert bool(group.passers) == any(True for _ in between.parameters())


def test_the_groups_of_a_group_norm_are_blocks():
    (group,) = groups_of(Between(nn.GroupNorm(2, 8)))
    assert group.cut and group.units == 2
    assert {member.runs for member in group.members} == {runs((0, 4, 0, 2))}


def test_what_mixes_all_channels_is_not_cut_through():
    assert groups_of(Between(nn.Softmax(-1))) == ()


def test_a_parameter_along_the_channels_shrinks_with_them():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) * self.scale * 2

    (group,) = groups_of(Between(Scale()))
    assert group.cut and group.units == 8
    members = [member.name for member in (*group.parameters, *group.passers)]
    assert members == ["between.scale"] or members == ["between"]


def test_a_permutation_of_channels_is_never_cut_wrongly():
    order = torch.tensor([3, 1, 0, 2, 7, 6, 4, 5])

    class Permute(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., order]

    assert not [group for group in groups_of(Between(Permute())) if group.cut]


def test_a_producer_that_is_also_returned_stays():
    class Returned(Between):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.up(x)
            return self.down(hidden), hidden

    assert groups_of(Returned(nn.Identity())) == ()


def test_a_producer_that_is_returned_in_a_dataclass_stays():
    @dataclass
    class Both:
        logits: Tensor
        hidden: Tensor

    class Returned(Between):
        def forward(self, x: Tensor) -> Both:
            hidden = self.up(x)
            return Both(self.down(hidden), hidden)

    assert groups_of(Returned(nn.Identity())) == ()


def test_a_layer_called_twice_is_a_member_once():
    class Twice(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x)) + self.down(self.up(2 * x))

    (group,) = groups_of(Twice(nn.Identity()))
    assert feeds(group) == (["up"], [], "neurons", 1, True)


def test_two_readers_of_one_producer_are_a_stream():
    class Readers(Between):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.other = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.up(x)
            return self.down(hidden) + self.other(hidden)

    (group,) = groups_of(Readers())
    assert group.kind == "streams" and group.cut
    assert names(group, "producers") == ["up"] and set(names(group, "consumers")) == {"down", "other"}


def test_spared_layers_keep_their_shape():
    model = roughen(Between(nn.Identity()))
    assert trace_wiring(model, vectors(), spared={"up"}).groups == ()
    assert trace_wiring(model, vectors(), spared={"down"}).groups == ()


def test_outputs_that_cannot_be_watched_give_an_empty_wiring(caplog):
    class Hidden(Between):
        def forward(self, x: Tensor) -> object:
            return type("Custom", (), {"hidden": self.down(self.up(x))})()

    wiring = trace_wiring(Hidden(nn.Identity()), vectors())
    assert wiring == Wiring(fault=wiring.fault) and "hold no tensors" in wiring.fault
    assert "hold no tensors" in caplog.text


def test_channels_that_nobody_can_cut_do_not_stop_those_that_can_be_cut():
    (join, head) = groups_of(ConcatMLP())
    assert feeds(join) == (["branch"], [], "neurons", 1, True) and feeds(head) == (["join"], [], "neurons", 1, True)


def test_unknown_targets_are_refused():
    with pytest.raises(DendriticError, match="missing"):
        trace_wiring(Between(nn.ReLU()), vectors(), targets=["missing"])


def test_the_wiring_does_not_depend_on_the_number_of_samples():
    for name in ("bert", "plain_cnn"):
        model, inputs = build(name)
        one = {key: value[:1] for key, value in inputs.items()}
        assert trace_wiring(model, one) == trace_wiring(model, inputs)


@given(st.lists(st.integers(-1, 6), max_size=40))
def test_runs_are_read_as_the_units_that_they_were_read_from(units):
    along = torch.tensor(units, dtype=torch.int64)
    found = runs_along(along)
    assert torch.equal(units_along(found, len(along)), along)


def test_channels_of_no_unit_stay():
    units = units_along(runs((1, 1, 0, 2)), 4)
    assert units.tolist() == [-1, 0, 1, -1]
    assert living(units, torch.tensor([False, True])).tolist() == [True, False, True, True]


def tracer_of(name: str) -> Tracer:
    model, inputs = build(name)
    tracer = Tracer(model, inputs)
    with quiet(model), torch.no_grad():
        tracer.positions()
    return tracer


@pytest.mark.parametrize("name", ["bert", "gpt2", "plain_cnn"])
def test_a_traced_pass_multiplies_by_no_weight(name, monkeypatch):
    tracer = tracer_of(name)
    with quiet(tracer.model), torch.no_grad():
        expected, failed = channel_reach(tracer, list(tracer.layers))
        assert expected and not failed

        def multiply(*args, **kwargs):
            raise AssertionError("a weight was multiplied")

        monkeypatch.setattr(nn.Linear, "forward", multiply)
        monkeypatch.setattr(nn.Conv2d, "forward", multiply)
        monkeypatch.setattr(Conv1D, "forward", multiply)
        found, _ = channel_reach(tracer, list(tracer.layers))
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
                channel_reach(tracer, chosen)
            counts.append(sum(samples))
    assert (
        counts[1] - counts[0] == len(second) and counts[:2] == counts[2:]
    )  # one more sample each, in the census alone


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8)], ids=repr)
def test_a_norm_hands_the_mark_on_by_channel_or_by_its_groups(norm):
    model = roughen(Between(norm))
    tracer = Tracer(model, vectors())
    with quiet(model), torch.no_grad():
        tracer.positions()
        reached, _ = channel_reach(tracer, ["up"])
    size = 4 if isinstance(norm, nn.GroupNorm) else 1
    expected = torch.eye(8 // size, dtype=torch.bool).repeat_interleave(size, 0).repeat_interleave(size, 1)
    assert torch.equal(reached["up"]["down"].dense(8), expected)
