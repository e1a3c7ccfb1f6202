"""A clock of multiply-accumulates: on it a model is as fast as its products are few, on every machine."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from optimum.dendritic.efficiency.macs import RECURRENT


class Clock:
    """Goes on by what is multiplied while its counter is on, a nanosecond for each product."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False, custom_mapping=RECURRENT)
        self.readings = 0

    def __call__(self, device: torch.device) -> float:
        self.readings += 1
        return self.counter.get_total_flops() / 2e9
