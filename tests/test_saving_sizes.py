"""A checkpoint of several sizes becomes a folder for each: packed, with a card of its own, and loaded as any other."""

import json

import pytest
import torch
from helpers.compare import assert_same
from helpers.models import build, outputs
from helpers.trainers import make_dataset, make_trainer, tensors
from hub import actions
from hub.server import ALICE
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from optimum.dendritic import DendriticCallback, DendriticConfig, DendriticError, inject_, load_at, save_sizes, update_
from optimum.dendritic.huggingface.card.schema import first_fault
from optimum.dendritic.huggingface.checkpoint.sizes import save_all
from optimum.dendritic.state import layout_of

SPARSITIES = (0.2, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The output folder of a training, but of a model that is not trained."""
    place = tmp_path_factory.mktemp("runs")
    model, inputs = build("bert")
    inject_(model.eval(), DendriticConfig(sparsity=SPARSITIES, importance="random"), example_inputs=inputs)
    update_(model, 0.5)
    save_all(model, place)
    return place


def test_each_size_is_a_folder_with_its_own_card_and_numbers(folder, tmp_path):
    seen = []

    def evaluate(model):
        seen.append(sum(parameter.numel() for parameter in model.parameters()))
        return {"accuracy": 1 / len(seen)}

    made = save_sizes(folder / "sizes", tmp_path, evaluate=evaluate, measuring=False, license="mit")
    assert made == {0.2: tmp_path / "sparsity-0.2", 0.5: tmp_path / "sparsity-0.5"} and seen[0] > seen[1]
    for sparsity, score, place in zip(SPARSITIES, (1.0, 0.5), made.values(), strict=True):
        model = AutoModelForSequenceClassification.from_pretrained(place)
        assert layout_of(model).packed
        assert_same(tensors(model), tensors(load_at(folder, sparsity)))
        record = json.loads((place / "efficiency.json").read_text())
        assert first_fault(record) is None
        assert record["compression"]["config"]["sparsity"] == sparsity and record["compression"]["packed"]
        assert record["compression"]["removed"] >= sparsity - 0.01
        assert [entry["metrics"] for entry in record["evaluations"]] == [{"accuracy": score}]
        card = (place / "README.md").read_text()
        assert "license: mit" in card and f"DendriticConfig(sparsity={sparsity}" in card and "from_pretrained(" in card


def test_each_card_has_measured_costs(folder, tmp_path):
    """Only those that are named, and from the folder of the training as well."""
    options = {"seconds": 0.01, "memory": False, "large_batch": 2}
    made = save_sizes(folder, tmp_path, sparsities=[0.4], measuring=options)
    (place,) = made.values()
    assert [each.name for each in tmp_path.iterdir()] == ["sparsity-0.4"] == [place.name]
    report = json.loads((place / "efficiency.json").read_text())["efficiency"]
    assert 0 < report["ratios"]["parameters"] < 1 and report["dense"]


@pytest.mark.parametrize(
    ("sparsities", "said"),
    [([0.5, 0.1], "below that of the largest"), ([1.5], "must be a number"), ([0.9999], "at most .* can go")],
)
def test_what_cannot_be_cut_leaves_nothing(folder, tmp_path, sparsities, said):
    with pytest.raises(DendriticError, match=said):
        save_sizes(folder, tmp_path / "new", sparsities=sparsities)
    assert not (tmp_path / "new").exists()


def test_where_there_is_nothing_to_cut(tmp_path):
    with pytest.raises(OSError):
        load_at(tmp_path / "absent", 0.5)
    with pytest.raises(OSError):
        save_sizes(tmp_path / "absent", tmp_path / "new")


@pytest.mark.slow
def test_what_is_known_of_the_training_is_on_the_cards(tmp_path):
    config = DendriticConfig(sparsity=(0.3, 0.6), updates=5, units="structured", floor=0.0)
    steps = {"eval_strategy": "steps", "eval_steps": 10}
    trainer = make_trainer(tmp_path, [DendriticCallback(config, baseline_metrics={"loss": 1.5})], **steps)
    trainer.train()
    card = (tmp_path / "sizes" / "README.md").read_text()
    assert "load_at(" in card and "30.0 % or 60.0 %" in card and "middle of a compression" not in card
    images = [{"pixel_values": torch.stack([sample["pixel_values"] for sample in make_dataset()])}]
    made = save_sizes(tmp_path, tmp_path / "made", batches=images, measuring=False)
    cards = {sparsity: (place / "README.md").read_text() for sparsity, place in made.items()}
    assert all("steps 20" in card and "sparsities in turn 0.3, 0.6" in card for card in cards.values())
    assert "How well it answers" in cards[0.3] and "How well it answers" not in cards[0.6]  # no size but it was scored
    again = save_sizes(tmp_path, tmp_path / "again", sparsities=[0.6], batches=images, measuring=False,
                       evaluate=lambda model: make_trainer(tmp_path, [], model).evaluate())  # fmt: skip
    card = (again[0.6] / "README.md").read_text()
    assert "How well it answers" in card and "trained as long without pruning" in card
    model = AutoModelForImageClassification.from_pretrained(made[0.6])
    assert outputs(model, images[0]).shape == (32, 4)


@pytest.mark.slow
def test_a_size_is_cut_out_of_what_a_trainer_pushed(hub, client, folder):
    repo = "alice/family"
    client(actions.push, repo, token=ALICE)
    client(actions.push_folder, repo, str(folder / "sizes"), "sizes", token=ALICE)
    expected = outputs(load_at(folder, 0.5), build("bert")[1]).tolist()
    assert client(actions.load_at, repo, 0.5) == expected
