"""A number of parameters or of megabytes as the target: what the packed model has is at most that, and close to it."""

import pytest
from helpers.models import build

from optimum.dendritic import (
    DendriticConfig,
    DendriticError,
    compress_,
    inject_,
    target_sparsity,
    update_,
    update_plan,
)
from optimum.dendritic.config import TARGETS
from optimum.dendritic.efficiency.size import count_parameters, serialised_bytes
from optimum.dendritic.functional.selection import total_cost
from optimum.dendritic.state import gates_of
from optimum.dendritic.structure.model_costs import layer_costs
from optimum.dendritic.structure.rest_costs import HEADER

MODELS = [("bert", "structured"), ("gpt2", "fine"), ("resnet_bottleneck", "structured"), ("grouped_cnn", "fine")]
MODELS += [("lstm", "fine"), ("convnext", "fine")]
BESIDE = {"importance": "random", "floor": 0.0, "segment_size": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "units"), MODELS)
def test_a_packed_model_has_at_most_as_many_parameters_as_were_asked_for(name, units):
    model, inputs = build(name)
    dense = count_parameters(model)
    inject_(model, DendriticConfig(parameters=int(0.75 * dense), units=units, **BESIDE), example_inputs=inputs)
    update_(model, target_sparsity(model))
    masks = {host: gate.dendrite_mask for host, gate in gates_of(model).items()}
    counted = total_cost(masks, layer_costs(model))
    compress_(model, inputs)
    assert count_parameters(model) == counted <= 0.75 * dense
    assert counted > 0.55 * dense  # one unit of these tiny models is much


@pytest.mark.slow
@pytest.mark.parametrize(("name", "units"), MODELS)
def test_the_file_of_a_packed_model_is_at_most_as_large_as_was_asked_for(name, units):
    model, inputs = build(name)
    dense = serialised_bytes(model)
    inject_(model, DendriticConfig(megabytes=0.85 * dense / 1e6, units=units, **BESIDE), example_inputs=inputs)
    update_(model, target_sparsity(model))
    masks = {host: gate.dendrite_mask for host, gate in gates_of(model).items()}
    costs = layer_costs(model)
    counted, header = total_cost(masks, costs), costs[HEADER].cost(masks, HEADER)
    compress_(model, inputs)
    size = serialised_bytes(model)
    assert size <= counted <= 0.85 * dense
    tensors = sum(
        t.numel() * t.element_size() for t in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values()
    )
    assert tensors <= counted - header <= 1.05 * tensors


@pytest.mark.parametrize("field", ["parameters", "megabytes"])
def test_what_the_dense_model_has_already_is_refused(field):
    model, inputs = build("bert")
    with pytest.raises(DendriticError, match=f"^{field} = .*the dense model has .* already"):
        inject_(model, DendriticConfig(**{field: 1e9}), example_inputs=inputs)


@pytest.mark.parametrize("field", ["parameters", "megabytes"])
def test_what_floors_forbid_is_refused(field):
    model, inputs = build("bert")
    with pytest.raises(DendriticError, match=f"^{field} = .*can go with floor"):
        inject_(model, DendriticConfig(**{field: 1e-3 if field == "megabytes" else 10}), example_inputs=inputs)


def test_two_targets_are_refused_and_none_is_a_sparsity():
    assert DendriticConfig().target == "sparsity" and DendriticConfig().sparsity == 0.6
    with pytest.raises(DendriticError, match="^speedup = 2: is a second target beside sparsity = 0.5"):
        DendriticConfig(sparsity=0.5, speedup=2)
    with pytest.raises(DendriticError, match="^budget = 'macs'"):
        DendriticConfig(speedup=2, budget="macs")
    for field in TARGETS[1:]:
        assert DendriticConfig(**{field: 3}).sparsity is None
        with pytest.raises(DendriticError, match=f"^{field} = "):
            DendriticConfig(**{field: 0})


def test_a_plan_of_another_target_needs_the_injected_model():
    model, inputs = build("bert")
    config = DendriticConfig(parameters=0.8 * count_parameters(model), floor=0)
    with pytest.raises(DendriticError, match="^sparsity = None: depends on the model"):
        update_plan(config, 100)
    inject_(model, config, example_inputs=inputs)
    plan = update_plan(config, 100, target_sparsity(model))
    assert plan[max(plan)].sparsity == pytest.approx(0.2, abs=1e-3)
