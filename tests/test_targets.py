"""Which modules are pruned: names, suffixes, regular expressions; no heads, embeddings, tied or frozen weights."""

import copy

import pytest
import torch
from helpers.models import PlainCNN, build, outputs, pixels, roughen, vectors
from helpers.packing import pack_and_check
from torch import Tensor, nn
from torch.nn.utils import parametrize, weight_norm
from transformers import PreTrainedModel, ResNetConfig

from optimum.dendritic import DendriticConfig, DendriticError, inject_, update_
from optimum.dendritic.state import layout_of
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


class Cast(nn.Linear):
    """As timm's Linear."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Routed(nn.Linear):
    def forward(self, x):
        return super().forward(x), x.argmax(-1)


class PaddedInside(nn.Conv2d):
    """As timm's Conv2dSame: it pads by itself."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


class Quiet(nn.Linear):
    """Computes as a Linear in evaluation alone."""

    def forward(self, x):
        return super().forward(x) * (2 if self.training else 1)


class Scaled(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))


def test_a_derived_class_is_a_target_if_it_computes_the_same():
    kinds = [Cast, Twice, Routed, Quiet, Scaled]
    assert [
        kind for kind in kinds if names(nn.Sequential(nn.Linear(2, 2), kind(2, 2)), target_modules=".*") != ["0"]
    ] == [Cast]
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), PaddedInside(4, 4, 3))
    assert names(convolutions, target_modules=".*") == ["0"]


class Caster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = Cast(6, 16), Cast(16, 8), Cast(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.down(torch.relu(self.up(x)))))


def test_a_derived_class_is_injected_and_packed_as_its_stock_class_and_stays_what_it_is():
    model, inputs = roughen(Caster()), vectors()
    expected = outputs(model, inputs)
    inject_(model, DendriticConfig(sparsity=0.4, segment_size=2, importance="random"), example_inputs=inputs)
    assert torch.equal(outputs(model, inputs), expected) and isinstance(model.up, Cast)
    assert torch.equal(outputs(copy.deepcopy(model), inputs), expected)
    update_(model, 0.4)
    pack_and_check(model, inputs)
    assert type(model.down) is Cast and type(model.head) is Cast and model.down.in_features < 16
    assert layout_of(model).modules.keys() == {"up", "down"}


class TestHeads:
    def test_the_head_is_what_makes_the_outputs_wherever_it_stands(self):
        class First(PlainCNN):
            """The classifier is registered before the layers that it reads."""

            def __init__(self) -> None:
                super().__init__()
                head = self.fc2
                del self.fc2
                children = dict(self.named_children())
                for name in children:
                    delattr(self, name)
                self.fc2 = head
                for name, child in children.items():
                    setattr(self, name, child)

        model = roughen(First())
        assert next(iter(dict(model.named_children()))) == "fc2"
        assert target_names(model, DendriticConfig(), pixels()) == ["conv1", "conv2", "fc1"]

    def test_a_head_of_another_kind_does_not_spare_the_last_layer(self):
        class Normed(PlainCNN):
            """As mobilenetv3 of timm, whose classifier was of no known class: its last convolution counted as head."""

            def __init__(self) -> None:
                super().__init__()
                self.fc2 = Twice(24, 5)

        assert target_names(roughen(Normed()), DendriticConfig(), pixels()) == ["conv1", "conv2", "fc1"]

    def test_several_heads_are_all_left(self):
        class Two(PlainCNN):
            def __init__(self) -> None:
                super().__init__()
                self.other = nn.Linear(24, 2)

            def forward(self, x):
                x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
                x = nn.functional.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
                x = torch.relu(self.fc1(x.flatten(1)))
                return self.fc2(x), self.other(x)

        assert target_names(roughen(Two()), DendriticConfig(), pixels()) == ["conv1", "conv2", "fc1"]

    def test_a_classifier_inside_the_base_model_is_a_head(self):
        """As in TimmWrapperForImageClassification, whose base model is the whole classifier of timm."""

        class Wrapped(PreTrainedModel):
            config_class, base_model_prefix, main_input_name = ResNetConfig, "timm_model", "x"

            def __init__(self, config):
                super().__init__(config)
                self.timm_model = PlainCNN()
                self.post_init()

            def forward(self, x):
                return {"logits": self.timm_model(x)}

        found = target_names(Wrapped(ResNetConfig()), DendriticConfig(), pixels())
        assert found == ["timm_model.conv1", "timm_model.conv2", "timm_model.fc1"]

    @pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit", "resnet_basic", "mobilenet", "convnext"])
    def test_marks_find_the_head_of_every_family(self, name):
        model, inputs = build(name)
        by_place = target_names(model, DendriticConfig())
        assert target_names(model, DendriticConfig(), inputs) == by_place

    def test_where_nothing_can_be_traced_it_is_the_last_layer(self):
        class Checks(PlainCNN):
            def forward(self, x):
                assert bool(x.isfinite().all()) and len(x) < 2
                return super().forward(x)

        assert target_names(roughen(Checks()), DendriticConfig(), pixels()) == ["conv1", "conv2", "fc1"]


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
    attention = nn.MultiheadAttention(8, 2)
    assert names(nn.Sequential(nn.Linear(8, 8), attention), target_modules=".*") == ["0"]
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert names(nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 2)), target_modules=".*") == ["0", "2"]
