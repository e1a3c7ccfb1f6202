"""A recurrent text classifier as a Hugging Face model: embedding, LSTM or GRU, pooling, linear head.

Importing this file registers the model, so that `AutoModelForSequenceClassification.from_pretrained` finds it.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentConfig(PretrainedConfig):
    """The shape of a `RecurrentForSequenceClassification`; `pooling` is the mean over tokens or the last state."""

    model_type = "recurrent"

    def __init__(
        self,
        vocab_size: int = 8192,
        embedding_size: int = 128,
        hidden_size: int = 256,
        num_hidden_layers: int = 1,
        cell: str = "lstm",
        bidirectional: bool = True,
        pooling: str = "mean",
        dropout: float = 0.3,
        **kwargs,
    ):
        for field, value, choices in (("cell", cell, tuple(CELLS)), ("pooling", pooling, ("mean", "last"))):
            if value not in choices:
                raise ValueError(f"{field} is {value!r}; it must be one of {', '.join(choices)}.")
        kwargs.setdefault("pad_token_id", 0)
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.cell = cell
        self.bidirectional = bidirectional
        self.pooling = pooling
        self.dropout = dropout


class RecurrentForSequenceClassification(PreTrainedModel):
    """Texts are padded on the right; the directions of a bidirectional layer are concatenated."""

    config_class = RecurrentConfig
    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # the loss is a plain mean, which is what the Trainer then expects of each micro-batch

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        layers, both = config.num_hidden_layers, config.bidirectional
        between = config.dropout if layers > 1 else 0.0
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.encoder = CELLS[config.cell](
            config.embedding_size, config.hidden_size, layers, batch_first=True, dropout=between, bidirectional=both
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear((1 + both) * config.hidden_size, len(config.id2label or ()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.RNNBase | nn.Linear):
            module.reset_parameters()  # PyTorch's own initialisation

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pool = {"mean": self._mean, "last": self._last}[self.config.pooling]
        logits = self.classifier(self.dropout(pool(self.dropout(self.embedding(input_ids)), mask)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _mean(self, embedded: Tensor, mask: Tensor) -> Tensor:
        weight = mask[..., None].to(embedded.dtype)
        return (self.encoder(embedded)[0] * weight).sum(1) / weight.sum(1).clamp(min=1)

    def _last(self, embedded: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1).clamp(min=1).cpu()  # packed, so that no direction reads the padding
        states = self.encoder(pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False))[1]
        hidden = states[0] if isinstance(states, tuple) else states
        return hidden.unflatten(0, (self.config.num_hidden_layers, -1))[-1].transpose(0, 1).flatten(1)


AutoConfig.register("recurrent", RecurrentConfig)
AutoModelForSequenceClassification.register(RecurrentConfig, RecurrentForSequenceClassification)
