"""A small convolutional network as a Hugging Face model: the CNN of the classic PyTorch MNIST example.

Two 3x3 convolutions, one pooling, two linear layers; about 1.2 million parameters for 28x28 images, 9 in 10 of them in
the first linear layer, and 9 in 10 of the multiplications in the second convolution. Importing this file registers the
model, so that `AutoModelForImageClassification.from_pretrained` finds it.
"""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class ConvNetConfig(PretrainedConfig):
    """The shape of a `ConvNetForImageClassification`; the defaults are the classic example on 28x28 grey images."""

    model_type = "convnet"

    def __init__(
        self,
        image_size: int = 28,
        num_channels: int = 1,
        conv_channels: tuple[int, int] = (32, 64),
        hidden_size: int = 128,
        feature_dropout: float = 0.25,
        classifier_dropout: float = 0.5,
        pooling: str = "max",
        **kwargs,
    ):
        if image_size < 6:
            raise ValueError(
                f"image_size is {image_size}; it must be at least 6, which the convolutions and the pooling take."
            )
        if pooling not in ("max", "average"):
            raise ValueError(f"pooling is {pooling!r}; it must be 'max' or 'average', which spiking networks need.")
        if "id2label" not in kwargs:
            kwargs.setdefault("num_labels", 10)
        super().__init__(**kwargs)
        self.image_size = image_size
        self.num_channels = num_channels
        self.conv_channels = tuple(conv_channels)
        self.hidden_size = hidden_size
        self.feature_dropout = feature_dropout
        self.classifier_dropout = classifier_dropout
        self.pooling = pooling

    @property
    def feature_size(self) -> int:
        """Inputs of the first linear layer: two convolutions lose 4 pixels a side, pooling halves what is left."""
        return self.conv_channels[1] * ((self.image_size - 4) // 2) ** 2


class ConvNetForImageClassification(PreTrainedModel):
    """conv - ReLU - conv - pool - ReLU - flatten - linear - ReLU - classifier, with dropout around the linear layer."""

    config_class = ConvNetConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # the loss is a plain mean, which is what the Trainer then expects of each micro-batch

    def __init__(self, config: ConvNetConfig):
        super().__init__(config)
        first, second = config.conv_channels
        self.conv1 = nn.Conv2d(config.num_channels, first, kernel_size=3)
        self.conv2 = nn.Conv2d(first, second, kernel_size=3)
        self.pool = nn.MaxPool2d(2) if config.pooling == "max" else nn.AvgPool2d(2)
        self.feature_dropout = nn.Dropout2d(config.feature_dropout)
        self.linear = nn.Linear(config.feature_size, config.hidden_size)
        self.classifier_dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or ()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()  # PyTorch's own initialisation, which the classic example uses

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        hidden = torch.relu(self.conv1(pixel_values))
        hidden = self.conv2(hidden)
        if self.config.pooling == "max":
            hidden = torch.relu(self.pool(hidden))  # pooling first: the same result, a quarter of the ReLUs
        else:
            hidden = self.pool(torch.relu(hidden))  # spikes are pooled, as spiking chips do
        hidden = self.feature_dropout(hidden).flatten(1)
        hidden = self.classifier_dropout(torch.relu(self.linear(hidden)))
        logits = self.classifier(hidden)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


AutoConfig.register("convnet", ConvNetConfig)
AutoModelForImageClassification.register(ConvNetConfig, ConvNetForImageClassification)
