"""A step of the training waits for no device: scores and masks are made where the weights are.

What would wait is seen on a CPU as well: an operation whose result Python, or the shape of a tensor, depends on.
"""

import pytest
import torch
from helpers.models import backward, build
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import logging

from optimum.dendritic import DendriticConfig, inject_, mask_, score_, update_
from optimum.dendritic.functional.transfer import packed, unpacked

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.lift_fresh, aten.unique_dim}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class NothingWaits(TorchDispatchMode):
    """Fails at an operation that would wait for the device, or bring data to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.overloadpacket in INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert func.overloadpacket not in WAITING and not by_mask, f"{func} waits"
        return func(*args, **(kwargs or {}))


def test_the_mode_sees_what_waits():
    mask = torch.tensor([True, False])
    waits = (
        lambda: bool(mask.any()),
        lambda: mask.nonzero(),
        lambda: mask[mask],
        lambda: torch.tensor([1]),
        lambda: torch.equal(mask, mask),
    )
    for wait in waits:
        with pytest.raises(AssertionError, match="waits"), NothingWaits():
            wait()


FIELDS = {
    "fine": {},
    "sprouts": {"sprout_rank": 2},
    "structured": {"units": "structured"},
    "activity": {"importance": "activation"},
    "magnitude": {"importance": "magnitude", "arbors": 2},
}
CASES = [
    *(("bert", fields) for fields in FIELDS),
    ("gpt2", "structured"),
    ("resnet_basic", "structured"),
    ("lstm", "fine"),
]


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_scores_and_masks_are_made_without_waiting(name, fields):
    model, inputs = build(name)
    config = DendriticConfig(sparsity=0.5, segment_size=4, floor=0.0, **FIELDS[fields])
    inject_(model, config, example_inputs=inputs)
    for sparsity in (0.2, 0.4):
        backward(model, inputs)
        with NothingWaits():
            score_(model)
        update_(model, sparsity, regrow=0.1)
        with NothingWaits():
            mask_(model)


def test_a_step_that_is_not_finite_leaves_the_scores_and_the_next_update_says_so(caplog):
    model, inputs = build("bert")
    inject_(model, DendriticConfig(sparsity=0.5, segment_size=4), example_inputs=inputs)
    backward(model, inputs)
    score_(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("dendrite_score")}
    next(p for name, p in model.named_parameters() if name.endswith("query.weight")).grad[0, 0] = torch.nan
    score_(model)
    assert any(bool(score.any()) for score in before.values())
    assert all(torch.equal(score, model.get_buffer(name)) for name, score in before.items())
    logging.warning_once.cache_clear()  # whatever other tests have heard
    caplog.set_level("WARNING", logger="optimum.dendritic")
    for sparsity in (0.2, 0.3):
        update_(model, sparsity)
    assert caplog.text.count("such a step is not scored") == 1


@pytest.mark.parametrize("dtypes", [(torch.bool, torch.float32, torch.bfloat16), (torch.float64, torch.bool)])
def test_tensors_that_travel_together_are_what_they_were(dtypes):
    tensors = [torch.rand(3, n).mul(3).to(dtype) for n, dtype in enumerate((*dtypes, *dtypes))]
    for before, after in zip(tensors, unpacked(packed(tensors), tensors), strict=True):
        assert before.dtype == after.dtype and torch.equal(before, after)
