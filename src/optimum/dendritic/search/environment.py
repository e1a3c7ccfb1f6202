"""The division of the budget as a Gymnasium environment, after AMC (He et al. 2018): one step for each gate.

Needs the extra `rl`.
"""

from typing import Any

import gymnasium  # pyright: ignore[reportMissingImports]
import numpy as np

from ..config import UNITS
from .objective import Objective, Vector

WIDTH = len(UNITS) + 6  # of an observation


class AllocationEnv(gymnasium.Env):
    """An episode divides the budget once, gate by gate.

    The observation tells the next gate: its kind, the logarithm of its size, its cost and its share of all importance,
    where it stands, what of the budget is left if all the others were kept, and the action before. The action, in
    [-1, 1], is how much of it is kept, from nothing to all. The reward comes at the end: how far the loss is below that
    of the uniform division, relative to the distance of that one from the dense loss; 0 before.

    Attributes:
        best: The fractions of the best episode so far; the uniform division before there is a better one.
        best_loss: Its loss.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (WIDTH,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        uniform = tuple(0.0 for _ in objective.names)
        self._uniform = objective.loss(uniform)
        self._scale = max(abs(self._uniform - objective.dense_loss()), 1e-6)
        self.best: Vector = uniform
        self.best_loss = self._uniform
        self._kept: list[float] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new episode."""
        super().reset(seed=seed)
        self._kept = []
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Keep so much of the next gate."""
        self._kept.append((float(np.clip(np.asarray(action).reshape(-1)[0], -1.0, 1.0)) + 1) / 2)
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
        before = 2 * self._kept[-1] - 1 if self._kept else 0.0
        kind = [float(own.kinds[index] == kind) for kind in UNITS]
        place = index / max(1, len(own.names) - 1)
        told = [np.log10(own.sizes[index]), own.costs[index], own.masses[index], place, own.sparsity - gone, before]
        return np.clip(np.array([*kind, *told], np.float32), -10.0, 10.0)
