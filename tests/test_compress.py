"""Packing: the packed model computes what the masked one does, and is exactly as small as was reported."""

import copy
import logging

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.compare import every
from helpers.models import FACTORIES, Inputs, PlainCNN, build, outputs, pixels, roughen, vectors
from helpers.packing import pack_and_check, target_cost
from helpers.snapshots import same, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from optimum.dendritic import DendriticConfig, DendriticError, compress_, inject_, mask_, update_
from optimum.dendritic import compress as compress_module
from optimum.dendritic.layout.records import Form
from optimum.dendritic.nn import PackedConv2d, PackedLayer
from optimum.dendritic.state import dendritic_layers, layout_of
from optimum.dendritic.structure import verification


def injected(name: str, seed: int = 0, **fields) -> tuple[nn.Module, Inputs]:
    model, inputs = build(name, seed)
    fields = {"sparsity": 0.0, "floor": 0.0, "segment_size": 4} | fields
    return inject_(model, DendriticConfig(**fields), example_inputs=inputs), inputs


def draw_masks(model: nn.Module, seed: int) -> None:
    """Balanced random masks; one layer in five loses everything, one in five nothing."""
    generator = torch.Generator().manual_seed(seed)
    for layer in dendritic_layers(model).values():
        arbors, segments = layer.dendrite_mask.shape
        fate = torch.rand((), generator=generator).item()
        gone = (
            segments if fate < 0.2 else 0 if fate > 0.8 else int(torch.randint(segments + 1, (), generator=generator))
        )
        order = torch.rand(arbors, segments, generator=generator).argsort(1)
        layer.dendrite_mask.fill_(True).scatter_(1, order[:, :gone], False)
    mask_(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_masked_equals_packed_for_any_masks(name):
    @settings(max_examples=3 if name == "mobilenet" else 10)
    @given(
        st.sampled_from([1, 2, 4]), st.sampled_from(["params", "macs"]), st.sampled_from([1, 4, 64]), st.integers(0, 99)
    )
    def check(arbors, budget, segment_size, seed):
        model, inputs = injected(name, seed, arbors=arbors, budget=budget, segment_size=segment_size)
        draw_masks(model, seed)
        pack_and_check(model, inputs)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORIES)
def test_the_packed_model_has_the_sparsity_that_the_update_reported(name):
    @settings(max_examples=2 if name == "mobilenet" else 6)
    @given(st.floats(0, 0.95), st.sampled_from([1, 2, 4]), st.sampled_from(["params", "macs"]), st.integers(0, 9))
    def check(sparsity, arbors, budget, seed):
        model, inputs = injected(name, seed, arbors=arbors, budget=budget, importance="random")
        names, layout = list(dendritic_layers(model)), layout_of(model)
        report = update_(model, sparsity)
        pack_and_check(model, inputs)
        cost = target_cost(model, names, layout.positions if budget == "macs" else None)
        assert report.sparsity == 1 - cost / layout.dense_cost

    check()


def train_briefly(model: nn.Module, inputs: Inputs) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.train().parameters(), lr=1e-3, momentum=0.9), []
    for _ in range(8):
        optimizer.zero_grad()
        torch.manual_seed(0)
        found = model(**inputs)
        loss = (found if isinstance(found, Tensor) else found["logits"]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("arbors", [1, 2])
@pytest.mark.parametrize("name", [name for name in FACTORIES if name != "mobilenet"])
def test_a_packed_model_trains_on(name, arbors):
    model, inputs = injected(name, arbors=arbors, importance="random")
    update_(model, 0.6)
    compress_(model, inputs)
    losses = train_briefly(model, inputs)
    assert losses[-1] < losses[0]
    assert every(
        p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.numel() and p.requires_grad
    )


def test_a_plain_cnn_ends_as_a_chain_of_stock_layers():
    model, inputs = build("plain_cnn")
    inject_(model, DendriticConfig(sparsity=0.6, importance="random"), example_inputs=inputs)
    update_(model, 0.6)
    pack_and_check(model, inputs)
    kinds = [type(module) for module in model.children()]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Linear]
    assert model.conv1.out_channels == model.bn1.num_features == model.conv2.in_channels < 12
    assert model.conv2.out_channels == model.bn2.num_features < 16
    assert model.fc1.in_features == 4 * model.conv2.out_channels
    assert model.fc1.weight.shape == (model.fc1.out_features, model.fc1.in_features)
    assert not any("inputs" in key or "outputs" in key for key in model.state_dict())


