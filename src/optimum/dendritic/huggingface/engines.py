"""What trains the Trainer's model: which engines of accelerate a compression can work with, and how it ends on them.

DDP and FSDP2 leave gradients and parameters where a callback finds them. DeepSpeed does not, at any stage: accelerate's
`DeepSpeedEngineWrapper.backward` steps the optimizer and clears the gradients before `on_pre_optimizer_step`, and the
step writes the parameters anew from a flat copy of its own, so that nothing is scored and what is pruned comes back.
"""

from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..errors import invalid
from ..shards import ZERO3

REMEDY = "Train with DDP, or with FSDP2 where the parameters must be sharded: examples/accelerate/fsdp2.yaml."


def check_engine(compiles: bool) -> None:
    """Raise `DendriticError` where the Trainer's engine, or a setting of it, would break the compression.

    Args:
        compiles: whether the Trainer compiles the model.
    """
    from accelerate.state import AcceleratorState  # here: only a Trainer needs accelerate
    from accelerate.utils import DistributedType

    state = AcceleratorState()
    if is_deepspeed_zero3_enabled():
        raise invalid("zero_stage", 3, ZERO3, REMEDY)
    if state.distributed_type == DistributedType.DEEPSPEED:
        rule = (
            "takes the gradients away before a callback sees them, and keeps a copy of the weights that pruning misses"
        )
        raise invalid("distributed_type", "DEEPSPEED", rule, REMEDY)
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


def save_in_whole() -> None:
    """Let `Trainer.save_model` write a model that is no longer sharded: under `SHARDED_STATE_DICT` it writes none."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    state = AcceleratorState()
    if state.distributed_type == DistributedType.FSDP:
        assert state.fsdp_plugin is not None
        state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
