"""Small models of families, injected with a native config and trained for a few steps, and packed."""

import copy
from collections.abc import Callable

import torch
import transformers as hf

from helpers.families import ALL, build, inputs_of
from helpers.families_training import endless, train
from optimum.dendritic import DendriticConfig, compress_, inject_

FAMILIES = {family.name: family for family in ALL}
STEPS = 12


class NativeModels:
    """Those of one kind of config; each is made once, and whoever changes it takes a copy."""

    def __init__(self, config: Callable[[str], DendriticConfig]) -> None:
        """
        Args:
            config: that of a family, by its name.
        """
        self.config = config
        self._masked, self._packed = dict[str, hf.PreTrainedModel](), dict[str, hf.PreTrainedModel]()

    def masked(self, name: str) -> hf.PreTrainedModel:
        """The model of a family after a few steps."""
        if name not in self._masked:
            family = FAMILIES[name]
            model = inject_(build(family), self.config(name), example_inputs=inputs_of(family))
            with torch.random.fork_rng([]):
                train(model, endless(family.batch()), STEPS, self.config(name))
            self._masked[name] = model
        return self._masked[name]

    def packed(self, name: str) -> hf.PreTrainedModel:
        """What packing makes of it."""
        if name not in self._packed:
            self._packed[name] = compress_(copy.deepcopy(self.masked(name)), inputs_of(FAMILIES[name]))
        return self._packed[name]
