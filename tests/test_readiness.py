"""Models that cannot be pruned, or whose forward pass is not a function of its inputs, are refused by what they are."""

import pytest
import torch
from helpers.models import build
from helpers.snapshots import same, snapshot
from helpers.trainers import make_trainer
from torch import Tensor, nn

from optimum.dendritic import (
    DendriticConfig,
    DendriticError,
    compress_,
    inject_,
    mask_,
    prune_,
    score_,
    update_,
)
from optimum.dendritic.state import layout_of

CONFIG = DendriticConfig(sparsity=0.5, segment_size=4)


def injected() -> tuple[nn.Module, dict[str, Tensor]]:
    model, inputs = build("bert")
    inject_(model, CONFIG, example_inputs=inputs)
    model(**inputs).logits.sum().backward()
    score_(model)
    update_(model, 0.5)
    return model, inputs


class TestWithoutValues:
    @pytest.mark.parametrize("part", ["", "bert.pooler", "bert.encoder.layer.1.output"])
    def test_a_model_on_the_meta_device_or_partly_so(self, part):
        model, inputs = build("bert")
        model.get_submodule(part).to("meta")
        with pytest.raises(DendriticError, match=rf"{part}.* is on the meta device and has no values. Load all"):
            inject_(model, CONFIG, example_inputs=inputs)
        assert layout_of(model) is None

    def test_packing_a_model_that_was_offloaded_since(self):
        model, inputs = injected()
        model.classifier.to("meta")
        with pytest.raises(DendriticError, match="classifier.weight is on the meta device"):
            compress_(model, inputs)
        assert not layout_of(model).packed


class TestInferenceMode:
    def test_injecting_packing_and_pruning_under_it(self):
        model, inputs = injected()
        before = snapshot(model)
        stock = build("bert")[0]
        labels = inputs | {"labels": torch.tensor([0, 1])}
        verbs = [lambda: inject_(stock, CONFIG), lambda: compress_(model, inputs), lambda: prune_(model, [labels])]
        for verb in verbs:
            with torch.inference_mode(), pytest.raises(DendriticError, match=r"torch.inference_mode = True.*no_grad"):
                verb()
        assert same(before, snapshot(model))

    def test_steps_of_a_training_under_it_leave_a_model_that_trains(self):
        model, inputs = injected()
        with torch.inference_mode():
            score_(model)
            update_(model, 0.5)
            mask_(model)
        model(**inputs).logits.sum().backward()
        score_(model)
        compress_(model, inputs)(**inputs).logits.sum().backward()

    def test_a_model_that_was_made_under_it(self):
        with torch.inference_mode():
            model, inputs = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)), torch.randn(2, 4)
        with pytest.raises(DendriticError, match="0.weight was made under torch.inference_mode"):
            inject_(model, CONFIG, example_inputs={"input": inputs})


class Widths(nn.Module):
    """A branch without channels beside one with some."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        self.narrow, self.none = nn.Linear(6, 0), nn.Linear(0, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(torch.relu(self.up(x))) + self.none(self.narrow(x)))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_channels_are_left_alone():
    model, inputs = Widths(), {"x": torch.randn(4, 6)}
    inject_(model, CONFIG, example_inputs=inputs)
    assert not {"narrow", "none"} & layout_of(model).modules.keys()
    model(**inputs).sum().backward()
    score_(model)
    update_(model, 0.5)
    masked = model(**inputs)
    assert torch.allclose(compress_(model, inputs)(**inputs), masked, atol=1e-6)


class Wandering(nn.Module):
    """Answers otherwise each time, in evaluation mode too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.up, self.down, self.head, self.kind = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3), kind
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(torch.tanh(self.up(x)))
        if self.kind == "dropout":
            x = nn.functional.dropout(x, 0.5, True)
        elif self.kind == "noise":
            x = x + torch.randn_like(x)
        elif self.kind == "counts":
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return self.head(x + self.calls)


@pytest.mark.parametrize("kind", ["dropout", "noise", "counts", "counts anew"])
def test_a_forward_pass_that_is_random_or_counts_is_named_as_such(kind):
    model, inputs = Wandering(kind).eval(), {"x": torch.randn(4, 6)}
    state = torch.get_rng_state()
    inject_(model, CONFIG, example_inputs=inputs)
    assert model.calls == 0 and torch.equal(torch.get_rng_state(), state)
    model(**inputs).sum().backward()
    score_(model)
    update_(model, 0.5)
    before = snapshot(model)
    with pytest.raises(
        DendriticError, match="answers otherwise each time in evaluation mode: it draws random"
    ) as error:
        compress_(model, inputs)
    assert "please report" not in str(error.value) and same(before, snapshot(model))


def test_no_epochs(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=0, max_steps=-1)
    before = snapshot(trainer.model)
    with pytest.raises(DendriticError, match=r"max_steps = 0: leaves nothing to train. Set num_train_epochs"):
        trainer.train()
    assert same(before, snapshot(trainer.model))
