"""The contact with transformers: the Trainer callback, and the loader that `from_pretrained` finds in its registry."""

from .checkpoint.loader import DendriticLoader as DendriticLoader
from .hub.push import push_to_hub as push_to_hub
from .trainer.callback import DendriticCallback as DendriticCallback
from .trainer.last_checkpoint import last_checkpoint as last_checkpoint
