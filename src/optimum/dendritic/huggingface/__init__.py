"""The contact with transformers: the Trainer callback, and the loader that `from_pretrained` finds in its registry."""

from .callback import DendriticCallback as DendriticCallback
from .checkpoint.loader import DendriticLoader as DendriticLoader
from .hub.push import push_to_hub as push_to_hub
from .torn import last_checkpoint as last_checkpoint
