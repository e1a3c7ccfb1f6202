"""Layers: stock layers that carry segments while they train, and the small layers they become."""

from .followers import follower_channels as follower_channels
from .followers import shrink_follower as shrink_follower
from .injected import INJECTED as INJECTED
from .injected import DendriticConv1D as DendriticConv1D
from .injected import DendriticConv2d as DendriticConv2d
from .injected import DendriticLayer as DendriticLayer
from .injected import DendriticLinear as DendriticLinear
from .injected import WeightLayer as WeightLayer
from .injected import inject_layer as inject_layer
from .injected import is_weight_layer as is_weight_layer
from .injected import stock_type as stock_type
from .injected import weight_layer as weight_layer
from .injected import widths as widths
from .packed import PackedConv1D as PackedConv1D
from .packed import PackedConv2d as PackedConv2d
from .packed import PackedLayer as PackedLayer
from .packed import PackedLinear as PackedLinear
from .packed import pack_layer as pack_layer
from .packed import packed_skeleton as packed_skeleton