@pytest.mark.parametrize("segment_size", [1, 4, 8])
def test_whole_segments_are_picked_together(segment_size):
    model, inputs = injected("bert", segment_size=segment_size, units=["inputs"], importance="random")
    update_(model, 0.5)
    pack_and_check(model, inputs)
    layers = [module for module in model.modules() if isinstance(module, PackedLayer) and module.inputs is not None]
    assert len(layers) > 3 and every(layer.form.span >= segment_size for layer in layers)
    for layer in layers:
        read = layer.reads()
        assert read is not None and read.shape == (1, layer.form.kept) and bool((read.diff() > 0).all())


def test_images_in_channels_last_stay_so():
    model, inputs = injected("plain_cnn", units=["inputs"], importance="random", segment_size=1)
    update_(model, 0.5)
    packed = compress_(model, inputs)
    assert isinstance(packed.conv2, PackedConv2d) and packed.conv2.inputs is not None
    with torch.inference_mode():
        expected = packed(**inputs)
        packed.to(memory_format=torch.channels_last)
        images = inputs["x"].to(memory_format=torch.channels_last)
        found = packed.conv2.gather(packed.conv1(images))
        assert found.is_contiguous(memory_format=torch.channels_last) and not found.is_contiguous()
        torch.testing.assert_close(packed(images), expected)


@pytest.mark.parametrize("units", ["structured", ["inputs"]])
def test_kernels_in_channels_last_stay_so(units):
    model, inputs = injected("resnet_bottleneck", units=units, importance="random", segment_size=1)
    model.to(memory_format=torch.channels_last)
    update_(model, 0.5)
    compress_(model, inputs)
    kernels = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    wide = [kernel for kernel in kernels if min(kernel.shape[1:]) > 1]
    assert len(wide) > 2 and every(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in wide)


def test_the_rows_of_a_head_and_its_key_and_value_go_together():
    model, inputs = injected("llama", importance="random")
    layer = dendritic_layers(model)["model.layers.0.self_attn.o_proj"]
    layer.dendrite_mask[0, 0] = False
    mask_(model)
    pack_and_check(model, inputs)
    attention = model.model.layers[0].self_attn
    rows = {part: attention.get_submodule(f"{part}_proj").weight.shape for part in "qkvo"}
    assert rows == {"q": (8, 16), "k": (4, 16), "v": (4, 16), "o": (16, 8)}


def test_what_was_frozen_stays_frozen_and_modes_are_kept():
    model, inputs = build("plain_cnn")
    model.conv2.bias.requires_grad_(False)
    model.bn1.weight.requires_grad_(False)
    inject_(model, DendriticConfig(sparsity=0.5, importance="random"), example_inputs=inputs)
    update_(model, 0.5)
    model.train()
    model.bn2.eval()
    compress_(model, inputs)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["bn1.weight", "conv2.bias"]
    assert model.training and model.conv1.training and model.bn1.training and not model.bn2.training


def test_an_unpruned_model_packs_to_itself():
    for name in ("bert", "plain_cnn", "gpt2"):
        model, inputs = injected(name, arbors=2)
        stock, _ = build(name)
        compress_(model, inputs)
        assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in stock.named_modules()]
        assert torch.equal(outputs(model, inputs), outputs(stock, inputs))


