"""Evolution by switches at equal cost (EvoPress, Sieberling et al. 2024), from the global ranking on.

A child is its parent with a few switches: one gate keeps more, another one less, by the same cost. Children are judged
on one batch first, the best of them on more, and the best of these and the parent on all.
"""

import random

from .objective import Objective, Vector

CHILDREN, FINALISTS = 12, 3
STEPS = (0.02, 0.05, 0.1, 0.2)  # of the cost of the gate that gives


def evolve(objective: Objective, *, evaluations: float, seed: int) -> Vector:
    """The best fractions found.

    Args:
        objective: what is minimised.
        evaluations: how often all batches may be run.
        seed: of the switches.
    """
    generator = random.Random(seed)
    parent = objective.fractions(objective.masks(None))
    value = objective.loss(parent)
    while objective.spent < evaluations and len(parent) > 1:
        children = [switched(parent, objective, generator) for _ in range(CHILDREN)]
        for count, left in ((1, FINALISTS), (max(1, objective.batches // 3), 1)):
            if count < objective.batches:
                children = sorted(children, key=lambda child: objective.loss(child, count))[:left]
        for child in children:
            found = objective.loss(child)
            if found < value:
                parent, value = child, found
    return parent


def switched(parent: Vector, objective: Objective, generator: random.Random) -> Vector:
    """The parent after one to three switches; most often one."""
    child = list(parent)
    for _ in range(min(generator.randint(1, 3), generator.randint(1, 3))):
        more, less = generator.sample(range(len(child)), 2)
        given = min(generator.choice(STEPS) * objective.costs[less], child[less] * objective.costs[less])
        given = min(given, (1 - child[more]) * objective.costs[more])
        child[less] -= given / max(objective.costs[less], 1e-12)
        child[more] += given / max(objective.costs[more], 1e-12)
    return tuple(min(1.0, max(0.0, each)) for each in child)
