"""What each rank of a distributed training runs: cases one after another in one process, since processes are dear.

    accelerate launch ... -m helpers.ranks FOLDER NAME ...

Every rank writes, for each case, its masks and scores at every update and its packed tensors; nobody compares here.
The tests call `run` themselves for one process with the same batches.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from helpers.models import build
from helpers.processes import HANGS, environment
from optimum.dendritic import DendriticCallback, DendriticConfig
from optimum.dendritic.distributed.collectives import from_first_rank_, mean_over_ranks
from optimum.dendritic.state import dendritic_layers, layout_of

STEPS, GLOBAL_BATCH, SAMPLES = 10, 8, 32
BAD_SAMPLE = 9
BASE: dict[str, Any] = {"sparsity": 0.5, "updates": 4, "regrow": 0.3, "segment_size": 4}


@dataclass(frozen=True)
class Case:
    """A training; `exact` where one process gives the same model: BatchNorm sees other batches, bf16 rounds others."""

    config: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    model: str = "vit"
    exact: bool = True
    relative: float = 1e-3  # tolerance of the comparison, and
    absolute: float = 1e-5
    samples: int = SAMPLES
    bad: bool = False  # one sample is NaN
    guarded: bool = False  # the user skips steps whose gradients are not finite
    own_optimizer: bool = False


CASES = {
    "plain": Case(),
    "accumulation and clipping": Case(arguments={"gradient_accumulation_steps": 2, "max_grad_norm": 0.05}),
    "activation": Case({"importance": "activation"}, {"activation_checkpointing": True}),
    "movement": Case({"importance": "movement"}),
    "taylor": Case({"importance": "taylor", "budget": "macs", "arbors": 2}),
    "random": Case({"importance": "random"}),
    "streams and blocks": Case({"units": ["heads", "neurons", "streams", "blocks"]}),
    # the distance of hidden states is relative to those of one process's micro-batch
    "distillation": Case({"distillation": 1.0, "importance": "activation"}, relative=0.05, absolute=0.01),
    "several sizes": Case({"sparsity": (0.3, 0.5, 0.7), "units": "structured"}, relative=0.05, absolute=0.01),
    "several sizes, compiled": Case(
        {"sparsity": (0.3, 0.6)},
        {"torch_compile": True, "torch_compile_backend": "eager", "gradient_accumulation_steps": 2},
        relative=0.05,
        absolute=0.01,
    ),
    "sprouts": Case({"sprout_rank": 1, "floor": 0.0}),
    "own optimizer": Case(own_optimizer=True),
    "loss over tokens": Case(model="llama", arguments={"gradient_accumulation_steps": 2}),
    "convolutions and BatchNorm": Case({"distillation": 1.0}, model="resnet_basic", exact=False, samples=27),
    "bf16": Case({"importance": "activation"}, {"bf16": True}, exact=False),
    "a bad sample, skipped": Case({"importance": "activation"}, bad=True, guarded=True),
    "a bad sample": Case(bad=True, exact=False),
    "compiled": Case({"importance": "activation"}, {"torch_compile": True, "torch_compile_backend": "eager"}),
}


class Recorder(TrainerCallback):
    """Copies masks and scores right after every update; where the user is careful, skips steps that are not finite."""

    def __init__(self, compression: DendriticCallback, guarded: bool) -> None:
        self.compression, self.guarded = compression, guarded
        self.seen: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        step = state.global_step + 1
        if step in self.compression.plan:
            for name, layer in dendritic_layers(model).items():
                self.seen[f"{step}/mask/{name}"] = layer.dendrite_mask.clone()
                self.seen[f"{step}/score/{name}"] = layer.dendrite_score.clone()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if self.guarded and not all(gradient.isfinite().all() for gradient in gradients):
            self.seen[f"{step}/skipped"] = torch.ones(1)
            model.zero_grad()


def dataset(case: Case) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    if case.model == "llama":
        rows = [torch.randint(3, 50, (6,), generator=generator) for _ in range(case.samples)]
        padded = [torch.where(torch.arange(6) < 3 + index % 4, row, -100) for index, row in enumerate(rows)]
        return [{"input_ids": row, "labels": labels} for row, labels in zip(rows, padded, strict=True)]
    size = 16 if case.model == "vit" else 32
    pixels = torch.randn(case.samples, 3, size, size, generator=generator)
    if case.bad:
        pixels[BAD_SAMPLE] = torch.nan
    return [{"pixel_values": image, "labels": index % 3} for index, image in enumerate(pixels)]


def run(case: Case, folder: str, world: int) -> dict[str, torch.Tensor]:
    """Train on `world` processes, this one among them; all tensors to be compared, by name."""
    model, _ = build(case.model, seed=int(os.environ.get("RANK", 0)))  # other weights on each rank: rank 0's count
    assert isinstance(model, PreTrainedModel)
    model.accepts_loss_kwargs = case.model == "llama"  # the losses of the others are plain means
    compression = DendriticCallback(DendriticConfig(**(BASE | case.config)))
    recorder = Recorder(compression, case.guarded)
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-3,  # or Adam makes steps of full size out of gradients that are nothing but rounding
        "dataloader_drop_last": case.samples == SAMPLES,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "logging_strategy": "no",
    } | case.arguments
    share = GLOBAL_BATCH // world // settings.get("gradient_accumulation_steps", 1)
    arguments = TrainingArguments(folder, per_device_train_batch_size=share, **settings)
    chosen = {}
    if case.own_optimizer:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        chosen["optimizers"] = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step))
    trainer = Trainer(
        model=model, args=arguments, train_dataset=dataset(case), callbacks=[compression, recorder], **chosen
    )
    assert trainer.accelerator.num_processes == world
    trainer.train()
    packed = trainer.accelerator.unwrap_model(trainer.model)
    layout = layout_of(packed)
    assert isinstance(packed, nn.Module) and layout is not None and layout.packed
    tensors = {f"packed/{name}": tensor.detach().clone() for name, tensor in packed.state_dict().items()}
    return recorder.seen | tensors


def launch(processes: int, *script: str, cwd: Path, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    """As in the README. Neither `accelerate launch --cpu` nor `--num_processes` alone starts a second process."""
    kind = ["--multi_gpu"] if config is None else ["--config_file", str(config)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += script
    own = environment(ACCELERATE_USE_CPU="true")
    done = subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-5000:]
    return done


def agreement(rank: int) -> dict[str, torch.Tensor]:
    """What the functions of `collectives` make of tensors that differ from rank to rank."""
    first, second = torch.full((2, 3), float(rank)), torch.arange(4.0) * rank
    means = mean_over_ranks([first, second, torch.empty(0)])
    owned = [torch.full((3,), rank == 0), torch.tensor(rank), torch.full((4, 2), float(rank)).t()]
    from_first_rank_(owned)
    found = {"first": first, "second": second, "mean/first": means[0], "mean/second": means[1], "mean/empty": means[2]}
    return found | {f"owned/{index}": tensor.contiguous() for index, tensor in enumerate(owned)}


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    PartialState(cpu=True)  # starts the process group, as a Trainer would
    save_file(agreement(rank), Path(folder) / f"agreement {rank}.safetensors")
    for name in names:
        save_file(run(CASES[name], folder, world), Path(folder) / f"{name} {rank}.safetensors")
    who = {"pid": os.getpid(), "world": dist.get_world_size(), "rank": dist.get_rank(), "backend": dist.get_backend()}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(who))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
