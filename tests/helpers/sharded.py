"""The same training on one process and on several that FSDP2 shards: what each process of `test_fsdp.py` runs.

    python -m helpers.sharded OUT      with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, once for each rank

Every rank writes all that it saw to `OUT/<rank>.pt`; nobody compares here. All cases share the processes, since these
are dear.
"""

import os
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from helpers.models import build, pixels, series, text, vectors
from optimum.dendritic import DendriticConfig, DendriticError, compress_, inject_, mask_, prune_, score_, update_
from optimum.dendritic import compress as packing
from optimum.dendritic.distributed.dtensor import put_, summed, whole
from optimum.dendritic.functional.tiles import over_tiles, piece, sum_tiles, tiles
from optimum.dendritic.nn.block_stack import GATE
from optimum.dendritic.nn.pack_model import Packed, pack_modules
from optimum.dendritic.state import dendritic_layers

STEPS, SAMPLES = 7, 4  # of optimization, and in each step, over all processes
UPDATES = {2: 0.3, 4: 0.4, 6: 0.5}  # step -> sparsity
SETTLED = 30  # seconds in which threads have let go of what they do not need
Found = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A model of `models.py`, and how it is pruned."""

    model: str
    config: dict[str, Any] = field(default_factory=dict)


FINE = {"segment_size": 4, "arbors": 3}  # arbors of 8 rows: a shard of 12 ends inside one
CASES = {
    "bert": Case("bert", FINE),
    "gpt2": Case("gpt2", {"segment_size": 16, "arbors": 4}),  # Conv1D is cut along its inputs, through the segments
    "convolutions": Case("plain_cnn", {"importance": "magnitude"}),
    "lstm": Case("lstm"),
    "gru": Case("gru"),
    "taylor": Case("residual_mlp", FINE | {"importance": "taylor"}),
    "movement": Case("residual_mlp", FINE | {"importance": "movement"}),
    "magnitude": Case("residual_mlp", FINE | {"importance": "magnitude"}),
    "random": Case("residual_mlp", FINE | {"importance": "random"}),
    "activation": Case("gpt2", {"segment_size": 4, "importance": "activation"}),
    "native": Case("bert", {"native": True}),  # blocks with gates, and a stock model at the end
    "native by magnitude": Case("bert", {"native": True, "importance": "magnitude"}),
    "sprouts": Case("bert", {"segment_size": 4, "sprout_rank": 1}),
    "streams and blocks": Case("bert", {"units": ["heads", "neurons", "streams", "blocks"]}),
    "tied streams": Case("gpt2", {"units": "structured"}),
}
BATCHES: dict[str, Callable[[int], Found]] = {
    "bert": text, "gpt2": text, "plain_cnn": pixels, "residual_mlp": vectors, "lstm": series, "gru": series
}  # fmt: skip
SHAPES = {  # weight, arbors, segments, transposed: on two processes
    "rows cut inside an arbor": ((6, 8), 3, 4, False),
    "uneven rows": ((5, 8, 3, 2), 1, 2, False),
    "a process without rows": ((1, 4), 1, 2, False),
    "inputs cut inside a segment": ((9, 4), 2, 3, True),
    "a process without inputs": ((1, 4), 4, 1, True),
}


def answer(model: nn.Module, inputs: Found) -> Tensor:
    found = model(**inputs)
    return found if isinstance(found, Tensor) else found["logits"]


def prepared(case: Case) -> nn.Module:
    """Injected; the layers alone are in training mode, which lets them note their inputs. Dropout would differ."""
    model, example = build(case.model)
    config = DendriticConfig(**{"sparsity": 0.5, "decay": 0.5, "floor": 0.0} | case.config)
    inject_(model, config, example_inputs=example)
    for layer in dendritic_layers(model.eval()).values():
        layer.training = True
    return model


def train(
    model: nn.Module, case: Case, rank: int, world: int, first: int = 1, last: int = STEPS
) -> tuple[torch.optim.Optimizer, Found]:
    """Train on this process's share of each batch. Returns the optimizer, and scores and masks of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)  # rounding may not decide a step's direction
    everything, found, share = BATCHES[case.model](STEPS * SAMPLES), {}, SAMPLES // world
    for step in range(first, last + 1):
        start = (step - 1) * SAMPLES + rank * share
        own = {key: value[start : start + share] for key, value in everything.items()}
        answer(model, own).float().sin().square().mean().backward()
        score_(model)
        if step in UPDATES:
            regrown = update_(model, UPDATES[step], regrow=0.5 if step < 6 else 0, optimizer=optimizer).regrown
            found[f"{step}.regrown"] = torch.tensor(regrown)
        optimizer.step()
        mask_(model)
        optimizer.zero_grad()
        for name, layer in dendritic_layers(model).items():
            found[f"{step}.{name}.score"] = layer.dendrite_score.clone()
            found[f"{step}.{name}.mask"] = layer.dendrite_mask.clone()
    return optimizer, found


def weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> Found:
    """Parameters and what the optimizer keeps for them, in whole; buffers."""
    found = {f"buffer.{name}": buffer.clone() for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        found[f"end.{name}"] = whole(parameter).clone()
        found |= {f"end.{name}.{key}": whole(moment).clone() for key, moment in optimizer.state[parameter].items()}
    return found


def pack(model: nn.Module, case: Case) -> Found:
    """Pack, and answer a batch that every process sees alike."""
    inputs = BATCHES[case.model](3)
    compress_(model, inputs)
    with torch.no_grad():
        found = {"packed.answer": answer(model.eval(), inputs)}
    return found | {f"packed.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}


def alone(case: Case) -> tuple[nn.Module, Found]:
    """All of it on one process."""
    model = prepared(case)
    optimizer, found = train(model, case, 0, 1)
    return model, found | weights(model, optimizer) | pack(model, case)


def shard(model: nn.Module, **policy: Any) -> None:
    """Each block is a group of its own, as FSDP2 is meant to be used; so is each layer, where there are no blocks."""
    blocks = [child for m in model.modules() if isinstance(m, nn.ModuleList) for child in m]
    for block in blocks or [child for child in model.children() if list(child.parameters())]:
        fully_shard(block, **policy)
    fully_shard(model, **policy)


class Gathered:
    """Watches `DTensor.full_tensor`: the size of each gathered tensor, and how many of their bytes live at once."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.sizes: list[int] = []
        self.peak = 0
        self.storages: list[weakref.ref] = []

    def __enter__(self) -> "Gathered":
        self.stock = stock = DTensor.full_tensor

        def full_tensor(tensor: DTensor, **kwargs: Any) -> Tensor:
            found = stock(tensor, **kwargs)
            self.sizes.append(found.numel())
            self.storages.append(weakref.ref(found.untyped_storage()))
            self.peak = max(self.peak, self.held())
            return found

        DTensor.full_tensor = full_tensor  # type: ignore[method-assign]
        return self

    def held(self) -> int:
        """Bytes of what was gathered and is still there. More than `allowed` is asked for again until it stays: a
        thread of gloo may let go of a tensor a moment after everyone else has."""
        end = time.monotonic() + SETTLED
        while True:
            living = [storage for storage in (ref() for ref in self.storages) if storage is not None]
            total = sum(storage.nbytes() for storage in living)
            del living
            if total <= self.allowed or time.monotonic() > end:
                return total
            time.sleep(0.01)

    def __exit__(self, *error: object) -> None:
        DTensor.full_tensor = self.stock  # type: ignore[method-assign]


def on_shards(name: str, rank: int, world: int) -> Found:
    found: dict[str, Any] = {}
    model = prepared(CASES[name])
    shard(model)
    layers = dendritic_layers(model)
    found["held"] = {key: (p.to_local().numel(), p.numel()) for key, p in model.named_parameters()}
    optimizer, seen = train(model, CASES[name], rank, world)
    seen |= weights(model, optimizer)
    found["targets"] = [[p.numel() for p in layer.parameters(recurse=False)] for layer in layers.values()]
    found["others"] = sum(p.numel() for p in model.parameters()) - sum(map(sum, found["targets"]))
    gone = ("sprout",) if CASES[name].config.get("native") else ("sprout", GATE)  # a gate is no part of what is packed
    found["parameters"] = [p.numel() for key, p in model.named_parameters() if not any(part in key for part in gone)]
    with Gathered(4 * (found["others"] + max(map(sum, found["targets"])))) as gathered:
        seen |= pack(model, CASES[name])
    found |= {"sizes": gathered.sizes, "peak": gathered.peak, "seen": seen}
    found["attributes"] = {key: (type(m).__qualname__, sorted(vars(m))) for key, m in model.named_modules()}
    found["hooks"] = {
        key: {k: len(v) for k, v in vars(m).items() if "_hooks" in k and v} for key, m in model.named_modules()
    }
    return found


def spoiled(*args: Any) -> Packed:
    """Packed modules whose weights are wrong."""
    packed = pack_modules(*args)
    for module in packed.modules.values():
        for parameter in module.parameters(recurse=False):
            parameter.data.add_(1)
    return packed


def undone(rank: int, world: int) -> dict[str, Any]:
    """Packing that fails its verification: the model trains on as if nothing had happened."""
    results = []
    for attempt in (False, True):
        model = prepared(CASES["bert"])
        shard(model)
        train(model, CASES["bert"], rank, world, last=4)
        said = ""
        if attempt:
            stock, packing.pack_modules = packing.pack_modules, spoiled
            try:
                compress_(model, text(3))
            except DendriticError as error:
                said = str(error)
            packing.pack_modules = stock
        optimizer, _ = train(model, CASES["bert"], rank, world, first=5)
        results.append(weights(model, optimizer))
    return {"said": said, "without": results[0], "with": results[1]}


def low_precision(rank: int, world: int) -> Found:
    """Shards in fp32, products in bf16."""
    model = prepared(CASES["bert"])
    shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    optimizer, found = train(model, CASES["bert"], rank, world)
    return found | weights(model, optimizer) | pack(model, CASES["bert"])


def refusals() -> dict[str, str]:
    said = {}
    model = build("residual_mlp")[0]
    shard(model)
    injected = prepared(CASES["taylor"])
    shard(injected)
    across = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    inject_(across, DendriticConfig(target_modules=["0"], segment_size=1), example_inputs={"input": torch.ones(1, 4)})
    fully_shard(across, shard_placement_fn=lambda parameter: Shard(parameter.dim() - 1))
    attempts: dict[str, Callable[[], object]] = {
        "inject_": lambda: inject_(model, DendriticConfig(), example_inputs=vectors(1)),
        "prune_": lambda: prune_(injected, [vectors(2)]),
        "other dimension": lambda: mask_(across),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except DendriticError as error:
            said[name] = str(error)
    return said


def pieces(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What comes of a shard's tiles, and what has to."""
    shape, arbors, segments, transposed = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    full, new = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    weight = distribute_tensor(full.clone(), dist.device_mesh.init_device_mesh("cpu", (2,)), [Shard(0)])
    part, total = piece(weight, arbors, segments, transposed), torch.zeros(arbors, segments)
    part.add_to(total, sum_tiles(part.tiles))
    found = {"sums": (summed(total, weight), sum_tiles(tiles(full, arbors, segments, transposed)))}
    chosen = torch.rand(arbors, segments, generator=generator) < 0.5
    part.blank_(chosen)
    blank = full.clone()
    tiles(blank, arbors, segments, transposed).masked_fill_(over_tiles(chosen), 0)
    found["blank"] = whole(weight), blank
    put_(weight, new)
    found["put"] = whole(weight), new
    return found


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    found: dict[str, Any] = {"world": world, "rank": rank, "pid": os.getpid()}
    found["cases"] = {name: on_shards(name, rank, world) for name in CASES}
    found["pieces"] = {name: pieces(name) for name in SHAPES}
    found["undone"] = undone(rank, world)
    found["bf16"] = low_precision(rank, world)
    found["refusals"] = refusals()
    from helpers.sharded_trainer import in_trainer

    found["trainer"] = in_trainer(out / "trainer")
    torch.save(found, out / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