def test_the_layout_of_a_packed_model_describes_its_tensors():
    model, inputs = injected("bert", arbors=2, importance="random")
    update_(model, 0.6)
    compress_(model, inputs)
    layout = layout_of(model)
    assert layout.packed and model.config.quantization_config == layout.to_dict()
    for name, form in layout.modules.items():
        module = model.get_submodule(name)
        assert isinstance(form, Form) and tuple(module.weight.shape) == (sum(form.arbors), form.kept)
        assert isinstance(module, PackedLayer) is not form.plain


def test_outputs_are_kept_for_other_inputs_than_those_that_were_verified():
    model, inputs = injected("bert", arbors=2, importance="random")
    update_(model, 0.5)
    other = {key: value.repeat(2, 2) for key, value in inputs.items()}
    other["attention_mask"][:, 9:] = 0
    expected = outputs(model, other)
    compress_(model, inputs)
    assert torch.allclose(outputs(model, other), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "plain_cnn", "gpt2", "resnet_basic"])
def test_half_precision_is_packed(name):
    model, inputs = build(name)
    model = model.to(torch.bfloat16)
    inputs = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    inject_(model, DendriticConfig(sparsity=0.5, arbors=2, importance="random", segment_size=4), example_inputs=inputs)
    update_(model, 0.5)
    expected = outputs(model, inputs)
    found = outputs(compress_(model, inputs), inputs)
    assert found.dtype == torch.bfloat16 and (found - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", ["bert", "gpt2", "plain_cnn"])
def test_autocast_gives_every_packed_layer_the_dtype_of_its_stock_layer(name):
    model, inputs = injected(name, arbors=2, importance="random")
    update_(model, 0.5)
    packed = compress_(copy.deepcopy(model), inputs)

    def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
        seen = {}
        for layer in layout_of(packed).modules:
            hook = lambda m, a, output, layer=layer: seen.update({layer: output.dtype})  # noqa: E731
            model.get_submodule(layer).register_forward_hook(hook)
        with torch.autocast("cpu", torch.bfloat16):
            outputs(model, inputs)
        return seen

    assert dtypes(packed) == dtypes(model)


class Fussy(nn.Module):
    """Refuses a tensor that has shrunk a lot: the trial cut of one channel passes, the real one does not."""

    def __init__(self, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.up, self.down, self.error = nn.Linear(6, 24), nn.Linear(24, 5), error

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(x))
        if hidden.shape[-1] < 20:
            raise self.error("so narrow")
        return self.down(hidden)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, AssertionError, IndexError])
def test_a_wire_that_cannot_be_cut_after_all_keeps_a_gather(error, caplog):
    model, inputs = roughen(Fussy(error)), vectors()
    inject_(model, DendriticConfig(sparsity=0.5, target_modules=".*", importance="random"), example_inputs=inputs)
    assert layout_of(model).groups[0].cut
    update_(model, 0.5)
    pack_and_check(model, inputs)
    assert "down keeps a gather" in caplog.text and layout_of(model).modules["down"].gather
    assert layout_of(model).modules["up"].scatter and caplog.records[-1].levelno == logging.WARNING


def test_channels_beside_those_that_are_cut_still_arrive(caplog):
    model, inputs = injected("concat_mlp", importance="random", target_modules=".*")
    join = dendritic_layers(model)["join"]
    join.dendrite_mask[0, [0, 3]] = False  # two of the branch; what comes from the model's input stays
    mask_(model)
    pack_and_check(model, inputs)
    assert model.branch.out_features == 6 and model.join.in_features == 12 and not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "plain_cnn"])
@pytest.mark.parametrize("failure", ["inputs", "difference", "crash"])
def test_a_failure_leaves_everything_as_it_was(name, failure, monkeypatch):
    model, inputs = injected(name, arbors=2, importance="random")
    update_(model.train(), 0.5)
    if failure == "inputs":
        inputs = {"unknown": torch.ones(1)}
    elif failure == "difference":
        monkeypatch.setattr(verification, "outputs_differ", lambda expected, actual: 1.0)
    else:
        monkeypatch.setattr(compress_module, "pack_modules", lambda *args: 1 / 0)
    before, random = snapshot(model), torch.get_rng_state()
    error = {"inputs": (TypeError, ValueError), "difference": DendriticError, "crash": ZeroDivisionError}[failure]
    with pytest.raises(error):
        compress_(model, inputs)
    assert same(before, snapshot(model)) and torch.equal(torch.get_rng_state(), random)


