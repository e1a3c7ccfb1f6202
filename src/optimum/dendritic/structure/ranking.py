"""The one ranking of segments under a budget: trainings, sizes of a model and searches choose their masks by it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..config import DendriticConfig
from ..errors import invalid
from ..functional.costs import Masks
from ..functional.importance import IMPORTANCE, times_cost, with_dying_rows
from ..functional.selection import Costs, Scores, select, total_cost, unit_cost
from ..functional.transfer import on_cpu
from ..functional.uniform_selection import select_uniform
from ..functional.units import needed_hosts
from ..layout.layout import Layout
from ..layout.records import Dial
from ..nn import DendriticLayer, Gates
from .model_costs import costs_in
from .multiples import units_together

AllGates = Mapping[str, Gates]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What the segments of a model are ranked by, and what limits the choice. All tensors are on the CPU.

    Attributes:
        config: The config, of which the smallest fraction that a layer keeps and the division of the budget count.
        masks: The present masks. What they prune stays pruned.
        scores: The importance of each segment, as `select` takes it.
        costs: What each layer costs.
        dense_cost: What a budget is a fraction of.
        dials: The numbers of a stock config that the choice must be told by; none where each layer is free.
        needed: Names of the masks that keep one segment in any case.
        together: Where widths are to be multiples, how many segments of each mask make one.
    """

    config: DendriticConfig
    masks: Masks
    scores: Scores
    costs: Costs
    dense_cost: int
    dials: Sequence[Dial]
    needed: Collection[str]
    together: Mapping[str, int]

    def choose(
        self, sparsity: float, *, regrown: Masks | None = None, allocation: str | Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """The masks with `sparsity` of the budget gone that keep the highest scores per cost.

        Args:
            regrown: pruned segments that return, and go last.
            allocation: how the budget is divided, in place of the config's `allocation`.

        Raises:
            DendriticError: `allocation` does not name exactly the masks.
        """
        scores, masks, costs, floor = self.scores, self.masks, self.costs, self.config.floor
        divided = _divided(self.config.allocation if allocation is None else allocation, masks)
        budget, together = (1 - sparsity) * self.dense_cost, self.together
        if self.dials:
            return select_uniform(scores, masks, costs, budget, floor, self.dials, regrown, together=together)
        return select(
            scores, masks, costs, budget, floor, regrown, needed=self.needed, together=together, allocation=divided
        )

    def least(self) -> int:
        """What the model costs once everything is gone that may go."""
        return total_cost(self.choose(2.0, allocation="global"), self.costs)


def ranking_of(
    model: nn.Module,
    layout: Layout,
    layers: dict[str, DendriticLayer],
    gates: AllGates,
    *,
    masks: Masks | None = None,
    scores: Scores | None = None,
) -> Ranking:
    """The ranking by the present scores of an injected model.

    Args:
        layers: those of `layers_in`.
        gates: those of `gates_in`.
        masks: what to begin from; the present masks by default.
        scores: the present scores, where they are on the CPU already.
    """
    config, costs = layout.config, costs_in(model, layers, layout)
    masks = masks_of(gates) if masks is None else masks
    scores = on_cpu({name: gate.dendrite_score for name, gate in gates.items()}) if scores is None else scores
    return Ranking(
        config=config,
        masks=masks,
        scores=_ranked(scores, layers, masks, costs, config.importance),
        costs=costs,
        dense_cost=layout.dense_cost,
        dials=layout.dials,
        needed=needed_hosts(layout.groups, config.counts_model),
        together=units_together(layers, layout.groups, config.multiple_of),
    )


def masks_of(gates: AllGates) -> dict[str, Tensor]:
    """The present masks, on the CPU."""
    return on_cpu({name: gate.dendrite_mask for name, gate in gates.items()})


def _ranked(
    scores: Scores, layers: Mapping[str, DendriticLayer], masks: Masks, costs: Costs, importance: str
) -> dict[str, Tensor]:
    """The scores as `select` ranks them by their cost: see `Importance`."""
    rule, scores = IMPORTANCE[importance], dict(scores)
    dying = {name: cost.dying_rows() for name, cost in costs.items()} if rule.grouped else {}
    norms = on_cpu({name: layers[name].row_norms() for name, links in dying.items() if links})
    for link, rows in ((link, norms[name]) for name, links in dying.items() for link in links):
        scores[link.host] = with_dying_rows(scores[link.host], rows, link.segments)
    if rule.per_cost:
        return scores
    units = unit_cost(masks, costs)
    return {name: times_cost(score, units[name]) for name, score in scores.items()}


def _divided(allocation: str | Mapping[str, float], masks: Masks) -> dict[str, float] | None:
    """The fraction that each mask is to keep; None where the scores decide."""
    if isinstance(allocation, str):
        return None if allocation == "global" else dict.fromkeys(masks, 0.0)
    if allocation.keys() != masks.keys():
        found = sorted(allocation.keys() ^ masks.keys())
        rule = "must name exactly what has a mask in this model"
        raise invalid("allocation", found, rule, "Search one for this model and config: search_allocation(...).")
    return dict(allocation)
