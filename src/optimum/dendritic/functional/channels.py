"""Some channels of a tensor, and a tensor of which only some channels are there.

Torch selects columns of a matrix several times as fast as the last entries of a tensor of more axes, and runs of
neighbours faster than single ones. What comes out has the memory format of what goes in, so that a convolution in
channels_last need not convert it.
"""

import torch
from torch import Tensor

SPANS = (64, 32, 16, 8, 4, 2)


def gather_channels(x: Tensor, index: Tensor, axis: int, span: int = 1) -> Tensor:
    """The channels at `index`, in the memory format of `x`.

    Args:
        x: of any shape.
        index: positions along `axis`, `[kept]`; in runs, `[kept / span]`, if those are longer than one.
        axis: that of the channels: the last one, or 1 of images `[samples, channels, height, width]`.
        span: so many neighbours are picked together; it divides the channels.

    >>> images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    >>> found = gather_channels(images, torch.tensor([0, 2]), 1)
    >>> torch.equal(found, images[:, [0, 2]]), found.is_contiguous(memory_format=torch.channels_last)
    (True, True)
    >>> gather_channels(torch.arange(6.0)[None], torch.tensor([0, 2]), -1, span=2)
    tensor([[0., 1., 4., 5.]])
    """
    if _channels_last(x, axis):
        return gather_channels(x.movedim(1, -1), index, -1, span).movedim(-1, 1)
    axis %= x.dim()
    if span > 1:
        return x.unflatten(axis, (-1, span)).index_select(axis, index).flatten(axis, axis + 1)
    if x.dim() > 2 and axis == x.dim() - 1:
        return x.flatten(0, -2).index_select(1, index).unflatten(0, x.shape[:-1])
    return x.index_select(axis, index)


def longest_span(positions: Tensor, channels: int) -> int:
    """How many neighbours are picked together at most: the largest of `SPANS` in whole, aligned runs of which the
    ascending positions, `[..., kept]`, among so many channels lie; 1 if there is none.

    >>> longest_span(torch.tensor([[4, 5, 6, 7, 12, 13, 14, 15]]), 16), longest_span(torch.tensor([[1, 2]]), 16)
    (4, 1)
    """
    fitting = (span for span in SPANS if channels % span == positions.shape[-1] % span == 0)
    return next((span for span in fitting if torch.equal(unfolded(spans(positions, span), span), positions)), 1)


def spans(positions: Tensor, span: int) -> Tensor:
    """Of positions in whole, aligned runs, `[..., kept]`, those of the runs, `[..., kept / span]`."""
    return positions[..., ::span] // span


def unfolded(index: Tensor, span: int) -> Tensor:
    """The positions in runs, `[..., kept]`, from those of the runs, `[..., kept / span]`."""
    return (index[..., None] * span + torch.arange(span, device=index.device)).flatten(-2)


def scatter_channels(y: Tensor, index: Tensor, channels: int, axis: int) -> Tensor:
    """`y` at the positions `index` of so many channels, of which the others are zero, in the memory format of `y`.

    Args:
        y: of any shape, with `len(index)` channels.
        index: distinct positions, `[kept]`.
        channels: how many the result has.
        axis: as for `gather_channels`.

    >>> scatter_channels(torch.tensor([[5.0, 7.0]]), torch.tensor([0, 2]), 4, -1)
    tensor([[5., 0., 7., 0.]])
    """
    if _channels_last(y, axis):
        return scatter_channels(y.movedim(1, -1), index, channels, -1).movedim(-1, 1)
    shape = list(y.shape)
    shape[axis] = channels
    return y.new_zeros(shape).index_copy_(axis, index, y)


def laid_out_like(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the memory format of another tensor of as many axes: indexing forgets that of images.

    >>> kernels = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    >>> laid_out_like(kernels[:2].clone(memory_format=torch.contiguous_format), kernels).stride()
    (12, 1, 6, 3)
    """
    return x.contiguous(memory_format=torch.channels_last) if _channels_last(other, 1) else x


def _channels_last(x: Tensor, axis: int) -> bool:
    """Whether the channels of images lie side by side in memory."""
    return (
        x.dim() == 4 and axis % 4 == 1 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    )
