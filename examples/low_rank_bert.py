"""BERT whose word embedding is the product of two factors: a table of fewer columns, and a linear layer.

The embedding of a small BERT is half of the model, and its columns are those of the residual stream: where the
embedding has to pay, every layer becomes narrower. With two factors (Lan et al. 2020, ALBERT) the columns of the table
are a dependency group of their own, which is pruned under the same budget as everything else, and the stream may stay
as wide as it is. Importing this file registers the model, so that `AutoModelForSequenceClassification.from_pretrained`
finds it.
"""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification


class LowRankBertConfig(BertConfig):
    """A `BertConfig`.

    Attributes:
        embedding_rank: The columns of the table of word embeddings.
    """

    model_type = "low_rank_bert"

    embedding_rank: int = 128


class LowRankEmbedding(nn.Module):
    """Token ids `(batch, tokens)` -> embeddings `(batch, tokens, hidden_size)`."""

    def __init__(self, config: LowRankBertConfig):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.embedding_rank)
        self.up = nn.Linear(config.embedding_rank, config.hidden_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.up(self.table(ids))


class LowRankBertForSequenceClassification(BertForSequenceClassification):
    config_class = LowRankBertConfig

    def __init__(self, config: LowRankBertConfig):
        super().__init__(config)
        self.bert.embeddings.add_module("word_embeddings", LowRankEmbedding(config))

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule("bert.embeddings.word_embeddings.table")


@torch.no_grad()
def with_low_rank_embedding(
    model: BertForSequenceClassification, rank: int, counts: Tensor
) -> LowRankBertForSequenceClassification:
    """The same model with the nearest embedding of this rank.

    The error of a token's embedding counts as often as the token occurs: the factors are those of the singular value
    decomposition of the embedding whose rows are multiplied by the roots of their counts.

    Args:
        counts: how often each token occurs, `[vocab_size]`; once more is added, so that no token counts for nothing.
    """
    config = LowRankBertConfig(**{**model.config.to_dict(), "embedding_rank": rank, "architectures": None})
    small = LowRankBertForSequenceClassification(config)
    state = model.state_dict()
    words = state.pop("bert.embeddings.word_embeddings.weight")
    _, values, directions = torch.linalg.svd(words * (counts + 1).sqrt()[:, None], full_matrices=False)
    up, roots = directions[:rank].t(), values[:rank].sqrt()  # which both factors share, so that both learn alike
    table = words @ up / roots
    state |= {"bert.embeddings.word_embeddings.table.weight": table}
    state |= {"bert.embeddings.word_embeddings.up.weight": up * roots}
    small.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()})
    return small.to(words.dtype).train(model.training)


AutoConfig.register(LowRankBertConfig.model_type, LowRankBertConfig)
AutoModelForSequenceClassification.register(LowRankBertConfig, LowRankBertForSequenceClassification)
