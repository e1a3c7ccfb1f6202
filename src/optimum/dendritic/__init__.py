"""Training-time compression for Hugging Face models: dendritic segments are scored, pruned, regrown and packed.

Importing this package also registers the loader, so that `AutoModel….from_pretrained` reads compressed checkpoints.
Its public names are listed in `__init__.pyi`.
"""

import lazy_loader

from .huggingface import registration as registration

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
