"""A model built from the config of a packed one has its shapes, and takes its tensors."""

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from helpers.checkpoints import saved
from helpers.models import build, outputs
from transformers import AutoConfig, AutoModelForSequenceClassification

from optimum.dendritic import DendriticError, from_config
from optimum.dendritic.state import layout_of


@pytest.mark.slow
@pytest.mark.parametrize("form", ["packed", "injected"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "resnet_basic", "mobilenet"])
def test_it_has_the_shapes_and_runs(name, form, tmp_path):
    model, inputs = saved(tmp_path, name, form)
    new = from_config(AutoConfig.from_pretrained(tmp_path))
    assert type(new) is type(model) and layout_of(new) == layout_of(model)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert {key: tensor.shape for key, tensor in new.state_dict().items()} == shapes
    assert bool(outputs(new.eval(), inputs).isfinite().all())
    new.load_state_dict(model.state_dict())
    assert torch.equal(outputs(new, inputs), outputs(model.eval(), inputs))
    assert layout_of(from_config(model.config)) == layout_of(model), "the config of the model itself will do"


def test_accelerate_fills_it(tmp_path):
    model, inputs = saved(tmp_path, "bert", "packed")
    with init_empty_weights():
        empty = from_config(AutoConfig.from_pretrained(tmp_path))
    assert all(parameter.is_meta for parameter in empty.parameters())
    filled = load_checkpoint_and_dispatch(empty, str(tmp_path), device_map={"": "cpu"})
    assert torch.equal(outputs(filled.eval(), inputs), outputs(model.eval(), inputs))


def test_a_stock_config_is_refused():
    with pytest.raises(DendriticError, match="has no quantization_config"):
        from_config(build("bert")[0].config)
    assert AutoModelForSequenceClassification.from_config(build("bert")[0].config) is not None
