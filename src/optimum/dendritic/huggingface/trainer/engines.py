"""The engines that train a Trainer's model: which of them a compression can work with, and how it ends on them.

DDP and FSDP2 leave gradients and parameters where a callback finds them; DeepSpeed's ZeRO 1 and 2 need `deepspeed`.
"""

from typing import Any

from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ...distributed.dtensor import REMEDY, ZERO3
from ...errors import invalid
from ...unofficial import calling


def check_engine(compiles: bool) -> None:
    """Raise `DendriticError` if the Trainer's engine, or a setting of it, would break the compression.

    Args:
        compiles: whether the Trainer compiles the model.
    """
    from accelerate.state import AcceleratorState  # here: only a Trainer needs accelerate
    from accelerate.utils import DistributedType

    state = AcceleratorState()
    if is_deepspeed_zero3_enabled():
        raise invalid("zero_optimization.stage", 3, ZERO3, f"Set it to 1 or 2. {REMEDY}")
    if state.distributed_type == DistributedType.DEEPSPEED:
        assert state.deepspeed_plugin is not None
        if state.deepspeed_plugin.zero_stage == 0:
            rule = "spreads nothing over the processes, as DDP does"
            raise invalid("zero_optimization.stage", 0, rule, "Set it to 1 or 2, or train with DDP.")
    if state.distributed_type != DistributedType.FSDP:
        return
    plugin = state.fsdp_plugin
    assert plugin is not None
    if plugin.fsdp_version != 2:
        rule = "FSDP1 flattens the parameters, so that no row of a weight is left to score"
        raise invalid("fsdp_version", plugin.fsdp_version, rule, "Set fsdp_version: 2.")
    if plugin.cpu_ram_efficient_loading:
        rule = "leaves the model empty on every process but one, so that it cannot be traced, and cannot move buffers"
        raise invalid("fsdp_cpu_ram_efficient_loading", True, rule, "Set it to false.")
    if compiles:
        rule = "hides the model from callbacks under FSDP2"
        raise invalid("torch_compile", True, rule, "Set torch_compile=False, or train with DDP.")


def deepspeed_engine() -> Any:
    """The `DeepSpeedEngine` of the Trainer whose callbacks are running; None if another engine trains."""
    from transformers import Trainer

    trainer = calling(Trainer)
    return trainer.deepspeed if trainer is not None and trainer.is_deepspeed_enabled else None


def save_full_state_dict() -> None:
    """Let `Trainer.save_model` write a model that is not sharded: under `SHARDED_STATE_DICT` it writes nothing."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    state = AcceleratorState()
    if state.distributed_type == DistributedType.FSDP:
        assert state.fsdp_plugin is not None
        state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
