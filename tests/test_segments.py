"""A weight as tiles: one formula for Linear, convolutions and the transposed Conv1D."""

import pytest
import torch
from helpers.compare import every
from hypothesis import given
from hypothesis import strategies as st

from optimum.dendritic.functional.tiles import kept_inputs, largest_divisor, over_tiles, sum_tiles, tiles

sizes = st.integers(1, 4)
SHAPES = {
    "linear": (torch.randn(6, 8), False),
    "conv": (torch.randn(6, 8, 3, 2), False),
    "channels_last": (torch.randn(6, 8, 3, 2).to(memory_format=torch.channels_last), False),
    "conv1d": (torch.randn(8, 6), True),
}


@given(sizes, sizes, sizes, sizes, st.lists(st.integers(1, 3), max_size=2), st.booleans())
def test_tile_a_s_holds_the_weights_from_segment_s_to_arbor_a(arbors, rows, segments, size, kernel, transposed):
    weight = torch.randn(arbors * rows, segments * size, *([] if transposed else kernel))
    found = tiles(weight.t() if transposed else weight, arbors, segments, transposed)
    for a in range(arbors):
        for s in range(segments):
            part = weight[a * rows : (a + 1) * rows, s * size : (s + 1) * size]
            assert torch.equal(found[a, :, s], part.reshape(rows, size, -1))


@pytest.mark.parametrize("name", SHAPES)
def test_writing_to_a_tile_writes_to_the_weight_and_to_nothing_else(name):
    stock, transposed = SHAPES[name]
    weight = stock.clone()
    tiles(weight, 2, 4, transposed)[1, :, 2] = 0
    rows = (weight.t() if transposed else weight)[3:, 4:6]
    assert every(rows == 0) and int((weight != stock).sum()) == rows.numel()


@pytest.mark.parametrize("name", SHAPES)
def test_a_mask_spreads_over_its_tiles(name):
    weight, transposed = SHAPES[name]
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    parts = tiles(weight, 2, 4, transposed)
    expected = sum_tiles(parts) * mask
    assert torch.allclose(sum_tiles(parts * over_tiles(mask)), expected)


def test_sums_of_half_precision_are_taken_in_single_precision():
    parts = tiles(torch.full((4, 4096), 1.0, dtype=torch.bfloat16), 1, 1)
    assert sum_tiles(parts).dtype == torch.float32 and sum_tiles(parts).item() == 4 * 4096


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 5))
def test_kept_inputs_are_those_of_the_kept_segments_in_order(kept, size):
    expected = [s * size + i for s, keep in enumerate(kept) if keep for i in range(size)]
    assert kept_inputs(torch.tensor(kept), size).tolist() == expected


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 80))
def test_the_largest_divisor_divides_and_none_larger_fits(count, block, at_most):
    number = count * block
    found = largest_divisor(number, at_most, multiple_of=block)
    fitting = [d for d in range(1, at_most + 1) if number % d == 0 and d % block == 0]
    assert number % found == 0 and found % block == 0
    assert found == max(fitting, default=block)
