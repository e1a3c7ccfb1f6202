"""The embedding as two factors in trainings: counted tokens, resumed runs, packing at the freeze, several sizes."""

import pytest
import torch
from helpers.compare import assert_same
from helpers.models import build, outputs, roughen
from helpers.trainers import FREEZE, STEPS, StopAt, tensors
from torch.optim import SGD
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from optimum.dendritic import (
    DendriticCallback,
    DendriticConfig,
    DendriticError,
    Pruner,
    compress_,
    inject_,
    load_at,
    load_dormant_,
    save_dormant,
    set_wake_rate,
    target_sparsity,
    update_,
    update_plan,
)
from optimum.dendritic.efficiency.size import count_parameters
from optimum.dendritic.nn import factored
from optimum.dendritic.state import layout_of
from optimum.dendritic.train_steps import initial_sparsity

WHOLE = {"units": "structured", "scope": "model", "floor": 0.0, "embedding_rank": 8}
CONFIG = DendriticConfig(sparsity=0.5, updates=5, **WHOLE)
TOKENS = 50


def make_bert():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
    return roughen(BertForSequenceClassification(BertConfig(vocab_size=TOKENS, max_position_embeddings=16, **shape)))


class Texts(torch.utils.data.Dataset):
    """Samples of which the order of the tokens is drawn anew whenever they are looked at."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        ids = torch.arange(index % 7, index % 7 + 8)[torch.randperm(8)]
        return {"input_ids": ids, "labels": index % 2}


def trainer_of(folder, dataset=None, callbacks=(), callback=None, **changes):
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": "none"}
    settings |= {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(folder), **settings | changes)
    callbacks = [callback or DendriticCallback(CONFIG), *callbacks]
    return Trainer(model=make_bert(), args=arguments, train_dataset=dataset or Texts(), callbacks=callbacks)


def weights(embedding):
    return {"table": embedding.table.weight, "up": embedding.up.weight}


def test_the_tokens_of_the_training_data_are_counted_and_nothing_is_drawn(tmp_path):
    dense = make_bert().get_input_embeddings()
    counts = torch.zeros(TOKENS)
    for index in range(32):
        counts[torch.arange(index % 7, index % 7 + 8)] += 1
    found = trainer_of(tmp_path).model.get_input_embeddings()
    drawn = torch.rand(4)
    given = trainer_of(tmp_path, callback=DendriticCallback(CONFIG, token_counts=torch.ones(TOKENS)))
    assert torch.equal(drawn, torch.rand(4))  # a Trainer sets the seed, and then nothing is drawn
    assert_same(weights(found), weights(factored(dense, 8, counts.double() + 1)))
    assert_same(weights(given.model.get_input_embeddings()), weights(factored(dense, 8)))


def test_without_tokens_in_the_data_all_count_alike(tmp_path):
    texts = [{"inputs_embeds": torch.ones(4, 16), "labels": 0}] * 4
    found = trainer_of(tmp_path, texts).model.get_input_embeddings()
    assert_same(weights(found), weights(factored(make_bert().get_input_embeddings(), 8)))


def test_the_schedule_climbs_from_what_the_factors_save():
    model, inputs = build("bert")
    inject_(model, DendriticConfig(sparsity=0.6, updates=4, schedule="linear", **WHOLE), example_inputs=inputs)
    begin, end = initial_sparsity(model), target_sparsity(model)
    assert 0 < begin < end == 0.6
    due = [update.sparsity for update in update_plan(layout_of(model).config, 1000, end, begin).values()]
    assert due[:-1] == pytest.approx([begin + (end - begin) * part for part in (0.25, 0.5, 0.75)], abs=2e-3)
    assert due[-1] == end


@pytest.mark.parametrize("stop", [FREEZE - 3, FREEZE + 3])
def test_a_resumed_run_ends_as_the_undisturbed_one(tmp_path, stop):
    def trained(folder, callbacks=(), resume=False):
        saving = {"save_strategy": "steps", "save_steps": stop}
        early = DendriticCallback(CONFIG, pack_at_freeze=stop > FREEZE)
        texts = [{"input_ids": torch.arange(i % 7, i % 7 + 8), "labels": i % 2} for i in range(32)]
        trainer = trainer_of(tmp_path / folder, texts, callbacks, early, **saving)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    whole = trained("whole")
    trained("killed", [StopAt(stop)])
    assert_same(tensors(trained("killed", resume=True)), tensors(whole))
    assert count_parameters(whole) <= 0.5 * count_parameters(make_bert())
    assert layout_of(whole).packed and layout_of(whole).factored == {"bert.embeddings.word_embeddings": 8}


def test_an_optimizer_that_was_built_before_is_refused():
    model, inputs = make_bert(), {"input_ids": torch.arange(8)[None]}
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(DendriticError, match="became two factors, and does not train them"):
        Pruner(model, CONFIG, steps=100, optimizer=optimizer, example_inputs=inputs)
    Pruner(model, CONFIG, steps=100, optimizer=SGD(model.parameters(), lr=0.1), example_inputs=inputs)


def test_smaller_sizes_are_cut_out_of_its_checkpoint(tmp_path):
    model, inputs = build("bert")
    dense = count_parameters(model)
    config = DendriticConfig(sparsity=(0.3, 0.6), importance="random", **WHOLE)
    inject_(model, config, example_inputs=inputs)
    update_(model, 0.3)
    model.save_pretrained(tmp_path / "sizes")
    left = [count_parameters(load_at(tmp_path, sparsity)) / dense for sparsity in (0.3, 0.6)]
    assert left[0] == pytest.approx(0.7, abs=0.1) and left[1] == pytest.approx(0.4, abs=0.1)
    assert all(share <= asked for share, asked in zip(left, (0.7, 0.4), strict=True))


def test_what_is_dormant_wakes_from_its_file(tmp_path):
    model, inputs = build("bert")
    inject_(model, DendriticConfig(sparsity=0.6, dormant=0.3, importance="random", **WHOLE), example_inputs=inputs)
    update_(model, 0.6)
    awake = outputs(model, inputs)
    compress_(model, inputs)
    torch.testing.assert_close(outputs(set_wake_rate(model, 1.0), inputs), awake, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    save_dormant(model, tmp_path)
    loaded = load_dormant_(BertForSequenceClassification.from_pretrained(tmp_path), tmp_path)
    for rate in (0.0, 1.0):
        assert torch.equal(outputs(set_wake_rate(loaded, rate), inputs), outputs(set_wake_rate(model, rate), inputs))
