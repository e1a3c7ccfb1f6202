"""The harness of the result tables: runs resume and never mix, intervals are fair, a card follows from its runs."""

import argparse
import copy
import doctest
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.compare import every
from helpers.models import ResidualMLP
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification, TrainerControl, TrainerState, TrainingArguments

from optimum.dendritic import DendriticConfig, inject_

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "benchmarks"))

from cifar10 import Cifar10, CompactViTConfig, CompactViTForImageClassification  # noqa: E402
from harness import (  # noqa: E402
    augment,
    bases,
    claims,
    cli,
    comparison,
    images,
    metric,
    report,
    runs,
    shrinkage,
    statistics,
    summary,
    teaching,
    text,
    training,
)
from harness.averaging import WeightAverage  # noqa: E402
from harness.summary import Table  # noqa: E402
from harness.task import Card, Score, Task  # noqa: E402

LEVEL = 0.5
CARD = Card(
    script="toy.py",
    title="Toy",
    description="A toy.",
    pipeline_tag="text-classification",
    dataset_id="toy",
    metric_id="accuracy",
    budget="params",
    tolerances={LEVEL: 1.0},
    base="a base",
    second="1 epoch",
    smaller="smaller.",
    optimizer="none",
    targets="one layer",
    selection="None.",
)


def record(method: str, seed: int, hits: str, parameters: int, variant: str = "", **changes: float) -> dict:
    level = 0.0 if method in ("base", *runs.DENSE) else LEVEL
    pruned = method in runs.PRUNED
    return {
        **runs.Run(method, level, seed, variant, changes).to_dict(),
        "recipe": {"epochs0": 1, "bf16": True, "max_steps": None} | ({} if method == "base" else {"epochs1": 2}),
        "pruning": {"importance": method, "sparsity": level, "seed": seed, "regrow": 0.1} | changes if pruned else None,
        "score": hits.count("1") / len(hits),
        "examples": hits,
        "parameters": parameters,
        "macs": parameters,
        "target_parameters": parameters - 100,
        "target_macs": parameters - 100,
        "layers": {"layer": {"parameters": parameters - 100, "macs": parameters - 100}},
        "train_seconds": 60.0,
        "samples": {"train": 10, "validation": len(hits)},
        "environment": {"device": "toy", "threads": 1, "versions": {"torch": "2"}},
    }


def table(dendritic: str = "1110" * 50, control: str = "1000" * 50) -> list[dict]:
    dense = "1111" * 50
    return [
        *(record("base", seed, dense, 300) for seed in (0, 1)),
        *(record("dense", seed, dense, 300) for seed in (0, 1)),
        *(record("dendritic", seed, dendritic, 200) for seed in (0, 1)),
        *(record("random", seed, control, 200) for seed in (0, 1)),
        record("dendritic", 0, control, 200, "no-regrow", regrow=0.0),
    ]


class Toy(Task):
    """Only what rendering asks for."""

    card = lambda self: CARD  # noqa: E731
    control = lambda self: {"learning_rate": 0.1}  # noqa: E731


Toy.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    "module", [augment, cli, runs, metric, claims, comparison, shrinkage, statistics, summary, teaching]
)
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=50))
def test_the_interval_holds_the_mean_and_turns_with_the_sign(pairs):
    first, second = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    there, back = (statistics.paired_difference({0: a}, {0: b, 1: b}) for a, b in ((first, second), (second, first)))
    assert there is not None and back is not None and there.seeds == 1
    assert there.mean == pytest.approx((first - second).mean())
    assert there.low <= there.mean + 1e-12 and there.mean <= there.high + 1e-12
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert statistics.paired_difference({0: first}, {1: second}) is None


def test_equal_models_are_not_separable():
    same = np.array([0.0, 1.0, 1.0])
    found = statistics.paired_difference({0: same}, {0: same})
    assert found is not None and not found.separable


def test_a_run_counts_only_under_its_own_conditions(tmp_path):
    path = tmp_path / "run.json"
    conditions = {"recipe": {"epochs": 1}, "pruning": {"end": 0.6}}
    assert not runs.is_done(path, conditions)
    runs.write_json(path, conditions)
    assert runs.is_done(path, conditions)
    assert runs.is_done(path, conditions | {"pruning": {"end": 0.6, "of_a_later_release": 1}})
    for other in ({"recipe": {"epochs": 2}}, {"pruning": {"end": 0.4}}, {"pruning": None}):
        with pytest.raises(ValueError, match="choose another"):
            runs.is_done(path, conditions | other)


