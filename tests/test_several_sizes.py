"""One training, several sizes: nested masks, exact budgets, and a checkpoint that any of them is cut out of."""

from itertools import pairwise

import pytest
import torch
from helpers.compare import assert_same, every
from helpers.models import build, outputs
from helpers.packing import target_cost
from helpers.selection import masks_at
from helpers.trainers import STEPS, StopAt, make_dataset, make_trainer, tensors
from transformers import Trainer

from optimum.dendritic import (
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    Pruner,
    inject_,
    load_at,
    target_sparsity,
    update_,
)
from optimum.dendritic.huggingface.checkpoint.sizes import save_all
from optimum.dendritic.layout.records import Form
from optimum.dendritic.sizes import narrowed, size_due
from optimum.dendritic.state import gates_of, layout_of
from optimum.dendritic.train_steps import Update

SPARSITIES = (0.3, 0.5, 0.7)
CONFIG = DendriticConfig(sparsity=SPARSITIES, updates=5, units="structured", floor=0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = make_trainer(tmp_path_factory.mktemp("sizes"), [DendriticCallback(CONFIG)])
    trainer.train()
    return trainer


def test_several_sparsities_are_a_size_and_smaller_ones():
    assert (CONFIG.sparsity, CONFIG.sizes) == (0.3, (0.5, 0.7))
    assert DendriticConfig(sparsity=0.3, sizes=[0.5, 0.7]) == DendriticConfig(sparsity=(0.7, 0.3, 0.5))
    assert DendriticConfig.from_dict(CONFIG.to_dict()) == CONFIG


def test_every_second_step_is_one_of_the_smaller_ones_in_its_turn():
    plan = {4: Update(0.3, 0.1), 8: Update(0.6, 0.1), 12: Update(0.7, 0.0)}
    due = [size_due(CONFIG, plan, step) for step in range(1, 19)]
    assert due[:9] == [None] * 9  # the climb has not passed the largest; then a step that updates
    assert due[9:] == [0.6, None, None, None, 0.7, None, 0.5, None, 0.7]


def test_the_smallest_is_what_the_plan_climbs_to():
    model, inputs = build("bert")
    inject_(model, CONFIG, example_inputs=inputs)
    assert target_sparsity(model) == 0.7
    assert update_(model, 0.7).sparsity == pytest.approx(0.3, abs=0.02)  # the masks are those of the largest


@pytest.mark.slow
def test_each_size_is_cut_to_its_budget_inside_of_the_larger_ones(trained, tmp_path):
    assert layout_of(trained.model).packed
    sizes = [load_at(f"{trained.args.output_dir}/sizes", sparsity) for sparsity in (*SPARSITIES, 0.6)]
    counts = [sum(p.numel() for p in sizes[index].parameters()) for index in (0, 1, 3, 2)]
    assert every(after < before for before, after in pairwise(counts))
    expected, found = tensors(trained.model), tensors(sizes[0])
    assert every(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for model, sparsity in zip(sizes, (*SPARSITIES, 0.6), strict=True):
        layout = layout_of(model)
        assert layout.config == DendriticConfig(**CONFIG.to_dict() | {"sparsity": sparsity, "sizes": ()})
        forms = [name for name, record in layout.modules.items() if isinstance(record, Form)]
        assert 0 < target_cost(model, forms, None) <= (1 - sparsity) * layout.dense_cost
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert every(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_batch_statistics_are_those_of_the_size_that_is_cut(trained):
    images = torch.stack([sample["pixel_values"] for sample in make_dataset()])
    folder = f"{trained.args.output_dir}/sizes"
    settled = load_at(folder, 0.7, batches=[{"pixel_values": images}])
    norm = next(module for module in settled.modules() if isinstance(module, torch.nn.BatchNorm2d))
    seen = []
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    settled(pixel_values=images)
    assert torch.allclose(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [9, 15])
def test_a_run_that_is_resumed_ends_as_the_undisturbed_one(trained, stop, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": stop}
    make_trainer(tmp_path, [DendriticCallback(CONFIG), StopAt(stop)], **saving).train()
    again = make_trainer(tmp_path, [DendriticCallback(CONFIG)], **saving)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert again.state.global_step == STEPS
    for sparsity in SPARSITIES:
        whole, found = (tensors(load_at(f"{at}/sizes", sparsity)) for at in (trained.args.output_dir, tmp_path))
        assert_same(whole, found)


def test_a_size_answers_as_what_was_trained_in_its_steps(tmp_path):
    model, inputs = build("bert")
    inject_(model.eval(), DendriticConfig(sparsity=(0.2, 0.5), importance="random"), example_inputs=inputs)
    update_(model, 0.5)
    save_all(model, tmp_path)
    with narrowed(model, gates_of(model), masks_at(model, 0.5)):
        expected = outputs(model, inputs)
    assert torch.allclose(outputs(load_at(tmp_path / "sizes", 0.5), inputs), expected, atol=1e-5)
    assert not torch.allclose(outputs(load_at(tmp_path / "sizes", 0.2), inputs), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sparsity": (0.5, 1.2)}, "must be a number in"),
        ({"sparsity": ()}, "must have a fraction"),
        ({"sparsity": (0.5, 0.5)}, "must ascend from sparsity = 0.5"),
        ({"sparsity": 0.5, "sizes": [0.4]}, "must ascend from sparsity = 0.5"),
        ({"sparsity": (0.5, 0.6), "sizes": [0.7]}, "is one fraction where sizes are given"),
        ({"speedup": 2.0, "sizes": [0.7]}, "must ascend from sparsity = None"),
        ({"sparsity": (0.5, 0.6), "native": True}, "its model has one form"),
        ({"sparsity": (0.5, 0.6), "dormant": 0.2}, "its model has one form"),
        ({"sparsity": (0.5, 0.6), "sprout_rank": 1}, "its model has one form"),
    ],
)
def test_what_is_not_several_sizes_is_refused(fields, said):
    with pytest.raises(DendriticError, match=said):
        DendriticConfig(**fields)


def test_what_cannot_train_or_be_cut_says_so(tmp_path):
    model, inputs = build("bert")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(DendriticError, match="trains a smaller model in every second step"):
        Pruner(model, CONFIG, steps=20, optimizer=optimizer, example_inputs=inputs)
    with pytest.raises(DendriticError, match="sparsity = 0.99: at most .* can go with floor"):
        inject_(model, DendriticConfig(sparsity=(0.2, 0.99), floor=0.3), example_inputs=inputs)
    inject_(model, DendriticConfig(sparsity=(0.2, 0.5)), example_inputs=inputs)
    save_all(model, tmp_path)
    with pytest.raises(DendriticError, match="is below that of the largest size, 0.2"):
        load_at(tmp_path / "sizes", 0.1)
    build("bert")[0].save_pretrained(tmp_path / "dense")
    with pytest.raises(DendriticError, match="is not a checkpoint of several sizes"):
        load_at(tmp_path / "dense", 0.5)
