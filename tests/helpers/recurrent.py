"""The sizes of the recurrent layers under test, and inputs for them."""

import torch
from torch import Tensor

INPUT, HIDDEN, KEPT, TIME, BATCH = 5, 8, 3, 4, 3


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