def test_a_run_has_one_maker(tmp_path):
    path = tmp_path / "run.json"
    with runs.claimed(path) as first, runs.claimed(path) as second, runs.claimed(tmp_path / "other.json") as other:
        assert (first, second, other) == (True, False, True)
    with runs.claimed(path) as again:
        assert again


def plan(**options) -> argparse.Namespace:
    fields = {"seeds": [0, 1], "levels": [LEVEL], "methods": runs.METHODS, "variant": "", "config": {}}
    return argparse.Namespace(**fields | {"base_seed": None} | options)


def test_a_plan_names_every_run_once():
    plain = plan(levels=[0.5, 0.8])
    names = [run.name for run in runs.planned(plain)]
    assert len(set(names)) == len(names) == 2 * (2 + 5 * 2)
    assert runs.OWN_RATE not in {run.method for run in runs.planned(plain, own_rate=False)}
    ablation = argparse.Namespace(**vars(plain) | {"variant": "no-regrow", "config": {"regrow": 0.0}})
    assert {run.method for run in runs.planned(ablation)} == set(runs.PRUNED)
    assert not set(names) & {run.name for run in runs.planned(ablation)}


def test_one_base_serves_all_seeds_where_that_is_asked_for():
    assert {run.base.seed for run in runs.planned(plan())} == {0, 1}
    assert {(run.base.seed, run.seed) for run in runs.planned(plan(base_seed=7))} == {(7, 0), (7, 1)}


def test_claims_follow_the_numbers():
    verdicts = {c.text: c.holds for c in claims.claims(Table(table(), [], metric.ACCURACY), CARD)}
    assert verdicts == {
        "dendritic at 50% removes 50% of the parameters of the target modules": True,
        "dendritic at 50% loses at most 1 points against dense": False,
        "dendritic at 50% loses at most 1 points against dense on the held-out part": False,
        "dendritic at 50% is better than magnitude": None,
        "dendritic at 50% is better than shrinkage + magnitude": None,
        "dendritic at 50% is better than random": True,
        "dendritic at 50% is better than smaller dense": None,
        "dendritic at 50% is faster than dense": None,
    }


def test_the_better_dense_model_counts_and_held_out_examples_choose_nothing():
    for_choices, rest = "10" * 100, "01" * 100  # right on the first, the third, … and on the others
    pruned = record("dendritic", 0, "0001" * 50, 200)
    found = Table([record("dense", 0, for_choices, 300), record(runs.OWN_RATE, 0, rest, 300)], [], metric.ACCURACY)
    assert (found.dense.method, found.dense.held_out) == ("dense", 0)
    better = record(runs.OWN_RATE, 0, "1" * 200, 300)
    found = Table([record("dense", 0, rest, 300), better, pruned], [], metric.ACCURACY)
    assert found.dense.method == runs.OWN_RATE and found.dense.against_dense is None
    row = found.find("dendritic", LEVEL)
    assert row is not None and row.against_dense is not None and row.held_out_against_dense is not None
    assert (row.held_out, row.held_out_against_dense.mean, row.against_dense.mean) == (50, 50, 75)


