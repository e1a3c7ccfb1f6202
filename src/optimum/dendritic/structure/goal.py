"""What a config's target comes to for one model, in the units in which the model is counted."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from ..config import DendriticConfig
from ..errors import invalid
from ..functional.costs import Cost
from ..functional.selection import select, total_cost
from ..functional.uniform_selection import select_uniform
from ..layout.records import Dial
from ..layout.times import Times


def allowed_cost(config: DendriticConfig, dense_cost: int, times: Times | None) -> int:
    """What the packed model may cost, in the units of `dense_cost`; 0 where the target is a sparsity, which is a
    fraction already.

    Args:
        dense_cost: what the dense model costs.
        times: the measured table where the target is a time.

    Raises:
        DendriticError: the dense model costs no more than that.
    """
    if config.sparsity is not None:
        return 0
    dense: dict[str, float] = {"parameters": dense_cost, "megabytes": dense_cost / 1e6, "speedup": 1.0}
    dense |= {} if times is None else {"latency_ms": times.dense_ms}
    asked, has = vars(config)[config.target], dense[config.target]
    allowed = int(dense_cost * (has / asked if config.target == "speedup" else asked / has))
    if allowed >= dense_cost and config.target != "speedup":
        rule = f"the dense model has {has:,.10g} already"
        raise invalid(config.target, asked, rule, "Ask for less, or leave the model as it is.")
    return allowed


def check_reachable(
    config: DendriticConfig,
    dense: Mapping[str, Tensor],
    costs: Mapping[str, Cost],
    *,
    sparsity: float,
    dials: Sequence[Dial],
    needed: Collection[str],
    together: Mapping[str, int],
) -> None:
    """Check that floors do not forbid the target.

    Args:
        dense: the masks of the dense model.
        sparsity: the fraction of its cost that is to go.
        needed: see `select`.
        together: see `select`.

    Raises:
        DendriticError: less can go than has to.
    """
    scores = {name: mask.float() for name, mask in dense.items()}
    fewest = select_uniform(scores, dense, costs, -1, config.floor, dials, together=together) if dials else None
    least = total_cost(
        fewest or select(scores, dense, costs, -1, config.floor, needed=needed, together=together), costs
    )
    dense_cost = total_cost(dense, costs)
    if least > (1 - sparsity) * dense_cost:
        most = f"{1 - least / dense_cost:.4f}"
        rule = f"at most {most} of the {config.counted} can go with floor = {config.floor}"
        if config.target != "sparsity":
            rule += f", and {sparsity:.4f} would have to"
        remedy = f"Ask for less with {config.target}, lower floor or segment_size, or add target modules."
        if config.target == "sparsity":
            remedy = "Lower sparsity, floor or segment_size, or add target modules."
        raise invalid(config.target, vars(config)[config.target], rule, remedy)
