"""Widths that stay multiples of a number: all that packing makes smaller, for every kind of unit."""

import pytest
from helpers.models import build
from helpers.packing import pack_and_check

from optimum.dendritic import DendriticConfig, compress_, inject_, update_
from optimum.dendritic.layout.records import Form, Recurrent
from optimum.dendritic.nn import is_weight_layer, widths
from optimum.dendritic.state import gates_of, layout_of

MODELS = [
    ("bert", "structured"),
    ("gpt2", "fine"),
    ("llama", "structured"),
    ("t5", "structured"),
    ("vit", "structured"),
    ("resnet_bottleneck", "structured"),
    ("mobilenet", "fine"),
    ("convnext", "structured"),
    ("residual_mlp", "fine"),
    ("grouped_cnn", "fine"),
    ("lstm", "fine"),
]
BESIDE = {"importance": "random", "floor": 0.0, "segment_size": 2, "regrow": 0.3}


def numbers(record: Form | Recurrent, dense: tuple[int, int]) -> list[tuple[int, int]]:
    """Each width of a packed layer, with that of the dense one."""
    if isinstance(record, Recurrent):
        return [(record.kept, record.hidden)]
    inputs, outputs = dense
    return [(record.inputs, inputs), (record.kept, inputs), (record.outputs, outputs), (sum(record.arbors), outputs)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "units"), MODELS)
def test_every_width_is_a_multiple_or_the_dense_one(name, units):
    model, inputs = build(name)
    inject_(model, DendriticConfig(sparsity=0.4, multiple_of=4, units=units, **BESIDE), example_inputs=inputs)
    full = {n: widths(m) for n, m in model.named_modules() if is_weight_layer(m)}
    update_(model, 0.2)
    assert update_(model, 0.4, regrow=0.3).sparsity >= 0.4
    pack_and_check(model, inputs)
    layout = layout_of(model)
    assert layout is not None
    packed = {n: record for n, record in layout.modules.items() if isinstance(record, Form | Recurrent)}
    found = [pair for n, record in packed.items() for pair in numbers(record, full.get(n, (0, 0)))]
    assert all(width % 4 == 0 or width == dense for width, dense in found)
    assert any(width < dense for width, dense in found)


def test_the_budget_is_met_to_within_one_such_step():
    steps = {}
    for multiple_of in (1, 4):
        model, inputs = build("bert")
        config = DendriticConfig(sparsity=0.3, multiple_of=multiple_of, units="structured", **BESIDE)
        inject_(model, config, example_inputs=inputs)
        largest = max(1 / gate.dendrite_mask.shape[1] for gate in gates_of(model).values())
        steps[multiple_of] = update_(model, 0.3).sparsity
        assert 0.3 <= steps[multiple_of] <= 0.3 + multiple_of * largest
    assert steps[1] <= steps[4]


def test_native_turns_its_dials_by_such_steps():
    model, inputs = build("bert")
    config = DendriticConfig(sparsity=0.55, native=True, multiple_of=8, importance="random")
    inject_(model, config, example_inputs=inputs)
    update_(model, 0.55)
    compress_(model, inputs)
    assert model.config.intermediate_size % 8 == 0
