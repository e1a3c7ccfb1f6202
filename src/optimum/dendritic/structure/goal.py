"""What a config's target comes to for one model, in the units in which the model is counted."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from ..config import DendriticConfig
from ..errors import invalid
from ..functional.costs import Cost
from ..functional.selection import select, total_cost
from ..functional.uniform_selection import select_uniform
from ..layout.records import Dial


def allowed_cost(config: DendriticConfig, dense_cost: int) -> int:
    """What the packed model may cost where the target is a number of parameters or of megabytes; 0 for a sparsity,
    which is a fraction already.

    Args:
        dense_cost: what the dense model costs.

    Raises:
        DendriticError: the dense model costs no more than that.
    """
    if config.sparsity is not None:
        return 0
    allowed = int(1e6 * config.megabytes) if config.megabytes is not None else int(config.parameters or 0)
    if allowed >= dense_cost:
        has = dense_cost / 1e6 if config.megabytes is not None else dense_cost
        rule = f"the dense model has {has:,.10g} already"
        raise invalid(config.target, vars(config)[config.target], rule, "Ask for less, or leave the model as it is.")
    return allowed


def check_reachable(
    config: DendriticConfig,
    dense: Mapping[str, Tensor],
    costs: Mapping[str, Cost],
    *,
    sparsity: float,
    dials: Sequence[Dial],
    needed: Collection[str],
) -> None:
    """Check that floors do not forbid the target.

    Args:
        dense: the masks of the dense model.
        sparsity: the fraction of its cost that is to go.
        needed: see `select`.

    Raises:
        DendriticError: less can go than has to.
    """
    scores = {name: mask.float() for name, mask in dense.items()}
    fewest = select_uniform(scores, dense, costs, -1, config.floor, dials) if dials else None
    least = total_cost(fewest or select(scores, dense, costs, -1, config.floor, needed=needed), costs)
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