def test_every_control_has_the_teacher(tmp_path):
    """A student of fewer layers is compared with layers that are spread over the teacher; nothing of it stays."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 20, "num_labels": 2}
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(BertConfig(num_hidden_layers=4, **sizes)).eval()
    student = copy.deepcopy(teacher)
    for layer in (3, 1):
        del student.bert.encoder.layer[layer]
    student.config = BertConfig(num_hidden_layers=2, **sizes)
    inputs = {"input_ids": torch.randint(20, (2, 5)), "labels": torch.tensor([0, 1])}
    alone = student.train()(**inputs).loss
    states = teacher(inputs["input_ids"], output_hidden_states=True)
    args, state, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(), TrainerControl()
    taught = teaching.Teaching(teacher, 0.5)
    taught.on_train_begin(args, state, control, model=student)
    found = teacher(inputs["input_ids"], output_hidden_states=True).hidden_states
    assert all(torch.equal(own, states.hidden_states[i]) for own, i in zip(found, (0, 2, 4), strict=True))
    torch.manual_seed(1)
    with_teacher = student(**inputs).loss
    taught.on_train_end(args, state, control)
    torch.manual_seed(1)
    assert with_teacher > student(**inputs).loss
    assert alone.isfinite() and not student._forward_hooks


def test_weak_groups_shrink_faster_until_they_are_pruned():
    model = ResidualMLP()
    config = DendriticConfig(sparsity=0.5, segment_size=1, floor=0.0)
    x = torch.rand(4, 6)
    inject_(model, config, example_inputs={"x": x})
    down, up = model.down[0], model.up[0]
    with torch.no_grad():
        down.dendrite_mask[0, 3] = False
        down.mask_()
    model(x).square().sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    shrinkage.shrink_(model, 0.1)
    added = {name: parameter.grad - before[name] for name, parameter in model.named_parameters()}
    norms = (down.weight.square().sum(0) + up.weight.square().sum(1)).sqrt()  # columns, and the rows that die with them
    factors = 0.1 * shrinkage.factors(norms, down.dendrite_mask[0])
    assert factors[3] == 0 and torch.isclose(factors[factors > 0].min() * 16, factors.max())
    assert torch.allclose(added["down.0.weight"], down.weight * factors, atol=1e-6)
    own = 0.1 * shrinkage.factors(up.weight.square().sum(0).sqrt(), up.dendrite_mask[0])
    assert torch.allclose(added["up.0.weight"], up.weight * (own + factors[:, None]), atol=1e-6)
    assert not added["down.0.bias"].any()


def test_a_card_is_written_from_its_runs(tmp_path):
    for run in table():
        name = runs.Run(*(run[field] for field in ("method", "level", "seed", "variant", "changes"))).name
        runs.write_json(tmp_path / f"{name}.json", run)
    card = tmp_path / "cards" / "toy.md"
    report.render(Toy(argparse.Namespace()), tmp_path, card)
    text = card.read_text()
    assert "| dendritic at 50% is better than random | +50.00 points" in text
    assert "--methods dendritic --variant no-regrow --config regrow=0.0 --seeds 0" in text
    assert "--epochs0 1 --bf16 --epochs1 2" in text and "max_steps" not in text
    assert all((card.parent / f"toy-{figure}.png").exists() for figure in ("removed", "density"))
    assert len(json.loads(card.with_suffix(".json").read_text())["rows"]) == 4
    for odd, kinds in (("base", "recipe of bases"), ("dense", "recipe")):
        runs.write_json(tmp_path / "odd.json", record(odd, 2, "11", 300) | {"recipe": {"epochs0": 2}})
        with pytest.raises(ValueError, match=f"several kinds of {kinds}:"):
            report.render(Toy(argparse.Namespace()), tmp_path, card)


def vit(width: int = 8) -> CompactViTForImageClassification:
    """Normalised by batches, in the stem, and with other names for its tensors in the files than in the model."""
    sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CompactViTConfig(image_size=28, num_channels=1, stem_channels=2, num_labels=10, **sizes)
    return CompactViTForImageClassification(config)


class Digits(Task):
    """Few random images in both stages; score number `death` is cut short, as a killed process is."""

    add_options = lambda parser: None  # noqa: E731
    card = lambda self: CARD  # noqa: E731
    recipe = lambda self: {"epochs0": self.args.epochs0, "epochs1": 1}  # noqa: E731
    fresh = lambda self: vit()  # noqa: E731
    load = lambda self, folder: CompactViTForImageClassification.from_pretrained(folder).eval()  # noqa: E731
    smaller = lambda self, level, base: (vit(4), True)  # noqa: E731
    example_inputs = lambda self: {"pixel_values": images.normalised(self.pixels[:2], self.mean, self.std)}  # noqa: E731
    samples = lambda self: {"train": 64, "validation": 64}  # noqa: E731
    averaging = lambda self, stage: 0.9  # noqa: E731
    default_card = "cards/digits.md"

    def __init__(self, args: argparse.Namespace, death: int = 0):
        super().__init__(args)
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(256, (64, 1, 28, 28), generator=generator, dtype=torch.uint8)
        self.labels = torch.arange(64) % 10
        self.mean = self.std = torch.tensor([0.5])
        self.death, self.scores = death, 0

    def stages(self):
        shared = {"per_device_train_batch_size": 16, "learning_rate": 0.01, "warmup_steps": 0.1, "bf16": True}
        return shared | {"num_train_epochs": self.args.epochs0}, shared | {"num_train_epochs": 2}

    def train_data(self, stage: int):
        return images.Moved(self.pixels, self.labels, self.mean, self.std, 10, 2), images.as_it_is

    def soft_labels(self, stage: int, model: torch.nn.Module) -> torch.Tensor:
        return images.predicted(model, images.normalised(self.pixels, self.mean, self.std))

    def score(self, model: torch.nn.Module) -> Score:
        self.scores += 1
        if self.scores == self.death:
            raise KeyboardInterrupt
        hits = images.correct(model, images.normalised(self.pixels, self.mean, self.std), self.labels, 64)
        return Score(hits.count("1") / 64, hits)


@pytest.mark.slow
@pytest.mark.parametrize(("run", "death"), [(runs.Run("base", 0.0, 0), 3), (runs.Run("smaller-dense", LEVEL, 0), 5)])
def test_a_training_cut_short_goes_on_from_its_last_epoch_and_ends_the_same(tmp_path, run, death):
    args = argparse.Namespace(epochs0=3, train_bases=False)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    training.ensure(Digits(args), run, whole)
    with pytest.raises(KeyboardInterrupt):
        training.ensure(Digits(args, death), run, parts)
    assert not (parts / f"{run.name}.json").exists()
    with pytest.raises(ValueError, match="choose another"):
        training.ensure(Digits(argparse.Namespace(epochs0=4, train_bases=False)), run, parts)
    rest = Digits(args)
    training.ensure(rest, run, parts)
    first, second = (json.loads((folder / f"{run.name}.json").read_text()) for folder in (whole, parts))
    assert rest.scores == len(first["epochs"]) - death + 2  # those of the epochs that were not done, and the last one
    for name in ("score", "examples", "steps"):
        assert first[name] == second[name]
    curves = [[(epoch["stage"], epoch["step"], epoch["score"]) for epoch in made["epochs"]] for made in (first, second)]
    assert curves[0] == curves[1] and len(curves[0]) == (3 if run.method == "base" else 5)
    tensors = [Digits(args).load(folder / run.name).state_dict() for folder in (whole, parts)]
    assert tensors[0].keys() == tensors[1].keys() and all(torch.equal(a, tensors[1][k]) for k, a in tensors[0].items())
    assert not list(parts.glob("*.unfinished"))


def test_weights_are_averaged_over_the_steps_and_lent_for_a_while():
    model = torch.nn.BatchNorm1d(1)
    average, args, control = WeightAverage(0.5), TrainingArguments(output_dir="unused"), TrainerControl()
    average.on_train_begin(args, TrainerState(), control, model=model)
    for step, value in enumerate((3.0, 5.0), start=1):
        model.running_mean.fill_(value)
        model.num_batches_tracked += 1
        average.on_step_end(args, TrainerState(global_step=step), control, model=model)
    first, second = 2 / 11, 3 / 12  # the decays: a short training does not remember its start
    expected = torch.tensor([second * (1 - first) * 3 + (1 - second) * 5])
    with average.applied(model):
        assert torch.allclose(model.running_mean, expected)
    assert model.running_mean.item() == 5
    average.on_train_end(args, TrainerState(global_step=2), control, model=model)
    assert torch.allclose(model.running_mean, expected) and model.num_batches_tracked.item() == 2


def test_a_base_of_two_cycles_may_start_after_the_first(tmp_path):
    class Cycles(Digits):
        start = lambda self, run: tmp_path / "first"  # noqa: E731
        stages = lambda self: (*super().stages(), {"num_train_epochs": 1, "learning_rate": 0.0})  # noqa: E731

    first = vit()
    first.save_pretrained(tmp_path / "first")
    task, run = Cycles(argparse.Namespace(epochs0=3, train_bases=False)), runs.Run("base", 0.0, 0)
    training.ensure(task, run, tmp_path)
    made = json.loads((tmp_path / f"{run.name}.json").read_text())
    assert made["start"] == "first" and {epoch["stage"] for epoch in made["epochs"]} == {1} and made["steps"] == 8
    dense = runs.Run("dense", 0.0, 0)
    training.ensure(task, dense, tmp_path)  # its last stage has learning rate 0
    base, after = (dict(task.load(tmp_path / made.name).named_parameters()) for made in (run, dense))
    own = dict(first.named_parameters())
    assert all(torch.equal(base[name], after[name]) for name in own)
    assert any(not torch.equal(base[name], own[name]) for name in own)


def test_a_kept_base_is_taken_where_its_recipe_is_asked_for(tmp_path, monkeypatch):
    args, run = argparse.Namespace(epochs0=3, train_bases=False), runs.Run("base", 0.0, 0)
    task, folder, first, second = Digits(args), tmp_path / "bases", tmp_path / "first", tmp_path / "second"
    for output in (first, second):
        output.mkdir()
    torch.manual_seed(0)
    vit().save_pretrained(first / run.name)
    recipe = task.base_recipe(task.recipe())
    whole = {"recipe": recipe, "changes": {}, "pruning": None, **run.to_dict(), "epochs": [], "examples": "01"}
    runs.write_json(first / f"{run.name}.json", whole)
    assert bases.kept(task, run, folder) is None
    path = bases.keep(task, run, first, folder)
    assert path == bases.kept(task, run, folder) == folder / "digits" / "seed0"
    assert "base --train_bases --seeds 0 --epochs0 3" in json.loads((path / "run.json").read_text())["command"]
    monkeypatch.setattr(training, "kept", lambda task, run: bases.kept(task, run, folder))
    training.ensure(task, run, second)
    made = json.loads((second / f"{run.name}.json").read_text())
    assert (
        made["kept"] == "digits"
        and len(made["examples"]) == 64
        and runs.is_done(second / f"{run.name}.json", {"recipe": recipe})
    )
    own, taken = (task.load(output / run.name).state_dict() for output in (first, second))
    assert all(
        torch.allclose(tensor.float(), taken[name].float(), rtol=1e-3, atol=1e-4) for name, tensor in own.items()
    )
    other = Digits(argparse.Namespace(epochs0=4, train_bases=False))
    assert bases.kept(other, run, folder) is None and bases.kept(task, runs.Run("base", 0.0, 1), folder) is None


@pytest.mark.parametrize("changes", [{}, {"learning_rate": 0.1}, {"epochs_again": 0.0}])
def test_the_model_to_start_from_was_trained_as_the_first_cycle_asks(tmp_path, changes):
    runs.write_json(tmp_path / "run.json", {"epochs": 40, "seed": 0, "lr": 0.2, "batch": 128, "val": 0.8})
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int)
    Cifar10.add_options(parser)
    args = parser.parse_args(["--start", str(tmp_path)])
    args.levels, args.bf16, args.max_steps = [], True, None
    vars(args).update(changes)
    task, own, other = Cifar10(args), *(runs.Run("base", 0.0, seed) for seed in (0, 1))
    if changes:
        with pytest.raises(ValueError, match="was trained with"):
            task.start(own)
        return
    assert (task.start(own), task.start(other)) == (tmp_path, None)
    assert [stage["num_train_epochs"] for stage in task.stages()] == [40, 20, 5]
    assert [stage["learning_rate"] for stage in task.stages()] == [0.2, 0.1, 0.1]


def test_a_base_serves_every_second_stage():
    task = Digits(argparse.Namespace(epochs0=3, train_bases=False))
    assert task.base_recipe(task.recipe()) == {"epochs0": 3}


def test_moved_images_keep_what_is_in_them():
    square = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    square[..., 8:20, 8:20] = 255
    mean, std = torch.tensor([0.0]), torch.tensor([1.0])
    still = images.Moved(square, torch.tensor([3]), mean, std, degrees=0, pixels=0).__getitems__([0, 0])
    assert torch.allclose(still["pixel_values"][0], square[0].float() / 255, atol=1e-5)
    assert still["labels"].tolist() == [3, 3]
    torch.manual_seed(0)
    moved = images.Moved(square, torch.tensor([3]), mean, std, degrees=10, pixels=2).__getitems__([0] * 64)
    mass = moved["pixel_values"].sum((1, 2, 3))
    assert torch.allclose(mass, torch.tensor(144.0), rtol=0.02)
    rows = (moved["pixel_values"].sum(3) * torch.arange(28)).sum((1, 2)) / mass
    assert rows.min() < 12.5 and rows.max() > 14.5 and ((rows - 13.5).abs() < 2.1).all()


def test_replaced_tokens_are_neighbours_and_the_rest_stays():
    embeddings = torch.cat([torch.eye(4).repeat_interleave(20, 0), torch.full((1, 4), 1.0)])
    embeddings += torch.rand(embeddings.shape, generator=torch.Generator().manual_seed(0)) / 100
    ids = [80, 0, 21, 22, 80]  # 80 is fixed, as a token that marks the ends is
    table = augment.nearest_tokens(embeddings, [ids], fixed=[80, 1])
    assert table[80].unique().tolist() == [80] and table[79].unique().tolist() == [79]
    assert every(token // 20 == 0 and token not in (0, 1) for token in table[0].tolist())
    assert every(token // 20 == 1 and token != 21 for token in table[21].tolist())

    plain = text.Sentences([ids], [1])
    assert augment.Replaced(plain, table, share=0.0)[0] == plain[0]
    torch.manual_seed(0)
    changed = augment.Replaced(plain, table, share=1.0)
    first, second = changed[0], changed[0]
    assert len(changed) == 1 and first["labels"] == 1 and first != second
    assert [token // 20 for token in first["input_ids"]] == [token // 20 for token in ids]
    assert not set(first["input_ids"][1:-1]) & {0, 1, 80}
    assert 80 not in augment.nearest_tokens(embeddings, [ids], fixed=[])[80]
    with pytest.raises(argparse.ArgumentTypeError, match=r"30 must be in \[0, 1\]"):
        augment.share("30")
