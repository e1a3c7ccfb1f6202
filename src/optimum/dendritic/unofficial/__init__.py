"""All that this package does to other packages beside their public interfaces, behind functions of one place.

`table.py` lists it, with the reasons.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

T = TypeVar("T")
FSDP2 = "torch.distributed.fsdp"


def calling(kind: type[T]) -> T | None:
    """The nearest object of a kind with a method on the call stack; None where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, kind):
            return found
        frame = frame.f_back
    return None


def replace_method_(instance: Any, name: str, function: Callable[..., Any]) -> None:
    """Let `function(stock, *args, **kwargs)` stand for a method; on this one instance, never on its class."""
    vars(instance)[name] = partial(function, getattr(instance, name))


def restore_method_(instance: Any, name: str) -> None:
    """Undo `replace_method_`, if it was done."""
    vars(instance).pop(name, None)


@contextmanager
def answering(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, `modules` compute `forward(module, …)` in place of their own."""
    before = {module: vars(module).get("forward") for module in modules}
    try:
        for module in modules:
            vars(module)["forward"] = lambda *args, _module=module, **kwargs: forward(_module, *args, **kwargs)
        yield
    finally:
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own


@contextmanager
def unprepared(model: nn.Module) -> Iterator[None]:
    """With the model's own `forward`, where accelerate has wrapped it in autocast."""
    prepared, own = vars(model).get("forward"), vars(model).get("_original_forward")
    try:
        if own is not None:
            vars(model)["forward"] = own
        yield
    finally:
        if own is not None:
            vars(model)["forward"] = prepared


def is_dispatched(module: nn.Module) -> bool:
    """Whether accelerate moves its parameters from device to device, and has made new tensors for them."""
    return "_hf_hook" in vars(module)


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The registry of submodules itself: the same module may stand there under several names."""
    return module._modules


def tensors_in(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The registries of parameters and of buffers themselves, with those that are None."""
    return module._parameters, module._buffers


def version_of(tensor: Tensor) -> int:
    """How often a tensor has been written to."""
    return tensor._version


@contextmanager
def uncounted_writes(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Do not count writes to tensors which end with the values that they begin with, so that a backward pass through
    what was computed before takes them as they are."""
    with _unsafe_preserve_version_counter(tuple(tensors)):
        yield


def is_hook_registry(name: str) -> bool:
    """Whether an attribute of a module is one of its registries of hooks, by its name."""
    return "_hooks" in name


def is_compiled(model: nn.Module) -> bool:
    """Whether it is what `torch.compile` wraps around a model."""
    return "_orig_mod" in children_of(model)


def is_of_fsdp2(name: str, value: Any) -> bool:
    """Whether an attribute or a hook of a module comes from FSDP2, by its name or the file that it was written in."""
    state, flags = "__composable_api_state_key", ("_is_fsdp_managed_module", "_fsdp_use_orig_params")
    if isinstance(value, MethodType):
        value = value.__func__
    elif type(value).__name__ == "_WrappedHook":  # PyTorch keeps the hooks of `load_state_dict` inside an object
        value = value.hook
    written = isinstance(value, FunctionType) and value.__globals__["__name__"].startswith(FSDP2)
    return written or name.startswith(state) or name in flags


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer computes, padding of every mode included, with another weight and bias."""
    return layer._conv_forward(x, weight, bias)


def padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What the layer convolves: `x` with its own padding, whether that was given as numbers or as "same"."""
    return F.pad(x, layer._reversed_padding_repeated_twice, layer.padding_mode.replace("zeros", "constant"))


def own_flat_weights_(layer: nn.RNNBase) -> None:
    """Give a shallow copy of a recurrent layer lists of weights of its own, so that the original keeps its."""
    layer._flat_weights, layer._flat_weight_refs = list(layer._flat_weights), list(layer._flat_weight_refs)


def relist_weights_(layer: nn.RNNBase) -> None:
    """Make the lists of weights of a recurrent layer anew, once its parameters are others."""
    layer._init_flat_weights()


def classes_of(auto_class: Any, config: type) -> tuple[type, ...]:
    """The classes that an Auto class may build from a config of a type; the first one is its default."""
    found = auto_class._model_mapping.get(config, ())
    return found if isinstance(found, tuple) else (found,)


def optional_keys(model: Any) -> tuple[str, ...]:
    """Patterns of the keys that a checkpoint of a `PreTrainedModel` may lack."""
    return tuple(model._keys_to_ignore_on_load_missing or ())


def is_loaded(tensor: Tensor) -> bool:
    """Whether transformers has marked it as read from a checkpoint."""
    return vars(tensor).get("_is_hf_initialized", False)


def commit_of(config: Any) -> str | None:
    """The commit on the Hub that a config was loaded from."""
    return vars(config).get("_commit_hash")


def forget_quantized_(config: Any) -> None:
    """Let transformers take a model that it has loaded by a quantizer for an ordinary one."""
    vars(config).pop("_is_quantized", None)


def forget_capturing_(model: nn.Module) -> None:
    """Let transformers set its hooks for hidden states again, on submodules that are new."""
    vars(model).pop("_output_capturing_hooks_installed", None)


def before_merging_(tuners: ModuleType, check: Callable[[str, nn.Module], None]) -> None:
    """Let `check(name, layer)` see each layer before PEFT, whose module of tuners this is, merges adapters into any."""
    stock = tuners.BaseTuner._check_merge_allowed

    def check_merge_allowed(tuner: Any) -> None:
        for name, module in tuner.model.named_modules():
            if isinstance(module, tuners.BaseTunerLayer):
                check(name, module.get_base_layer())
        stock(tuner)

    tuners.BaseTuner._check_merge_allowed = check_merge_allowed


def used_columns(trainer: Any, dataset: Any, collate: Callable[..., Any]) -> tuple[Any, Callable[..., Any]]:
    """A dataset and a collator that drop the columns which the Trainer drops, which takes no note of the question."""
    trainer = copy.copy(trainer)
    if "datasets" in sys.modules and isinstance(dataset, sys.modules["datasets"].Dataset):
        return trainer._remove_unused_columns(dataset, "training"), collate
    return dataset, trainer._get_collator_with_removed_columns(collate, "training")


def trained_by_zero(parameter: Any) -> bool:
    """Whether DeepSpeed's ZeRO trains a parameter; on every process alike, also where none of it is held."""
    return "_hp_mapping" in vars(parameter)


def zero_mapping(parameter: nn.Parameter) -> Any:
    """Where the optimizer of ZeRO 1 and 2 keeps this process's flat part of a parameter; None where it keeps none."""
    return vars(parameter).get("_hp_mapping")
