"""`unshard_`: what `fully_shard` did to a model, undone in place, so that its shapes may change.

PyTorch has no way back from FSDP2. What it adds to a module is little: a subclass with `FSDPModule` mixed in, hooks, a
state object and two flags, and instance methods from `register_fsdp_forward_method`. All of it is recognised by where
it is defined, and taken off; the parameters are gathered one after the other. The modules stay the objects that they
were, so whoever holds the model (a Trainer, an accelerator, hooks of the user) holds the stock one from then on.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from ..unofficial import is_hook_registry, is_of_fsdp2
from .dtensor import reshard, sharded, unwrapped, whole

own_parameters = partial(nn.Module.named_parameters, recurse=False, remove_duplicate=False)


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
            for name, parameter in list(own_parameters(module)):
                if sharded(parameter) is not None:
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
        self.hooks = {name: registry.copy() for name, registry in vars(module).items() if is_hook_registry(name)}
        self.parameters = dict(own_parameters(module))

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
        if is_hook_registry(name):
            for key in [key for key, hook in attributes[name].items() if is_of_fsdp2("", hook)]:
                for registry in (value for other, value in attributes.items() if is_hook_registry(other)):
                    registry.pop(key, None)  # keys are unique: others note by them how the hook is to be called
        elif is_of_fsdp2(name, attributes[name]):
            del attributes[name]
