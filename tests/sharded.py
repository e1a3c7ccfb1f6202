"""The same training on one process and on several: what `test_fsdp.py` compares, and what its processes run.

`python sharded.py OUT` is one of the processes that torchrun's environment variables describe; it writes all that it
saw to `OUT/<rank>.pt`.
"""

import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from models import build, images, pixels, series, text, vectors
from torch import Tensor, nn

from optimum.dendritic import DendriticConfig, compress_, inject_, mask_, score_, update_
from optimum.dendritic.record import dendritic_layers

STEPS, SAMPLES = 7, 4  # of optimization, and in each step, over all processes
UPDATES = {2: 0.2, 4: 0.4, 6: 0.5}  # step -> sparsity
Found = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A model of `models.py`, how it is pruned, and whether in training mode."""

    model: str
    config: dict = field(default_factory=dict)
    training: bool = False


FINE = {"segment_size": 4, "arbors": 3, "importance": "dendritic"}
CASES = {
    "bert": Case("bert", FINE),
    "gpt2": Case("gpt2", FINE | {"arbors": 4, "segment_size": 16}),  # Conv1D: shards of inputs, segments across them
    "cnn": Case("plain_cnn", {"importance": "magnitude"}),
    "lstm": Case("lstm", {}),
    "taylor": Case("residual_mlp", FINE | {"importance": "taylor"}),
    "movement": Case("residual_mlp", FINE | {"importance": "movement"}),
    "magnitude": Case("residual_mlp", FINE | {"importance": "magnitude"}),
    "random": Case("residual_mlp", FINE | {"importance": "random"}),
    "activation": Case("residual_mlp", FINE | {"importance": "activation"}, training=True),
    "sprouts": Case("bert", {"segment_size": 4, "sprout_rank": 1, "importance": "activation"}, training=True),
}
BATCHES: dict[str, Callable[[int], Found]] = {
    "bert": text,
    "gpt2": text,
    "plain_cnn": pixels,
    "residual_mlp": vectors,
    "lstm": series,
    "vit": lambda n: images(16, n),
}


def answer(model: nn.Module, inputs: Found) -> Tensor:
    found = model(**inputs)
    return found if isinstance(found, Tensor) else found["logits"]


def train(case: Case, wrap: Callable[[nn.Module], object], rank: int, world: int) -> tuple[nn.Module, Found]:
    """Train on this process's share of each batch. Returns the model, and scores, masks, weights and moments."""
    model, example = build(case.model)
    config = DendriticConfig(**{"sparsity": 0.5, "decay": 0.5, "floor": 0.0} | case.config)
    inject_(model, config, example_inputs=example)
    model.train(case.training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each process draws its own
    wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)  # rounding may not decide a step's direction
    everything, found = BATCHES[case.model](STEPS * SAMPLES), {}
    for step in range(1, STEPS + 1):
        own = slice(
            (step - 1) * SAMPLES + rank * SAMPLES // world, (step - 1) * SAMPLES + (rank + 1) * SAMPLES // world
        )
        answer(model, {key: value[own] for key, value in everything.items()}).sin().square().mean().backward()
        score_(model)
        if step in UPDATES:
            regrown = update_(model, UPDATES[step], regrow=0.5 if step < 6 else 0, optimizer=optimizer).regrown
            found[f"{step}.regrown"] = torch.tensor(regrown)
        optimizer.step()
        mask_(model)
        optimizer.zero_grad()
        for name, layer in dendritic_layers(model).items():
            found[f"{step}.{name}.score"], found[f"{step}.{name}.mask"] = (
                layer.dendrite_score.clone(),
                layer.dendrite_mask.clone(),
            )
    for name, parameter in model.named_parameters():
        found[f"end.{name}"] = all_of(parameter)
        for key, moment in optimizer.state[parameter].items():
            found[f"end.{name}.{key}"] = all_of(moment)
    return model, found


def pack(model: nn.Module, case: Case) -> Found:
    """Pack, and answer a batch that every process sees alike."""
    inputs = BATCHES[case.model](3)
    compress_(model, inputs)
    with torch.no_grad():
        found = {"packed.answer": answer(model.eval(), inputs)}
    return found | {f"packed.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}


def all_of(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


class Gathered:
    """Watches `DTensor.full_tensor`: how large each gathered tensor is, and how much of all that lives at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.peak = 0
        self.alive: list[weakref.ref] = []

    def __enter__(self) -> "Gathered":
        from torch.distributed.tensor import DTensor

        self.stock = DTensor.full_tensor
        watch, stock = self, self.stock

        def full_tensor(tensor, **kwargs):
            found = stock(tensor, **kwargs)
            watch.sizes.append(found.numel())
            watch.alive.append(weakref.ref(found.untyped_storage()))
            watch.peak = max(watch.peak, sum(s.nbytes() for s in (ref() for ref in watch.alive) if s is not None))
            return found

        DTensor.full_tensor = full_tensor
        return self

    def __exit__(self, *error) -> None:
        from torch.distributed.tensor import DTensor

        DTensor.full_tensor = self.stock


def shard(model: nn.Module, **policy) -> None:
    """Each block a group of its own, as FSDP2 is used."""
    from torch.distributed.fsdp import fully_shard

    for block in (m for m in model.modules() if isinstance(m, nn.ModuleList)):
        for child in block:
            fully_shard(child, **policy)
    fully_shard(model, **policy)


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    found: dict[str, object] = {"world": world}
    for name, case in CASES.items():
        model, seen = train(case, shard, rank, world)
        with Gathered() as gathered:
            seen |= pack(model, case)
        found[name] = seen
        found[f"{name}.gathered"] = {"sizes": gathered.sizes, "peak": gathered.peak}
    torch.save(found, out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    os._exit(0)
