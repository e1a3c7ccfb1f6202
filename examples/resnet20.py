"""ResNet-20 for CIFAR as a Hugging Face model: the stock ResNet of `transformers` behind a stem for small images.

He et al. 2016, section 4.2: a 3x3 convolution, three stages of three basic blocks of 16, 32 and 64 channels; 0.27
million parameters, 41 million multiply-accumulates for 32x32 pixels. The stock stem (7x7, stride 2, pooling) would
throw away 15 of 16 pixels. Importing this file registers it, so that `AutoModelForImageClassification.from_pretrained`
finds it.
"""

from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetConvLayer


class ResNet20Config(ResNetConfig):
    """A `ResNetConfig` whose defaults are ResNet-20."""

    model_type = "resnet20"

    embedding_size: int = 16
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32, 64)
    depths: list[int] | tuple[int, ...] = (3, 3, 3)
    layer_type: str = "basic"
    image_size: int = 32


class ResNet20ForImageClassification(ResNetForImageClassification):
    """Returns logits `(batch, labels)` and the loss; takes pixels `(batch, 3, height, width)`."""

    config_class = ResNet20Config
    accepts_loss_kwargs = False  # the loss is a plain mean, which is what the Trainer then expects of each micro-batch

    def __init__(self, config: ResNet20Config):
        super().__init__(config)
        stem = self.resnet.embedder
        stem.embedder = ResNetConvLayer(config.num_channels, config.embedding_size, activation=config.hidden_act)
        stem.add_module("pooler", nn.Identity())
        self.post_init()


AutoConfig.register("resnet20", ResNet20Config)
AutoModelForImageClassification.register(ResNet20Config, ResNet20ForImageClassification)
