"""An agent that learns to divide the budget: PPO of stable-baselines3. It finds the best episode that it has seen.

Needs the extra `rl`.
"""

from .objective import Objective, Vector


def learn(objective: Objective, *, evaluations: float, seed: int, start: str = "global") -> Vector:
    """The fractions of the best episode.

    Args:
        objective: what is minimised.
        evaluations: how often all batches may be run; each episode does once.
        seed: of the agent.
        start: the division around which it begins to explore, see `AllocationEnv`.

    Raises:
        ImportError: a package of the extra `rl` is missing.
    """
    try:
        from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]
        from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]

        from .environment import AllocationEnv
    except ImportError as error:
        raise ImportError(f"{error}. Install it: pip install optimum-dendritic[rl]") from error

    class Enough(BaseCallback):
        """Ends the training when everything is spent."""

        def _on_step(self) -> bool:
            return objective.spent < evaluations

    env = AllocationEnv(objective, start)
    gates = len(objective.names)
    steps = 4 * gates
    near = {"log_std_init": -1.5} if start == "global" else None  # of a start that is good, the neighbours are tried
    model = PPO(
        "MlpPolicy", env, n_steps=steps, batch_size=steps, seed=seed, device="cpu", gamma=1.0, policy_kwargs=near
    )
    model.learn(total_timesteps=int(10 * gates * max(1.0, evaluations)), callback=Enough())
    return env.best
