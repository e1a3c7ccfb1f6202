"""An embedding that is the product of two factors: a table of fewer columns, and a linear layer.

The columns of an embedding are those of the residual stream: where the embedding has to pay, every layer becomes
narrower. With two factors (Lan et al. 2020, ALBERT) the columns of the table are a dependency group of their own.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import DendriticError, invalid
from ..functional.low_rank import factorise_rows
from ..unofficial import is_hook_registry


class NoTable(DendriticError, AttributeError):
    """What asks for the one table of an embedding that is two factors; `hasattr` takes it for an answer."""


class FactoredEmbedding(nn.Module):
    """Token ids -> `up(table(ids))`.

    Attributes:
        table: The first factor, of all tokens.
        up: The second factor, a linear layer without a bias.
    """

    def __init__(self, table: nn.Embedding, up: nn.Linear) -> None:
        super().__init__()
        self.table, self.up = table, up

    def forward(self, input: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids columns"]:  # named as that of nn.Embedding
        return self.up(self.table(input))

    def merged(self) -> Float[Tensor, "tokens columns"]:
        """The one table that it computes as."""
        return self.up(self.table.weight)

    @property
    def num_embeddings(self) -> int:
        """The number of tokens."""
        return self.table.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """The number of columns that come out."""
        return self.up.out_features

    @property
    def padding_idx(self) -> int | None:
        """The token whose row of the table is not trained."""
        return self.table.padding_idx

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            rule = "an embedding of two factors has no table that could be read, resized or tied"
            remedy = "Resize or tie the dense model, then inject it."
            raise invalid("weight", type(self).__name__, rule, remedy, NoTable)
        return super().__getattr__(name)


@torch.no_grad()
def factored(embedding: nn.Embedding, rank: int, weights: Float[Tensor, " tokens"] | None = None) -> FactoredEmbedding:
    """The nearest embedding of a rank, with the hooks, the device, the dtype and the padding of `embedding`, which is
    left as it was.

    Args:
        weights: how much each token counts; alike by default.
    """
    made = factored_skeleton(embedding, rank)
    rows = embedding.weight.detach()
    table, up = factorise_rows(rows, rows.new_ones(len(rows)) if weights is None else weights, rank)
    made.table.weight.copy_(table)
    made.up.weight.copy_(up)
    return made


def factored_skeleton(embedding: nn.Embedding, rank: int) -> FactoredEmbedding:
    """As `factored`, with memory for the factors and no values in it."""
    like, trains = embedding.weight, embedding.weight.requires_grad

    def empty(*shape: int) -> nn.Parameter:
        return nn.Parameter(like.new_empty(shape), trains)

    tokens, columns = like.shape
    with torch.device("meta"):  # which draws no initial values, and no random numbers for them
        table = nn.Embedding(tokens, rank, padding_idx=embedding.padding_idx)
        up = nn.Linear(rank, columns, bias=False)
    table.weight, up.weight = empty(tokens, rank), empty(columns, rank)
    made = FactoredEmbedding(table, up)
    vars(made).update({name: value for name, value in vars(embedding).items() if is_hook_registry(name)})
    return made.train(embedding.training)


def why_not_factored(embedding: nn.Module, rank: int) -> str:
    """Why a module cannot be two factors of a rank; empty where it can."""
    if type(embedding) is not nn.Embedding:
        return f"is a {type(embedding).__name__}, which may compute otherwise than an nn.Embedding"
    if embedding.max_norm is not None or embedding.sparse or embedding.scale_grad_by_freq:
        return "has max_norm, sparse or scale_grad_by_freq, which are not those of its factors"
    (tokens, columns), most = embedding.weight.shape, min(embedding.weight.shape)
    return "" if 1 <= rank <= most else f"has {tokens} rows of {columns}, whose factors have a rank from 1 to {most}"


def merged_table(embedding: nn.Module) -> Tensor:
    """The table of an input embedding, which may be two factors."""
    return embedding.merged() if isinstance(embedding, FactoredEmbedding) else embedding.get_parameter("weight")
