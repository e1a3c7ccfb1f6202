"""PEFT adapters: refused by name below and on an injected model, at home on a packed one."""

import peft
import pytest
import torch
from helpers.compare import every
from helpers.models import build, outputs
from helpers.snapshots import same, snapshot
from helpers.trainers import CONFIG, make_trainer
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import nn

from optimum.dendritic import DendriticCallback, DendriticConfig, DendriticError, compress_, inject_, score_, update_

pytestmark = [  # PEFT's own: it calls what transformers deprecates, and renames where a model came from
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path`:UserWarning"),
]
MAGNITUDE = DendriticConfig(sparsity=0.5, segment_size=4, importance="magnitude")
LORA = LoraConfig(target_modules=["query", "value"], init_lora_weights=False)  # it adds something from the start


def packed(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model, inputs = build(name)
    inject_(model, MAGNITUDE, example_inputs=inputs)
    score_(model)
    update_(model, 0.5)
    return compress_(model, inputs), inputs


class TestUnder:
    @pytest.mark.parametrize(
        "adapt",
        [
            lambda model: get_peft_model(model, LORA),
            lambda model: get_peft_model(model, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)),
            lambda model: model.add_adapter(LORA) or model,
        ],
        ids=["wrapped", "prefix", "added"],
    )
    def test_a_model_with_adapters_is_refused_and_stays_as_it_was(self, adapt):
        model, inputs = build("bert")
        model = adapt(model)
        before = snapshot(model)
        with pytest.raises(DendriticError, match="PEFT adapters.*merge_and_unload"):
            inject_(model, MAGNITUDE, example_inputs=inputs)
        assert same(before, snapshot(model))

    def test_the_callback_refuses_it_when_the_trainer_is_built(self, tmp_path):
        model = get_peft_model(build("bert")[0], LORA)
        with pytest.raises(DendriticError, match="PEFT adapters"):
            make_trainer(tmp_path, [DendriticCallback(CONFIG)], model=model)

    def test_merged_first_it_is_a_model_like_any_other(self):
        model, inputs = build("bert")
        merged = get_peft_model(model, LORA).merge_and_unload()
        with pytest.raises(DendriticError, match="no prunable module is left"):  # PEFT leaves the weights frozen
            inject_(merged, MAGNITUDE, example_inputs=inputs)
        merged.requires_grad_(True)
        expected = outputs(merged, inputs)
        inject_(merged, MAGNITUDE, example_inputs=inputs)
        assert torch.equal(outputs(merged, inputs), expected)


class TestOnAnInjectedModel:
    @pytest.mark.parametrize(
        "step", [score_, lambda model: update_(model, 0.5), compress_], ids=["score_", "update_", "compress_"]
    )
    def test_it_is_refused_at_the_next_step(self, step):
        model, inputs = build("bert")
        inject_(model, MAGNITUDE, example_inputs=inputs)
        wrapped = get_peft_model(model, LORA)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(DendriticError, match="query was replaced after the injection.*packed"):
            step(model)
        assert every(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        wrapped.unload()
        step(model)


class TestOnAPackedModel:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "targets"), [("bert", ["query", "value", "dense"]), ("llama", ["q_proj", "o_proj"])]
    )
    def test_linear_layers_carry_lora(self, name, targets, tmp_path):
        model, inputs = packed(name)
        expected = outputs(model, inputs)
        adapted = get_peft_model(model, LoraConfig(target_modules=targets))
        assert torch.equal(outputs(adapted, inputs), expected), "a new adapter adds nothing"
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
        adapted(**inputs)["logits"].square().sum().backward()
        optimizer.step()
        trained = outputs(adapted, inputs)
        assert not torch.allclose(trained, expected)
        adapted.save_pretrained(tmp_path)
        fresh, _ = packed(name)
        assert torch.equal(outputs(PeftModel.from_pretrained(fresh, tmp_path).eval(), inputs), trained)
        assert torch.equal(outputs(adapted.unload(), inputs), expected)

    def test_layers_that_are_plain_can_be_merged(self):
        model, inputs = packed("bert")
        plain = [name for name, module in model.named_modules() if type(module) is nn.Linear and "output" in name]
        adapted = get_peft_model(model, LoraConfig(target_modules=plain, init_lora_weights=False)).eval()
        expected = outputs(adapted, inputs)
        assert torch.allclose(outputs(adapted.merge_and_unload(), inputs), expected, atol=1e-5)

    @pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
    def test_layers_that_gather_are_refused_before_any_is_merged(self, merge):
        model, inputs = packed("bert")
        adapted = get_peft_model(model, LORA).eval()
        expected = outputs(adapted, inputs)
        with pytest.raises(DendriticError, match="query gathers or scatters.*PeftModel.from_pretrained"):
            getattr(adapted, merge)()
        assert torch.equal(outputs(adapted, inputs), expected)

    def test_a_packed_convolution_is_refused_by_name(self):
        model, _ = packed("resnet_basic")
        with pytest.raises(DendriticError, match="PackedConv2d.*Name only linear layers"):
            get_peft_model(model, LoraConfig(target_modules=["convolution"]))


def test_peft_is_where_it_is_looked_for():
    assert issubclass(peft.tuners.lora.LoraLayer, peft.tuners.tuners_utils.BaseTunerLayer)
