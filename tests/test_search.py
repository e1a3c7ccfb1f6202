"""The division of the budget: uniform, given, searched; always on the budget, repeatable, resumable."""

import json
import random

import pytest
import torch
from helpers.models import build
from helpers.trainers import make_trainer, tensors

from optimum.dendritic import (
    Allocation,
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    compress_,
    inject_,
    prune_,
    search_allocation,
    update_,
)
from optimum.dendritic.one_shot.calibration import score_on_
from optimum.dendritic.search.evolution import switched
from optimum.dendritic.search.objective import Objective
from optimum.dendritic.sizes import narrowed
from optimum.dendritic.state import gates_of, injected_layout, layers_in
from optimum.dendritic.train_steps import pruning_of

LABELS = {"bert": 3, "resnet_basic": 3}


def labelled(name, sparsity=0.5, **changes):
    model, inputs = build(name)
    config = DendriticConfig(sparsity=sparsity, segment_size=4, floor=0.0, **changes)
    inject_(model, config, example_inputs=inputs)
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(3):
        batch = dict(inputs)
        batch["labels"] = torch.randint(0, LABELS[name], (2,), generator=generator)
        batches.append(batch)
    return model, batches


def objective_of(name, **changes):
    model, batches = labelled(name, **changes)
    layout = injected_layout(model)
    score_on_(model, layers_in(model, layout), gates_of(model), "dendritic", batches)
    return Objective(model, batches, sparsity=layout.sparsity), model


@pytest.mark.parametrize("name", LABELS)
def test_a_uniform_division_is_one_and_meets_the_budget(name):
    model, batches = labelled(name, allocation="uniform")
    prune_(model, batches, rounds=2, passes=2)
    found = pruning_of(model)
    sizes = {name: gate.dendrite_mask.shape[1] for name, gate in gates_of(model).items()}
    for name, density in found.density.items():  # segments are whole: by at most one
        assert abs(density - sum(found.density.values()) / len(sizes)) <= 1 / sizes[name] + 0.12
    assert found.sparsity >= 0.5


def test_a_given_division_is_kept_to_and_met_exactly():
    model, batches = labelled("resnet_basic")
    names = list(gates_of(model))
    kept = {name: 0.25 if i % 2 else 0.75 for i, name in enumerate(names)}
    prune_(model, batches, rounds=1, reconstruct=False, allocation=kept)
    found = pruning_of(model)
    assert found.sparsity >= 0.5
    assert all((found.density[a] > found.density[b]) for a, b in zip(names[::2], names[1::2], strict=False))
    with pytest.raises(DendriticError, match="must name exactly"):
        update_(model, 0.5, allocation={"nobody": 0.5})


@pytest.mark.parametrize("name", LABELS)
def test_every_division_that_is_tried_is_on_the_budget(name):
    objective, model = objective_of(name)
    generator = random.Random(0)
    before = tensors(model)
    fractions = objective.fractions(objective.masks(None))
    assert objective.loss(fractions) == objective.loss(None)
    for _ in range(5):
        fractions = switched(fractions, objective, generator)
        masks = objective.masks(fractions)
        with narrowed(model, gates_of(model), masks):
            own = pruning_of(model)
        assert own.sparsity >= 0.5 and all(0 <= each <= 1 for each in fractions)
        objective.loss(fractions)
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors(model).items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet_basic"])
def test_evolution_is_never_worse_than_the_ranking_and_repeatable(name, tmp_path):
    model, batches = labelled(name)
    before = tensors(model)
    found = search_allocation(model, batches, evaluations=6, seed=1)
    assert found.loss <= found.controls["global"] and 6 <= found.evaluations < 12
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors(model).items())
    assert search_allocation(model, batches, evaluations=6, seed=1) == found
    found.save(tmp_path / "found.json")
    assert Allocation.load(tmp_path / "found.json").kept == found.kept
    prune_(model, batches, rounds=1, reconstruct=False, allocation=tmp_path / "found.json")
    assert pruning_of(model).sparsity >= 0.5
    compress_(model, batches[0])


