"""The division of the budget as a Gymnasium environment, after AMC (He et al. 2018): one step for each gate.

Needs the extra `rl`.
"""

from typing import Any

import gymnasium  # pyright: ignore[reportMissingImports]
import numpy as np

from ..config import UNITS
from ..errors import invalid
from .objective import Objective

STARTS = ("global", "uniform")
WIDTH = len(UNITS) + 7  # of an observation


class AllocationEnv(gymnasium.Env):
    """An episode divides the budget once, gate by gate.

    The observation tells the next gate: its kind, the logarithm of its size, its cost and its share of all importance,
    what the global ranking keeps of it, where it stands, what of the budget is left if all the others were kept, and
    the action before. The action, in [-1, 1], is how much of it is kept, from nothing to all; 0 keeps as much as the
    start does. The reward comes at the end: how far the loss is below that
    of the uniform division, relative to the distance of that one from the dense loss; 0 before.

    Attributes:
        best: The fractions of the best episode so far; those of the better control before there is a better one.
        best_loss: Its loss.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, objective: Objective, start: str = "global") -> None:
        """
        Args:
            start: which division actions of 0 are: that of the `"global"` ranking, or the `"uniform"` one.
        """
        if start not in STARTS:
            raise invalid("start", start, f"must be one of {', '.join(STARTS)}", "Leave it at its default.")
        self.objective = objective
        self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (WIDTH,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        uniform = tuple(0.0 for _ in objective.names)
        self._uniform = objective.loss(uniform)
        self._ranked = objective.fractions(objective.masks(None))
        self._start = self._ranked if start == "global" else tuple(0.5 for _ in objective.names)
        self._scale = max(abs(self._uniform - objective.dense_loss()), 1e-6)
        self.best_loss, self.best = min((self._uniform, uniform), (objective.loss(self._ranked), self._ranked))
        self._kept: list[float] = []
        self._last = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode."""
        super().reset(seed=seed)
        self._kept, self._last = [], 0.0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Keep so much of the next gate."""
        start = self._start[len(self._kept)]
        by = float(np.clip(np.asarray(action).reshape(-1)[0], -1.0, 1.0))
        self._kept.append(start * (1 + by) if by < 0 else start + (1 - start) * by)
        self._last = by
        done = len(self._kept) == len(self.objective.names)
        reward = 0.0
        if done:
            kept = tuple(self._kept)
            loss = self.objective.loss(kept)
            reward = float(np.clip((self._uniform - loss) / self._scale, -10.0, 10.0))
            if loss < self.best_loss:
                self.best, self.best_loss = kept, loss
        return self._observation(), reward, done, False, {}

    def _observation(self) -> np.ndarray:
        own, index = self.objective, min(len(self._kept), len(self.objective.names) - 1)
        gone = sum((1 - kept) * cost for kept, cost in zip(self._kept, own.costs, strict=False))
        kind = [float(own.kinds[index] == kind) for kind in UNITS]
        place = index / max(1, len(own.names) - 1)
        told = [np.log10(own.sizes[index]), own.costs[index], own.masses[index], self._ranked[index]]
        told += [place, own.sparsity - gone, self._last]
        return np.clip(np.array([*kind, *told], np.float32), -10.0, 10.0)
