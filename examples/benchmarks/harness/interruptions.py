"""A verb that is interrupted at one of its tensor operations, and all of a model that it then has to leave alone.

The operations are counted by a dispatch mode, which sees each one that reaches a kernel, of the model's forward and
backward passes too; at number `at` it raises. What must be left as it was are the modules themselves and their classes,
hooks and attributes, every tensor bit for bit in its place, gradients, the layout, the config, the state of the
optimizer, and the random state and attention switches of the process.
"""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from optimum.dendritic import compress_, inject_, prune_, score_, target_sparsity, update_
from optimum.dendritic.state import layout_of

from .subjects import SUBJECTS, Subject, inputs_of
from .trials import Tell

Prepared = tuple[PreTrainedModel, torch.optim.Optimizer | None, Callable[[], object]]


class Interrupted(BaseException):
    """Stands for what a user or the system does: nothing may mistake it for a fault of the model."""


class OutOfMemory(RuntimeError):
    """Stands for what an operation raises by itself."""


class Interruption(TorchDispatchMode):
    """Counts tensor operations, and raises `error` in the place of number `at`, once."""

    def __init__(self, at: int | None = None, error: type[BaseException] = Interrupted) -> None:
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self.at:
            raise self.error(f"at operation {self.at}, {func}")
        return func(*args, **(kwargs or {}))


def injecting(subject: Subject) -> Prepared:
    model = subject.dense()
    return model, None, lambda: inject_(model, subject.config, example_inputs=inputs_of(model))


def scoring(subject: Subject) -> Prepared:
    model, optimizer = subject.trained()
    return model, optimizer, lambda: score_(model)


def updating(subject: Subject) -> Prepared:
    model, optimizer = subject.trained()
    optimizer.step()  # what is pruned is not zero, then
    score_(model)
    return model, optimizer, lambda: update_(model, target_sparsity(model), regrow=0.5, optimizer=optimizer)


def pruning(subject: Subject) -> Prepared:
    model = subject.injected()
    return model, None, lambda: prune_(model, [inputs_of(model)], rounds=2, passes=2)


def packing(subject: Subject) -> Prepared:
    model, optimizer = subject.trained()
    optimizer.step()
    return model, optimizer, lambda: compress_(model, inputs_of(model))


VERBS: dict[str, Callable[[Subject], Prepared]] = {
    "inject_": injecting,
    "score_": scoring,
    "update_": updating,
    "prune_": pruning,
    "compress_": packing,
}
KINDS = ("bert", "activity", "sprouts", "native", "streams", "tied streams", "resnet", "lstm")
CASES = [(verb, kind) for kind in KINDS for verb in VERBS if (verb, kind) != ("prune_", "native")]
CASES += [("loading", kind) for kind in (*KINDS, *(kind for kind in SUBJECTS if kind.endswith("packed")))]


def everything(model: PreTrainedModel, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """All that is compared, by what it is."""
    found: dict[str, Any] = {"layout": copy.deepcopy(layout_of(model)), "config": model.config.to_json_string()}
    for name, module in model.named_modules():
        own = vars(module)
        found[f"{name} is"] = (id(module), type(module), module.training, sorted(own))
        found[f"{name} hooks"] = {key: dict(value) for key, value in own.items() if "_hooks" in key}
        for key, value in own.items():
            if isinstance(value, Tensor):
                found[f"{name}.{key}"] = bits(value)
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        found[name] = (id(tensor), tensor.data_ptr(), tensor.requires_grad, bits(tensor))
        found[f"{name} gradient"] = None if tensor.grad is None else (id(tensor.grad), bits(tensor.grad))
    for index, state in enumerate(optimizer.state.values() if optimizer else ()):
        found[f"optimizer {index}"] = {key: bits(v) if isinstance(v, Tensor) else v for key, v in state.items()}
    found |= process_state()
    return found


def process_state() -> dict[str, Any]:
    cuda = torch.backends.cuda
    sdp = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())
    return {
        "attention switches": sdp,
        "random state": bits(torch.get_rng_state()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "defaults": (torch.get_default_dtype(), torch.get_default_device(), torch.nn.init.normal_),
    }


def bits(tensor: Tensor) -> tuple[Any, ...]:
    """Its dtype, shape and bits, so that zeros of another sign and NaN are told apart, too."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@contextmanager
def interrupted(at: int | None, error: type[BaseException]) -> Iterator[Interruption]:
    """Whether it was raised to here is told by the `reached` of what this gives."""
    mode = Interruption(at, error)
    mode.reached = False  # type: ignore[attr-defined]
    try:
        with mode:
            yield mode
    except (Interrupted, OutOfMemory, ValueError, RuntimeError):
        mode.reached = True  # type: ignore[attr-defined]


def try_verb(verb: str, kind: str, at: int | None, error: type[BaseException]) -> tuple[str, int]:
    """One case.

    Returns:
        `"as it was"`, `"went on"` where the verb ended without an error all the same (where a forward pass that breaks
        means that a wire is not cut), or what differs; and the operations that were counted.
    """
    model, optimizer, run = VERBS[verb](SUBJECTS[kind])
    before = everything(model, optimizer)
    with interrupted(at, error) as mode:
        run()
    if not mode.reached:  # type: ignore[attr-defined]
        return "went on", mode.count
    after = everything(model, optimizer)
    differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return (f"changed: {', '.join(differing[:8])}" if differing else "as it was"), mode.count


def try_loading(kind: str, folder: Path, at: int | None, error: type[BaseException]) -> tuple[str, int]:
    """The same for `from_pretrained`: the process and the folder are as they were, and loading again succeeds."""
    place = folder / kind
    if not place.exists():
        SUBJECTS[kind].saved(place)
    kind_of: Any = type(SUBJECTS[kind].make())

    def state() -> dict[str, Any]:
        return process_state() | {file.name: file.read_bytes() for file in sorted(place.iterdir())}

    before = state()
    with interrupted(at, error) as mode:
        kind_of.from_pretrained(place)
    if not mode.reached:  # type: ignore[attr-defined]
        return "went on", mode.count
    after = state()
    differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return (f"changed: {', '.join(differing[:8])}" if differing else "as it was"), mode.count


def interrupt(seed: int, folder: Path, counts: dict[tuple[str, str], int], index: int, tell: Tell) -> str:
    """Case number `index` of all: tells what is interrupted and where, and returns what came of it.

    Args:
        folder: where checkpoints are kept from case to case.
        counts: the operations of each verb on each model; filled as they become known.
    """
    chance = random.Random(f"interruption {seed} {index}")
    verb, kind = CASES[index % len(CASES)]
    attempt = partial(try_loading, kind, folder) if verb == "loading" else partial(try_verb, verb, kind)
    if (verb, kind) not in counts:
        counts[verb, kind] = attempt(None, Interrupted)[1]
    error = chance.choice([Interrupted, OutOfMemory])
    at = chance.randint(1, counts[verb, kind])
    tell(verb, f"{kind}, at {at} of {counts[verb, kind]} by {error.__name__}")
    return attempt(at, error)[0]
