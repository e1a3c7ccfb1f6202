"""The contact with transformers: the Trainer callback, and the loader that `from_pretrained` finds in its registry."""

from .callback import DendriticCallback as DendriticCallback
from .quantizer import DendriticLoader as DendriticLoader
from .torn import last_checkpoint as last_checkpoint
