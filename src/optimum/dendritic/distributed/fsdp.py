"""`unshard_`: what `fully_shard` did to a model, undone in place, so that its shapes may change.

PyTorch has no way back from FSDP2. What it adds to a module is little: a subclass with `FSDPModule` mixed in, hooks, a
state object and two flags, and instance methods from `register_fsdp_forward_method`. All of it is recognised by where
it is defined, and taken off; the parameters are gathered one after the other. The modules stay the objects that they
were, so whoever holds the model (a Trainer, an accelerator, hooks of the user) holds the stock one from then on.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from .dtensor import reshard, sharded, unwrapped, whole

FSDP = "torch.distributed.fsdp"
STATE, FLAGS = "__composable_api_state_key", ("_is_fsdp_managed_module", "_fsdp_use_orig_params")


def unshard_(model: nn.Module) -> Callable[[], None]:
    """Make a model that FSDP2 has sharded a stock one, in place; a stock model is left as it is.

    Every process of the mesh calls it, and gets all of every parameter, on the device of the mesh. Gradients stay with
    the shards.

    Returns:
        A function that puts everything back as it was.
    """
    reshard(model)
    modules = list(model.modules())
    spread = [parameter for parameter in model.parameters() if sharded(parameter) is not None]
    if not spread and all(unwrapped(module) is type(module) for module in modules):
        return lambda: None
    before = [_Before(module) for module in modules]

    def undo() -> None:
        for state in before:
            state.restore()

    gathered: dict[int, nn.Parameter] = {}  # tied parameters stay one
    try:
        for module in modules:
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and sharded(parameter) is not None:
                    if id(parameter) not in gathered:
                        gathered[id(parameter)] = nn.Parameter(whole(parameter), parameter.requires_grad)
                    setattr(module, name, gathered[id(parameter)])  # an LSTM notes it in its flat weights, too
            _strip_(module)
    except BaseException:
        undo()
        raise
    return undo


class _Before:
    """A module as FSDP2 left it. Registries of hooks are put back in place, since handles refer to them."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.attributes = module, type(module), dict(vars(module))
        self.hooks = {name: registry.copy() for name, registry in vars(module).items() if _is_registry(name)}
        self.parameters = dict(module._parameters)

    def restore(self) -> None:
        for name, parameter in self.parameters.items():
            setattr(self.module, name, parameter)
        self.module.__class__ = self.kind
        vars(self.module).update(self.attributes)
        for name, registry in self.hooks.items():
            vars(self.module)[name].clear()
            vars(self.module)[name].update(registry)


def _strip_(module: nn.Module) -> None:
    module.__class__ = unwrapped(module)
    attributes = vars(module)
    for name in list(attributes):
        if _is_registry(name):
            for key in [key for key, hook in attributes[name].items() if _is_of_fsdp(hook)]:
                for registry in (value for other, value in attributes.items() if _is_registry(other)):
                    registry.pop(key, None)  # keys are unique: others note by them how the hook is to be called
        elif name.startswith(STATE) or name in FLAGS or _is_of_fsdp(attributes[name]):
            del attributes[name]


def _is_registry(name: str) -> bool:
    return "_hooks" in name


def _is_of_fsdp(value: Any) -> bool:
    """Whether a hook or an instance method comes from FSDP2, by the file that it was written in."""
    if isinstance(value, MethodType):
        value = value.__func__
    elif type(value).__name__ == "_WrappedHook":  # PyTorch keeps the hooks of `load_state_dict` inside an object
        value = value.hook
    return isinstance(value, FunctionType) and value.__globals__["__name__"].startswith(FSDP)