@pytest.mark.slow
def test_a_search_that_is_started_again_catches_up(tmp_path, monkeypatch):
    model, batches = labelled("resnet_basic")
    cache = tmp_path / "losses.jsonl"
    whole = search_allocation(model, batches, evaluations=5, cache=cache)
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join(lines[: len(lines) // 2]) + '\n["torn')
    runs = []
    stock = Objective._run
    monkeypatch.setattr(Objective, "_run", lambda self, index: runs.append(index) or stock(self, index))
    assert search_allocation(model, batches, evaluations=5, cache=cache) == whole
    half = len(runs)
    runs.clear()
    assert search_allocation(model, batches, evaluations=5, cache=cache) == whole
    assert len(runs) == len(batches) < half  # of the dense model
    other, batches = labelled("resnet_basic", seed=5)
    with pytest.raises(DendriticError, match="is of another model"):
        search_allocation(other, batches, evaluations=5, cache=cache)
    for otherwise in ({"damping": 0.1}, {"reconstruct": False}):
        model, batches = labelled("resnet_basic")
        with pytest.raises(DendriticError, match="is of another model"):
            search_allocation(model, batches, evaluations=5, cache=cache, **otherwise)


def test_a_function_may_search_and_prune_searches_by_itself():
    model, batches = labelled("resnet_basic")
    found = search_allocation(model, batches, method=lambda objective: dict.fromkeys(objective.names, 0.5))
    assert found.method == "function" and found.loss == found.controls["uniform"]
    prune_(model, batches, rounds=1, passes=1, allocation=lambda objective: dict.fromkeys(objective.names, 0.5))
    assert pruning_of(model).sparsity >= 0.5


@pytest.mark.parametrize("changes", [{}, {"arbors": 2}], ids=["", "arbors"])
@pytest.mark.parametrize("name", LABELS)
def test_a_division_is_judged_as_it_will_be_reconstructed(name, changes):
    model, batches = labelled(name, **changes)
    before = tensors(model)
    found = search_allocation(model, batches, method="uniform")
    bare = search_allocation(model, batches, method="uniform", reconstruct=False)
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors(model).items())
    prune_(model, batches, rounds=1, passes=1, allocation=found)  # one pass: each layer for itself
    with torch.no_grad():
        loss = sum(float(model(**batch).loss) for batch in batches) / len(batches)
    assert abs(found.loss - loss) < 1e-3 < 0.1 * abs(bare.loss - loss)


WRONG = [{"method": "alchemy"}, {"evaluations": 0}, {"damping": -1}, {"method": lambda objective: {"nobody": 1.0}}]


@pytest.mark.parametrize("wrong", WRONG, ids=["method", "evaluations", "damping", "function"])
def test_what_is_wrong_is_refused_and_changes_nothing(wrong):
    model, batches = labelled("resnet_basic")
    before = tensors(model)
    with pytest.raises(DendriticError):
        search_allocation(model, batches, **wrong)
    with pytest.raises(DendriticError, match="hold no loss"):
        search_allocation(model, [{"pixel_values": batches[0]["pixel_values"]}])
    with pytest.raises(DendriticError, match="^method = 'evolve'"):
        prune_(model, batches, allocation="evolve")
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors(model).items())


@pytest.mark.parametrize("text", ["{}", "[1]", "no", json.dumps({"version": 1, "kept": {"a": 2}})])
def test_a_file_that_is_not_an_allocation_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DendriticError, match="is not an allocation"):
        Allocation.load(tmp_path / "a.json")


@pytest.mark.parametrize("value", ["evolution", {}, {"a": 1.5}, {1: 0.5}, 0.5, ["uniform"]])
def test_a_config_takes_what_needs_no_search(value):
    with pytest.raises(DendriticError, match="^allocation"):
        DendriticConfig(allocation=value)
    config = DendriticConfig(allocation={"a": 0.5})
    assert DendriticConfig.from_json(config.to_json()) == config


@pytest.mark.slow
def test_a_training_keeps_to_a_division(tmp_path):
    trainer = make_trainer(
        tmp_path, [DendriticCallback(DendriticConfig(sparsity=0.5, updates=5, allocation="uniform"))]
    )
    trainer.train()
    assert trainer.model.config.quantization_config["config"]["allocation"] == "uniform"


def test_the_environment_is_one_and_an_agent_learns_in_it():
    untested = "The agent is NOT TESTED: pip install '.[rl]'"
    pytest.importorskip("stable_baselines3", reason=untested)
    checker = pytest.importorskip("gymnasium.utils.env_checker", reason=untested)
    from optimum.dendritic.search.environment import AllocationEnv

    objective, _ = objective_of("resnet_basic")
    rewards = {}
    for start in ("uniform", "global"):
        env = AllocationEnv(objective, start)
        checker.check_env(env, skip_render_check=True)
        env = AllocationEnv(objective, start)
        env.reset(seed=0)
        assert env.best_loss == min(objective.loss(None), objective.loss((0.0,) * len(objective.names)))
        done, told = False, 0
        while not done:
            _, rewards[start], done, _, _ = env.step([0.0])
            told += 1
        assert told == len(objective.names)
    assert rewards["uniform"] == 0 != rewards["global"]  # nought is what the start keeps
    with pytest.raises(DendriticError, match="^start = 'dense'"):
        AllocationEnv(objective, "dense")
    model, batches = labelled("resnet_basic")
    found = search_allocation(model, batches, method="rl", evaluations=5, seed=0)
    assert found == search_allocation(model, batches, method="rl", evaluations=5, seed=0)
    assert found.method == "rl" and found.evaluations <= 7
    assert found.loss == min(loss for _, loss in found.history)
