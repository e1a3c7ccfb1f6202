"""The input embedding of a model as two factors, where the config asks for it; and what the model had before."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..config import DendriticConfig
from ..distributed.collectives import made_by_first_rank
from ..errors import invalid
from ..nn import FactoredEmbedding, factored, factored_skeleton, why_not_factored
from ..nn.surgery import swap

logger = logging.get_logger(__name__)
LEAVE = "Leave embedding_rank out."


@torch.no_grad()
def factor_embedding_(model: nn.Module, config: DendriticConfig, token_counts: Any = None) -> dict[str, int]:
    """Put two factors in the place of the input embedding, if the config asks for it.

    Args:
        token_counts: how often each token occurs, `[tokens]`, by which its error counts; once more is added, so that no
            token counts for nothing. All alike by default.

    Returns:
        The rank by the name of the embedding; empty where none is asked for.

    Raises:
        DendriticError: the model has no embedding that can be two factors, or the counts are not those of its tokens.
    """
    rank = config.embedding_rank
    if rank is None:
        if token_counts is not None:
            rule = "counts for nothing where the embedding keeps its form"
            raise invalid("token_counts", type(token_counts).__name__, rule, "Set embedding_rank, or leave it out.")
        return {}
    name = embedding_name(model)
    if name is None:
        rule = f"{type(model).__name__} has no input embedding, or several of which none is told to be it"
        raise invalid("embedding_rank", rank, rule, LEAVE)
    fault = fault_of(model, name, rank)
    if fault:
        raise invalid("embedding_rank", rank, f"{name} {fault}", "Choose another rank, or leave embedding_rank out.")
    embedding = model.get_submodule(name)
    assert isinstance(embedding, nn.Embedding)
    if not bool(embedding.weight.isfinite().all()):
        raise invalid("model", type(model).__name__, f"{name} has entries that are not finite", "Load it again.")
    weights = None if token_counts is None else _checked(token_counts, embedding.num_embeddings) + 1
    made = factored_skeleton(embedding, rank)
    made.load_state_dict(made_by_first_rank(lambda: factored(embedding, rank, weights).cpu().state_dict()))
    swap(model, {name: made})
    how = "all tokens count alike" if weights is None else "tokens count as often as they occur"
    logger.info(f"{name} begins as two factors of rank {rank}, in which {how}.")
    return {name: rank}


def put_factors_(model: nn.Module, ranks: Mapping[str, int], *, initial: bool = False) -> None:
    """Put two factors in the place of the input embedding of a stock model, as a layout records it.

    Args:
        ranks: names that `fault_of` finds nothing wrong with, and their ranks.
        initial: whether they have the values that come nearest to the embedding, and not any.
    """
    made = {}
    for name, rank in ranks.items():
        embedding = model.get_submodule(name)
        assert isinstance(embedding, nn.Embedding)
        valued = initial and not embedding.weight.is_meta
        made[name] = factored(embedding, rank) if valued else factored_skeleton(embedding, rank)
    swap(model, made)


def embedding_name(model: nn.Module) -> str | None:
    """The name of the input embedding: what a `PreTrainedModel` says it is, or the only embedding of another module."""
    found = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if isinstance(model, PreTrainedModel):
        try:
            found = [model.get_input_embeddings()]
        except NotImplementedError:
            return None
    names = {module: name for name, module in model.named_modules()}
    return names.get(found[0]) if len(found) == 1 else None


def fault_of(model: nn.Module, name: str, rank: int) -> str:
    """Why a module of a stock model cannot become two factors of this rank; empty where it can."""
    if name != embedding_name(model):
        return f"is not the input embedding of {type(model).__name__}"
    embedding, own = model.get_submodule(name), f"{name}.weight"
    fault = why_not_factored(embedding, rank)
    if fault:
        return fault
    weight = embedding.get_parameter("weight")
    shared = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight and n != own]
    if isinstance(model, PreTrainedModel):  # one without values is not tied yet
        shared += [end for pair in model.all_tied_weights_keys.items() if own in pair for end in pair if end != own]
    return f"shares its weight with {shared[0]}, and what is tied has one table" if shared else ""


def saved_by_factors(model: nn.Module, ranks: Mapping[str, int], *, counted: str, positions: Mapping[str, int]) -> int:
    """How much less the factors cost than the table that they stand for; they may cost more.

    Args:
        model: with the factors in full, as it has them until it is packed.
        counted: `"params"`, `"bytes"` or `"macs"`, of which a table takes none.
        positions: products per sample of each weight, by the name of its layer; needed for MACs alone.
    """
    saved = 0
    for name in ranks:
        factors = model.get_submodule(name)
        assert isinstance(factors, FactoredEmbedding)
        (tokens, rank), columns, weight = factors.table.weight.shape, factors.embedding_dim, factors.up.weight
        if counted == "macs":
            saved -= positions.get(f"{name}.up", 0) * rank * columns
        else:
            size = weight.element_size() if counted == "bytes" else 1
            saved += size * (tokens * columns - rank * (tokens + columns))
    return saved


def _checked(counts: Any, tokens: int) -> Float[Tensor, " tokens"]:
    try:
        found = torch.as_tensor(counts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise invalid("token_counts", type(counts).__name__, f"is not a vector of numbers ({error})", LEAVE) from None
    if found.shape != (tokens,) or not bool(found.isfinite().all()) or bool((found < 0).any()):
        rule = f"must be {tokens} numbers of at least 0, one for each row of the embedding"
        remedy = f"Pass torch.bincount(ids, minlength={tokens})."
        raise invalid("token_counts", tuple(found.shape), rule, remedy)
    return found
