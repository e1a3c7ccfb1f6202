"""An agent that learns to divide the budget, of stable-baselines3. The best episode that it has seen is what it found.

Needs the extra `rl`.
"""

from .objective import Objective, Vector

AGENTS = ("ppo", "ddpg")


def learn(objective: Objective, *, evaluations: float, seed: int, agent: str = "ppo") -> Vector:
    """The fractions of the best episode.

    Args:
        objective: what is minimised.
        evaluations: how often all batches may be run; each episode does once.
        seed: of the agent.
        agent: one of `AGENTS`.

    Raises:
        ImportError: a package of the extra `rl` is missing.
    """
    try:
        import numpy as np
        from stable_baselines3 import DDPG, PPO  # pyright: ignore[reportMissingImports]
        from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
        from stable_baselines3.common.noise import NormalActionNoise  # pyright: ignore[reportMissingImports]

        from .environment import AllocationEnv
    except ImportError as error:
        raise ImportError(f"{error}. Install it: pip install optimum-dendritic[rl]") from error

    class Enough(BaseCallback):
        """Ends the training when everything is spent."""

        def _on_step(self) -> bool:
            return objective.spent < evaluations

    env = AllocationEnv(objective)
    gates = len(objective.names)
    if agent == "ppo":
        steps = 4 * gates
        model = PPO("MlpPolicy", env, n_steps=steps, batch_size=steps, seed=seed, device="cpu", gamma=1.0)
    else:
        noise = NormalActionNoise(np.zeros(1), np.full(1, 0.5))
        model = DDPG(
            "MlpPolicy", env, action_noise=noise, learning_starts=4 * gates, seed=seed, device="cpu", gamma=1.0
        )
    model.learn(total_timesteps=int(10 * gates * max(1.0, evaluations)), callback=Enough())
    return env.best
