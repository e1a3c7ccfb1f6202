"""What a config's target comes to for one model, in the units in which the model is counted."""

from ..config import DendriticConfig
from ..errors import invalid
from ..layout.times import Times
from .ranking import Ranking


def allowed_cost(config: DendriticConfig, dense_cost: int, times: Times | None) -> int:
    """What the packed model may cost, in the units of `dense_cost`; 0 where the target is a sparsity, which is a
    fraction already.

    Args:
        dense_cost: what the dense model costs.
        times: the measured table where the target is a time.

    Raises:
        DendriticError: the dense model costs no more than that.
    """
    if config.removed is not None:
        return 0
    dense: dict[str, float] = {"parameters": dense_cost, "megabytes": dense_cost / 1e6, "speedup": 1.0}
    dense |= {} if times is None else {"latency_ms": times.dense_ms}
    asked, has = vars(config)[config.target], dense[config.target]
    allowed = int(dense_cost * (has / asked if config.target == "speedup" else asked / has))
    if allowed >= dense_cost and config.target != "speedup":
        rule = f"the dense model has {has:,.10g} already"
        raise invalid(config.target, asked, rule, "Ask for less, or leave the model as it is.")
    return allowed


def check_factors(config: DendriticConfig, begin: float, sparsity: float) -> None:
    """Check that the factors of the embedding do not remove more than is to go.

    Args:
        begin: the fraction of the cost that they have removed.
        sparsity: the fraction that is to go, of the largest model.

    Raises:
        DendriticError: they do.
    """
    if config.embedding_rank is not None and begin > sparsity:
        rule = f"removes {begin:.4f} of the {config.counted} alone, where {sparsity:.4f} is to go"
        raise invalid("embedding_rank", config.embedding_rank, rule, "Choose a higher rank, or ask for less.")


def check_reachable(ranking: Ranking, sparsity: float) -> None:
    """Check that floors do not forbid the target.

    Args:
        ranking: that of the dense model, by whatever scores.
        sparsity: the fraction of its cost that is to go.

    Raises:
        DendriticError: less can go than has to.
    """
    config, least, dense_cost = ranking.config, ranking.least(), ranking.dense_cost
    if least > (1 - sparsity) * dense_cost:
        most = f"{1 - least / dense_cost:.4f}"
        rule = f"at most {most} of the {config.counted} can go with floor = {config.floor}"
        if config.target == "sparsity":
            raise invalid("sparsity", sparsity, rule, "Lower sparsity, floor or segment_size, or add target modules.")
        remedy = f"Ask for less with {config.target}, lower floor or segment_size, or add target modules."
        rule += f", and {sparsity:.4f} would have to"
        raise invalid(config.target, vars(config)[config.target], rule, remedy)
