"""Makes the loader known to `from_pretrained`, whichever of this package and transformers is imported first.

The registry of quantizers takes seconds to import, so the loader enters it once somebody else has imported it:
`transformers.modeling_utils`, which defines `from_pretrained`, does.
"""

from types import ModuleType

from wrapt import when_imported


@when_imported("transformers.quantizers.auto")
def register(_: ModuleType) -> None:
    """Import the loader, which enters the registry."""
    from .checkpoint import loader  # noqa: F401
