"""A stock Trainer under FSDP2 on the processes of `sharded.py`: the callback, checkpoints, resuming, saving.

accelerate shards on accelerators only and falls back to DDP on a CPU. The one thing that is not real here is that it is
told otherwise: `told_to_shard` sets its distributed type. What it does from there on (`fully_shard` by its wrapping
policy, the optimizer's parameters, gradient clipping, sharded checkpoints) is its own code, over gloo.
"""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from helpers.models import build
from optimum.dendritic import DendriticCallback, DendriticConfig
from optimum.dendritic.state import dendritic_layers, layout_of

CONFIG = DendriticConfig(sparsity=0.5, updates=4, regrow=0.3, segment_size=4)


class Look(TrainerCallback):
    """Notes whether the layers were sharded while they trained."""

    def __init__(self) -> None:
        self.sharded: list[bool] = []

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        self.sharded += [isinstance(layer.weight, DTensor) for layer in dendritic_layers(model).values()]


def told_to_shard(arguments: TrainingArguments) -> Any:
    from accelerate import Accelerator
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    assert arguments.world_size == 2
    state = Accelerator(cpu=True, mixed_precision="bf16").state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BertLayer"],
        reshard_after_forward=True,
        state_dict_type="SHARDED_STATE_DICT",
    )
    state.fsdp_plugin.set_mixed_precision("bf16")
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return state.fsdp_plugin


def in_trainer(folder: Path) -> dict[str, Any]:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    generator = torch.Generator().manual_seed(1)
    data = [{"input_ids": torch.randint(3, 50, (6,), generator=generator), "labels": i % 3} for i in range(64)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=3,
        save_steps=5,
        eval_strategy="steps",
        eval_steps=5,
        report_to="none",
        use_cpu=True,
        bf16=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    plugin = told_to_shard(arguments)
    found: dict[str, Any] = {}
    for run, checkpoint in (("through", None), ("resumed", folder / "checkpoint-5")):
        plugin.set_state_dict_type("SHARDED_STATE_DICT")
        look = Look()
        callbacks = [DendriticCallback(CONFIG), look]
        trainer = Trainer(build("bert")[0], arguments, train_dataset=data, eval_dataset=data[:9], callbacks=callbacks)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        found[run] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        found[f"{run} sharded"] = look.sharded
    layout = layout_of(trainer.model)
    found["packed"] = layout is not None and layout.packed
    found["loss"] = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(folder / "small"))
    trainer.accelerator.wait_for_everyone()
    ids = torch.stack([sample["input_ids"] for sample in data[:5]])
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "small")
    with torch.no_grad():
        found["answers"] = trainer.model.eval()(input_ids=ids).logits, loaded.eval()(input_ids=ids).logits
    assert dist.get_world_size() == 2
    return found
