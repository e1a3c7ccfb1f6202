"""Stock Trainers under DDP or DeepSpeed ZeRO on two gloo processes: `python -m helpers.zero OUT STAGE`; stage 0 is DDP.

accelerate has no way from a CPU to DeepSpeed, and transformers no bf16 there. What is not real here is that both are
told otherwise, in `permitted`; DeepSpeed itself has a CPU backend, and its engine and optimizers are its own.
"""

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers.training_args
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from helpers.models import build
from optimum.dendritic import DendriticCallback, DendriticConfig
from optimum.dendritic.state import gates_of, layout_of

STEPS, SAVED = 12, 5
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments of the Trainer, fields of the config
    "plain": ({}, {}),
    "regrown and clipped": ({"max_grad_norm": 0.05}, {"regrow": 0.5}),
    "accumulated": ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}, {"importance": "taylor"}),
    "sprouts": ({}, {"sprout_rank": 1, "arbors": 2, "exclude_modules": ["attention"]}),
    "taught": ({}, {"distillation": 1.0}),
    "streams and blocks": ({}, {"units": ["heads", "neurons", "streams", "blocks"]}),
}
DEEPSPEED = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


class Look(TrainerCallback):
    """Notes the masks after each step, whether all that is pruned is zero then, and how many gradients DeepSpeed was
    asked for in the step."""

    def __init__(self) -> None:
        self.masks: list[dict[str, torch.Tensor]] = []
        self.zero = True
        self.gathered: list[int] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        layers = gates_of(model)
        self.masks.append({name: layer.dendrite_mask.clone() for name, layer in layers.items()})
        self.gathered.append(ASKED.pop() if ASKED else 0)
        for layer in layers.values():
            sums = torch.zeros_like(layer.dendrite_mask, dtype=torch.float32)
            for part in layer.gated(layer.segmented()):
                part.add_to(sums, part.tiles.abs().float().sum((1, 3, 4)))
            self.zero &= not bool(sums[~layer.dendrite_mask].any())


ASKED: list[int] = []  # how many gradients in the step at hand, as soon as there is one


def counted(get: Callable[[Any], Any], parameter: Any) -> Any:
    ASKED.append(1 + (ASKED.pop() if ASKED else 0))
    return get(parameter)


def permitted(stage: int) -> Any:
    """What lets a Trainer use DeepSpeed on a CPU."""
    if not stage:
        return patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"})
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.utils  # pyright: ignore[reportMissingImports]

    deepspeed.utils.safe_get_full_grad = partial(counted, deepspeed.utils.safe_get_full_grad)
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    setting = {
        "_prepare_backend": lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU),
        "set_device": lambda state: setattr(state, "device", torch.device("cpu")),
    }
    return patch.multiple(PartialState, **setting)


def trained(
    folder: Path, stage: int, arguments: Mapping[str, Any], fields: Mapping[str, Any], resume: bool = False
) -> tuple[Trainer, Look]:
    generator = torch.Generator().manual_seed(1)
    data = [{"input_ids": torch.randint(3, 50, (6,), generator=generator), "labels": i % 3} for i in range(64)]
    engine = {"deepspeed": {**DEEPSPEED, "zero_optimization": {"stage": stage}}} if stage else {"use_cpu": True}
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": SAVED}
    settings["adam_epsilon"] = 1e-4  # a bias that the loss does not feel would follow rounding errors otherwise
    training = TrainingArguments(
        str(folder),
        **{**settings, **arguments},
        **engine,
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    look, config = Look(), DendriticConfig(sparsity=0.5, updates=5, segment_size=4, **fields)
    callbacks = [DendriticCallback(config), look]
    trainer = Trainer(build("bert")[0], training, train_dataset=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}") if resume else None)
    return trainer, look


def seen(trainer: Trainer, look: Look) -> dict[str, Any]:
    layout = layout_of(trainer.model)
    tensors = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    packed = layout is not None and layout.packed
    return {"masks": look.masks, "zero": look.zero, "gathered": look.gathered, "tensors": tensors, "packed": packed}


def main(out: Path, stage: int) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with permitted(stage):
        for name, (arguments, fields) in CASES.items():
            found[name] = seen(*trained(out / name, stage, arguments, fields))
        if stage:
            again = trained(out / "regrown and clipped", stage, *CASES["regrown and clipped"], resume=True)
            found["resumed"] = seen(*again)
            found["bf16"] = seen(*trained(out / "bf16", stage, {"bf16": True}, {"regrow": 0.5}))
            trainer = again[0]
            found["engine"] = type(trainer.model_wrapped).__name__, type(trainer.model_wrapped.optimizer).__name__
            found["stage"] = trainer.model_wrapped.zero_optimization_stage()
            trainer.save_model(str(out / "small"))
            trainer.accelerator.wait_for_everyone()
            ids = torch.arange(3, 9)[None]
            loaded = AutoModelForSequenceClassification.from_pretrained(out / "small")
            with torch.no_grad():
                found["answers"] = trainer.model.eval()(input_ids=ids).logits, loaded.eval()(input_ids=ids).logits
    torch.save(found, out / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