def test_a_stock_and_a_packed_model_are_refused():
    model, inputs = build("plain_cnn")
    with pytest.raises(DendriticError, match="has no dendritic segments"):
        compress_(model, inputs)
    model, inputs = injected("plain_cnn")
    compress_(model, inputs)
    with pytest.raises(DendriticError, match="packed already"):
        compress_(model, inputs)
    with pytest.raises(DendriticError, match="example_inputs|only a PreTrainedModel"):
        compress_(inject_(PlainCNN(), DendriticConfig(), example_inputs=pixels()))


def test_a_layer_without_any_output_left_packs_with_several_arbors():
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(6, 8), nn.Linear(8, 8), nn.LayerNorm(8, elementwise_affine=False)
            self.c = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)).view(-1, 2, 4).flatten(1))))

    model, inputs = roughen(Deep()), vectors()
    config = DendriticConfig(sparsity=0.0, floor=0.0, arbors=2, segment_size=2, target_modules=".*")
    inject_(model, config, example_inputs=inputs)
    for layer in ("b", "c"):
        dendritic_layers(model)[layer].dendrite_mask.fill_(False)
    mask_(model)
    pack_and_check(model, inputs)
    train_briefly(model, inputs)


def test_infinite_outputs_that_agree_are_no_difference():
    class Masked(PlainCNN):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), torch.full((len(x), 1), -torch.inf)], 1)

    model, inputs = roughen(Masked()), pixels()
    inject_(model, DendriticConfig(sparsity=0.5, importance="random"), example_inputs=inputs)
    update_(model, 0.5)
    expected = outputs(model, inputs)
    assert torch.allclose(outputs(compress_(model, inputs), inputs), expected, atol=1e-4)


def test_an_encoder_with_a_fused_fast_path_runs_after_packing():
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
            self.embed, self.layer, self.head = nn.Linear(6, 8), layer, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(x)[:, None]))

    model, inputs = roughen(Encoder()), vectors()
    inject_(model, DendriticConfig(sparsity=0.4, importance="random", segment_size=2), example_inputs=inputs)
    update_(model, 0.4)
    expected = outputs(model, inputs)
    compress_(model, inputs)
    assert torch.allclose(outputs(model, inputs), expected, atol=1e-4)


def test_a_model_that_does_not_run_on_the_inputs_is_packed_layer_by_layer(caplog):
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x, secret=None):
            if secret is None:
                raise ValueError("needs the secret")
            return self.down(torch.relu(self.up(x)))

    model, inputs = Picky(), {"x": torch.randn(3, 8)}
    config = DendriticConfig(sparsity=0.5, segment_size=2, target_modules=["up", "down"])
    inject_(model, config, example_inputs=inputs, layer_by_layer=True)
    update_(model, 0.5)
    expected = model(**inputs, secret=1)
    compress_(model, inputs)
    assert layout_of(model).packed
    assert torch.allclose(model(**inputs, secret=1), expected, atol=1e-6)


def test_packing_is_verified_in_full_precision_inside_a_mixed_precision_training():
    """In bf16 a smaller product rounds otherwise than the masked one, which is not a reason to leave a wire uncut."""
    model, inputs = injected("resnet_basic")
    draw_masks(model, 1)
    stock = model.forward
    AcceleratorState._reset_state()  # whichever test came before may have chosen another precision for the process
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
    AcceleratorState._reset_state()
    assert prepared is model and model.forward != stock
    wrapped = model.forward
    seen = []
    model.get_submodule("classifier.1").register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        compress_(model, inputs)
    assert set(seen) == {torch.float32}
    assert model.forward == wrapped
    model(**inputs)
    assert seen[-1] == torch.bfloat16
