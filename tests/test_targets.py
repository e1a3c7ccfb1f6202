"""Which modules are pruned: names, suffixes, regular expressions; no heads, embeddings, tied or frozen weights."""

import pytest
from helpers.models import PlainCNN, build
from torch import nn
from torch.nn.utils import parametrize, weight_norm

from optimum.dendritic import DendriticConfig, DendriticError
from optimum.dendritic.structure.targets import target_names

LAYER = "bert.encoder.layer.0"


def names(model: nn.Module, **fields) -> list[str]:
    return target_names(model, DendriticConfig(**fields))


def test_by_default_the_body_is_pruned_and_the_head_is_not():
    model, _ = build("bert")
    body = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith("bert.")]
    assert names(model) == body and "classifier" not in body


def test_in_a_plain_module_the_last_layer_is_the_head():
    assert names(PlainCNN()) == ["conv1", "conv2", "fc1"]
    assert names(nn.Sequential(nn.Linear(2, 2))) == ["0"]


def test_a_bare_encoder_has_no_head():
    model, _ = build("bert")
    assert names(model.bert)[-1] == "pooler.dense"


def test_a_model_tied_to_its_embedding_keeps_both():
    model, _ = build("gpt2")
    assert "lm_head" not in names(model)
    with pytest.raises(DendriticError, match="lm_head"):
        names(model, target_modules=["lm_head"])


def test_a_tied_head_does_not_push_the_last_layer_of_the_body_out():
    class Tied(PlainCNN):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 24)
            self.fc2.weight = self.embedding.weight

    assert names(Tied()) == ["conv1", "conv2", "fc1"]


def test_a_suffix_matches_whole_parts_of_a_name():
    model, _ = build("bert")
    assert names(model, target_modules=["query"]) == [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
    assert names(model, target_modules=[f"{LAYER}.output.dense"]) == [f"{LAYER}.output.dense"]
    with pytest.raises(DendriticError):
        names(model, target_modules=["uery"])


def test_a_string_is_a_regular_expression_for_the_full_name():
    model, _ = build("bert")
    assert names(model, target_modules=r".*layer\.0\.(intermediate|output)\.dense") == [
        f"{LAYER}.intermediate.dense",
        f"{LAYER}.output.dense",
    ]
    with pytest.raises(DendriticError):
        names(model, target_modules="query")


def test_targets_come_in_the_order_of_the_model():
    assert names(PlainCNN(), target_modules=["fc2", "conv1", "fc1"]) == ["conv1", "fc1", "fc2"]


def test_excluded_modules_are_taken_out():
    model, _ = build("bert")
    assert not [n for n in names(model, exclude_modules=["query", "key"]) if n.endswith(("query", "key"))]
    assert names(PlainCNN(), target_modules="conv.*", exclude_modules="conv1") == ["conv2"]
    assert names(PlainCNN(), exclude_modules=["fc2"]) == names(PlainCNN()), "the head may be excluded, too"


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_a_pattern_without_a_match_is_refused_with_near_names(field):
    model, _ = build("bert")
    with pytest.raises(DendriticError, match=f"{field} = 'qurey'.*query"):
        names(model, **{field: ["key", "qurey"]})


def test_nothing_left_is_refused():
    with pytest.raises(DendriticError, match="no prunable module is left"):
        names(PlainCNN(), target_modules=["fc1"], exclude_modules=["fc1"])
    with pytest.raises(DendriticError, match="no prunable module is left"):
        names(nn.ReLU())


def test_a_frozen_weight_is_left_alone():
    model = PlainCNN()
    model.conv2.weight.requires_grad_(False)
    assert names(model) == ["conv1", "fc1"]
    with pytest.raises(DendriticError):
        names(model, target_modules=["conv2"])


def test_grouped_convolutions_and_embeddings_are_no_targets():
    model, _ = build("grouped_cnn")
    assert names(model, target_modules=".*") == ["expand", "project", "head"]
    bert, _ = build("bert")
    assert not [n for n in names(bert, target_modules=".*") if "embedding" in n]


def test_a_subclass_of_a_layer_is_no_target():
    class Special(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert names(nn.Sequential(nn.Linear(2, 2), Special(2, 2)), target_modules=".*") == ["0"]


def test_a_module_shared_under_two_names_is_named_once():
    shared = nn.Linear(2, 2)
    assert names(nn.Sequential(shared, nn.ReLU(), shared), target_modules=".*") == ["0"]


def test_a_weight_that_is_computed_is_no_target():
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    with pytest.warns(FutureWarning):
        old = weight_norm(nn.Linear(2, 2))
    new = nn.Linear(2, 2)
    parametrize.register_parametrization(new, "weight", Half())
    assert names(nn.Sequential(nn.Linear(2, 2), old, new), target_modules=r"\d") == ["0"]


def test_layers_whose_weights_a_fused_encoder_reads_itself_are_no_targets():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert names(nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 2)), target_modules=".*") == ["0", "2"]
