"""Binary codes that tell channels apart: which channel of a producer reaches which input of a consumer.

Channel `c` of `C` is marked in the samples in which its code word has a 1. A code word is the binary form of `c`
followed by its complement, so no code word is contained in another one: an input that a single channel reaches shows
exactly the code word of this channel, and an input that several channels reach shows the union of theirs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Reach:
    """Pairs of a channel and an input that it reaches, in ascending order of the channels, then of the inputs.

    Attributes:
        channels: The channel of each pair.
        inputs: The input of each pair.
        width: How many inputs the consumer has.
    """

    channels: Int[Tensor, " pairs"]
    inputs: Int[Tensor, " pairs"]
    width: int

    def dense(self, channels: int) -> Bool[Tensor, "channels inputs"]:
        """The pairs as a matrix.

        >>> Reach(torch.tensor([0, 1]), torch.tensor([2, 0]), width=3).dense(2).int().tolist()
        [[0, 0, 1], [1, 0, 0]]
        """
        matrix = torch.zeros(channels, self.width, dtype=torch.bool)
        matrix[self.channels, self.inputs] = True
        return matrix

    def then(self, onward: "Reach") -> "Reach":
        """From the inputs of this relation to those of `onward`, by way of the channels that both start from.

        >>> follower = Reach(torch.tensor([0, 1]), torch.tensor([1, 0]), width=2)
        >>> reader = Reach(torch.tensor([0, 0, 1]), torch.tensor([4, 5, 3]), width=6)
        >>> follower.then(reader)
        Reach(channels=tensor([0, 1, 1]), inputs=tensor([3, 4, 5]), width=6)
        """
        first = torch.searchsorted(onward.channels, self.channels)
        count = torch.searchsorted(onward.channels, self.channels, right=True) - first
        start = first - (count.cumsum(0) - count)
        pairs = torch.arange(int(count.sum())) + start.repeat_interleave(count)
        return reach_of(self.inputs.repeat_interleave(count), onward.inputs[pairs], onward.width)

    def spread(self, marked: Bool[Tensor, "samples channels"]) -> Bool[Tensor, "samples inputs"]:
        """The inputs that some of the `marked` channels reach.

        >>> reach = Reach(torch.tensor([0, 1]), torch.tensor([2, 0]), width=3)
        >>> reach.spread(torch.tensor([[True, False]])).int().tolist()
        [[0, 0, 1]]
        """
        found = torch.zeros(len(marked), self.width, dtype=torch.uint8)
        index = self.inputs.expand(len(marked), -1)
        return found.scatter_reduce_(1, index, marked[:, self.channels].to(torch.uint8), "amax").bool()

    def __or__(self, other: "Reach") -> "Reach":
        """The pairs of both."""
        pairs = torch.cat([self.channels, other.channels]), torch.cat([self.inputs, other.inputs])
        return reach_of(*pairs, self.width)


def reach_of(channels: Int[Tensor, " pairs"], inputs: Int[Tensor, " pairs"], width: int) -> Reach:
    """The relation that consists of these pairs, in order and without repetition."""
    keys = (channels * width + inputs).unique()
    return Reach(keys // width, keys % width, width)


def code(channels: int) -> Bool[Tensor, "samples channels"]:
    """The code words of all channels, in columns: `2 * ceil(log2(channels))` samples, at least 2.

    >>> code(3).int().tolist()
    [[0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 0]]
    """
    length = max(1, (channels - 1).bit_length())
    binary = (torch.arange(channels)[None] >> torch.arange(length)[:, None]) & 1 == 1
    return torch.cat([binary, ~binary])


def decode(
    seen: Bool[Tensor, "samples inputs"], channels: int
) -> tuple[Int[Tensor, " inputs"], Bool[Tensor, " inputs"]]:
    """For each input the one channel that reaches it (-1 where there is none or several), and whether several do.

    >>> seen = torch.stack([code(3)[:, 2], code(3)[:, 0] | code(3)[:, 1], torch.zeros(4, dtype=torch.bool)], 1)
    >>> decode(seen, channels=3)
    (tensor([ 2, -1, -1]), tensor([False,  True, False]))
    """
    binary, complement = seen.chunk(2)
    number = (binary.long() << torch.arange(len(binary))[:, None]).sum(0)
    single = (binary ^ complement).all(0) & (number < channels)
    return number.where(single, -1), seen.any(0) & ~single


def candidates(
    seen: Bool[Tensor, "samples inputs"], words: Bool[Tensor, "samples channels"]
) -> Bool[Tensor, "channels inputs"]:
    """Which channels may reach which inputs: those whose code word is contained in what the input shows.

    >>> candidates(code(4)[:, 1:2] | code(4)[:, 3:4], code(4)).int().flatten().tolist()
    [0, 1, 0, 1]
    """
    return words.t().float() @ (~seen).float() == 0
