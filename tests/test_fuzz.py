"""Any config on any model: built, injected, trained, pruned, packed, saved and loaded, or refused with nothing changed.

Three cases a family by default. `pytest tests/test_fuzz.py --hypothesis-profile=fuzz` tries new ones, many more; the
number of cases is in the last lines of pytest's report (`conftest.py`).
"""

import tempfile
from typing import Any

import pytest
import torch
from helpers.compare import every
from helpers.models import FACTORIES, Inputs, build, outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from optimum.dendritic import (
    DendriticConfig,
    DendriticError,
    compress_,
    inject_,
    mask_,
    score_,
    update_,
    update_plan,
)
from optimum.dendritic.config import BUDGETS, IMPORTANCES
from optimum.dendritic.schedules import SCHEDULES
from optimum.dendritic.state import layout_of

pytestmark = pytest.mark.slow

STEPS = 4
SLOW = ("mobilenet", "t5", "resnet_bottleneck")

sparsities = st.sampled_from([0.0, 0.5, 0.9, 0.99]) | st.floats(0, 0.999)
fields = st.fixed_dictionaries(
    {
        "sparsity": sparsities,
        "budget": st.sampled_from(BUDGETS),
        "segment_size": st.sampled_from([1, 2, 3, 4, 7, 32, 4096]),
        "arbors": st.integers(1, 4),
        "importance": st.sampled_from(IMPORTANCES),
        "schedule": st.sampled_from(list(SCHEDULES)),
        "start": st.sampled_from([0.0, 0.3]),
        "end": st.sampled_from([0.5, 1.0]),
        "regrow": st.floats(0, 0.9),
        "updates": st.integers(1, 2 * STEPS),
        "decay": st.floats(0, 0.999),
        "floor": st.sampled_from([0.0, 0.02, 0.3]),
        "seed": st.integers(0, 9),
        "sprout_rank": st.sampled_from([0, 0, 1, 3]),
        "target_modules": st.sampled_from([None, None, ".*"]),
    }
)


def train(model: nn.Module, inputs: Inputs, config: DendriticConfig) -> None:
    """A few steps on random targets, by the public functions, to the end of the schedule."""
    plan = update_plan(config, STEPS)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for step in range(1, STEPS + 1):
        found: Any = model(**inputs)
        answer: Tensor = found if isinstance(found, Tensor) else found["logits"]
        (answer - torch.linspace(-1, 1, answer.shape[-1])).square().mean().backward()
        score_(model)
        if step in plan:
            update_(model, plan[step].sparsity, regrow=plan[step].regrow, optimizer=optimizer)
        optimizer.step()
        mask_(model)
        optimizer.zero_grad()
    model.eval()


def same(found: Tensor, expected: Tensor) -> bool:
    return bool(found.isfinite().all()) and torch.allclose(
        found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
    )


def live_or_refuse(name: str, seed: int, fields: dict[str, Any]) -> None:
    model, inputs = build(name, seed)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    config = DendriticConfig(**fields)
    try:
        inject_(model, config, example_inputs=inputs)
    except DendriticError:  # more sparsity than the floors allow, for example
        after = model.state_dict()
        assert layout_of(model) is None and after.keys() == before.keys()
        assert every(torch.equal(after[key], before[key]) for key in before)
        return
    train(model, inputs, config)
    masked = outputs(model, inputs)
    compress_(model, inputs)
    assert same(outputs(model, inputs), masked)
    if isinstance(model, PreTrainedModel):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            loaded = type(model).from_pretrained(folder)
        tensors = model.state_dict()
        assert every(torch.equal(tensor, tensors[key]) for key, tensor in loaded.state_dict().items())
        assert same(outputs(loaded, inputs), masked)


@pytest.mark.parametrize("name", FACTORIES)
def test_any_config_on_any_model(name, record_property):
    examples, tried = settings().max_examples, 0

    @settings(max_examples=examples // (30 if name in SLOW else 10))
    @given(st.integers(0, 99), fields)
    def check(seed, fields):
        nonlocal tried
        tried += 1
        live_or_refuse(name, seed, fields)

    check()
    record_property("cases", tried)
