"""A compact vision transformer as a Hugging Face model: the stock ViT of `transformers` behind a convolutional stem.

Hassani et al. 2021 ("Escaping the Big Data Paradigm with Compact Transformers") and Xiao et al. 2021 ("Early
Convolutions Help Transformers See Better"): small data need the locality that a stock patch embedding lacks. The patch
embedding becomes 3x3 convolutions of stride 2, one for each halving, with batch normalisation and ReLU, and a 1x1
convolution. Importing this file registers the model, so that `AutoModelForImageClassification.from_pretrained` finds
it.
"""

import itertools
import math

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification


class CompactViTConfig(ViTConfig):
    """A `ViTConfig` for 32x32 pixels; its patch size is a power of two.

    Attributes:
        stem_channels: The channels of the first convolution; each one after it has twice as many.
    """

    model_type = "compact_vit"

    image_size: int = 32
    patch_size: int = 4
    stem_channels: int = 32


class ConvolutionalStem(nn.Module):
    """Pixels `(batch, channels, height, width)` -> one embedding for each patch `(batch, patches, hidden_size)`."""

    def __init__(self, config: CompactViTConfig):
        super().__init__()
        widths = [config.num_channels]
        for _ in range(int(math.log2(config.patch_size))):
            widths.append(config.stem_channels if len(widths) == 1 else 2 * widths[-1])
        self.halvings = nn.Sequential(*(halving(*pair) for pair in itertools.pairwise(widths)))
        self.projection = nn.Conv2d(widths[-1], config.hidden_size, kernel_size=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(self.halvings(pixel_values)).flatten(2).transpose(1, 2)


def halving(inputs: int, outputs: int) -> nn.Sequential:
    """Half the height and the width."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class CompactViTForImageClassification(ViTForImageClassification):
    """Returns logits `(batch, labels)` and the loss; takes pixels `(batch, 3, height, width)`."""

    config_class = CompactViTConfig
    accepts_loss_kwargs = False  # the loss is a plain mean, which is what the Trainer then expects of each micro-batch

    def __init__(self, config: CompactViTConfig):
        super().__init__(config)
        self.vit.embeddings.add_module("patch_embeddings", ConvolutionalStem(config))
        self.post_init()


AutoConfig.register("compact_vit", CompactViTConfig)
AutoModelForImageClassification.register(CompactViTConfig, CompactViTForImageClassification)
