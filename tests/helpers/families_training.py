"""A family's training by the plain functions, and what its answers are compared by."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from helpers.models import Inputs
from optimum.dendritic import DendriticConfig, mask_, score_, update_, update_plan


@torch.no_grad()
def logits(model: nn.Module, inputs: Inputs) -> Tensor:
    return model.eval()(**inputs)["logits"]


def close(found: Tensor, expected: Tensor, rtol: float = 1e-5) -> bool:
    return torch.allclose(found, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


def train(model: nn.Module, batches: Iterator[Inputs], steps: int, config: DendriticConfig) -> None:
    """The loop of the README."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    plan = update_plan(config, steps)
    for step in range(1, steps + 1):
        model(**next(batches)).loss.backward()
        score_(model)
        if step in plan:
            update_(model, plan[step].sparsity, regrow=plan[step].regrow, optimizer=optimizer)
        optimizer.step()
        mask_(model)
        optimizer.zero_grad()
    model.eval()


def endless(batch: Inputs) -> Iterator[Inputs]:
    while True:
        yield batch
