"""The BERT whose word embedding is two factors: the same model at full rank, a group of its own, packed to a number."""

import sys
from pathlib import Path

import torch
from helpers.models import build, outputs
from transformers import AutoModelForSequenceClassification

from optimum.dendritic import DendriticConfig, compress_, inject_, prune_
from optimum.dendritic.state import layout_of

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from low_rank_bert import with_low_rank_embedding  # noqa: E402

WORDS = "bert.embeddings.word_embeddings"


def test_at_full_rank_it_is_the_same_model():
    model, inputs = build("bert")
    counts = torch.arange(model.config.vocab_size).float()
    same = with_low_rank_embedding(model, model.config.hidden_size, counts)
    torch.testing.assert_close(outputs(same, inputs), outputs(model, inputs))


def test_the_tokens_that_occur_lose_least():
    model, _ = build("bert")
    words = model.get_submodule(WORDS).weight
    counts = torch.zeros(len(words))
    counts[:8] = 1e6
    found = with_low_rank_embedding(model, 8, counts).get_submodule(WORDS)(torch.arange(len(words)))
    lost = (found - words).norm(dim=1) / words.norm(dim=1)
    assert lost[:8].max() < 0.05 < lost[8:].mean()


def test_its_rank_is_pruned_with_the_rest_and_it_loads(tmp_path):
    model, inputs = build("bert")
    model = with_low_rank_embedding(model, 8, torch.ones(model.config.vocab_size))
    aim = sum(parameter.numel() for parameter in model.parameters()) // 2
    config = DendriticConfig(parameters=aim, units="structured", floor=0.0, importance="random")
    inject_(model, config, example_inputs=inputs)
    (group,) = [group for group in layout_of(model).groups if group.host == f"{WORDS}.up"]
    assert group.cut and [member.name for member in group.producers] == [f"{WORDS}.table"]
    prune_(model, [{**inputs, "labels": torch.zeros(len(inputs["input_ids"]), dtype=torch.long)}])
    compress_(model, inputs)
    assert aim / 2 < sum(parameter.numel() for parameter in model.parameters()) <= aim
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded, inputs), outputs(model, inputs))
