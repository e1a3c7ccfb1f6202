"""timm's models and its own layers: what is pruned of them, and what is the head.

The architectures are timm's, with random weights, since the trained ones lie on the Hub; that they train, are saved and
are loaded in a fresh process is in `test_clients.py`. torchvision, which timm imports, may be here without its compiled
operators, of which no model of timm calls one (`helpers/torchvision_operators.py`).
"""

import pytest
import torch
import transformers as hf
from helpers.clients import TIMM, draw, timm_model
from torch import nn

from optimum.dendritic import DendriticConfig, compress_, inject_, prune_
from optimum.dendritic.nn import is_prunable
from optimum.dendritic.state import layout_of

timm = pytest.importorskip("timm", reason="timm is absent: pip install -c constraints.txt '.[clients]'")

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.filterwarnings("default")]
CONFIG = DendriticConfig(sparsity=0.4, segment_size=16, importance="magnitude")
STRIDED = {"kernel_size": 3, "stride": 2}


def wrapped() -> nn.Module:
    return hf.TimmWrapperForImageClassification(hf.TimmWrapperConfig(architecture=TIMM, num_labels=3))


@pytest.mark.parametrize(("make", "prefix", "name"), [(timm_model, "", "x"), (wrapped, "timm_model.", "pixel_values")])
def test_the_classifier_stays_dense_and_the_layer_before_it_goes(make, prefix, name):
    model, inputs = make(), {name: draw(2, 3, 32, 32)}
    head, before = model.get_submodule(prefix + "classifier"), model.get_submodule(prefix + "conv_head")
    inject_(model, CONFIG, example_inputs=inputs)
    assert model.get_submodule(prefix + "classifier") is head and type(head) is timm.layers.Linear
    prune_(model, [inputs])
    compress_(model, inputs)
    small, modules = model.get_submodule(prefix + "conv_head"), layout_of(model).modules
    assert prefix + "conv_head" in modules and small.weight.numel() < 0.6 * before.weight.numel()
    assert prefix + "classifier" not in modules and head.weight.shape == (3, 1024)


@pytest.mark.parametrize(
    ("layer", "prunable"),
    [
        (lambda layers: layers.Linear(4, 6), True),
        (lambda layers: layers.Conv2dSame(4, 6, 1), True),
        (lambda layers: layers.Conv2dSame(4, 6, **STRIDED), False),  # pads by the size of its input
        (lambda layers: layers.StdConv2d(4, 6, 3), False),  # computes its weight
    ],
    ids=["Linear", "Conv2dSame, nothing to pad", "Conv2dSame", "StdConv2d"],
)
def test_a_layer_of_timm_is_prunable_where_it_computes_as_the_stock_one(layer, prunable):
    assert is_prunable(layer(timm.layers)) is prunable


def test_layers_of_timm_get_smaller_and_keep_their_class():
    layers = timm.layers
    torch.manual_seed(0)
    model = nn.Sequential(layers.Linear(16, 32), nn.GELU(), layers.Linear(32, 16), nn.GELU(), layers.Linear(16, 3))
    inputs = {"input": draw(2, 16)}
    inject_(model, CONFIG, example_inputs=inputs)
    prune_(model, [inputs])
    with torch.no_grad():
        expected = model(**inputs)
        found = compress_(model, inputs)(**inputs)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert type(model[2]) is layers.Linear and model[2].weight.numel() < 0.7 * 32 * 16
