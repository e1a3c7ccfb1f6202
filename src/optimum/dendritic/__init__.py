"""Training-time compression for Hugging Face models: dendritic segments are scored, pruned, regrown and packed.

Importing this package also registers the loader, so that `AutoModel….from_pretrained` reads compressed checkpoints.
"""

from .compress import compress_ as compress_
from .config import DendriticConfig as DendriticConfig
from .distillation import Distillation as Distillation
from .distillation import distill_ as distill_
from .efficiency import EfficiencyReport as EfficiencyReport
from .efficiency import measure as measure
from .errors import CheckpointError as CheckpointError
from .errors import DendriticError as DendriticError
from .errors import PushError as PushError
from .functional.distillation_loss import distillation_loss as distillation_loss
from .huggingface import DendriticCallback as DendriticCallback
from .huggingface import last_checkpoint as last_checkpoint
from .huggingface import push_to_hub as push_to_hub
from .huggingface.checkpoint.dormant import load_dormant_ as load_dormant_
from .huggingface.checkpoint.dormant import save_dormant as save_dormant
from .huggingface.checkpoint.from_config import from_config as from_config
from .huggingface.checkpoint.plain import load as load
from .huggingface.checkpoint.plain import save as save
from .inject import inject_ as inject_
from .inspection.describe import describe as describe
from .one_shot.allocate import search_allocation as search_allocation
from .one_shot.prune import prune_ as prune_
from .pruner import Pruner as Pruner
from .runtimes.onnx import export_onnx as export_onnx
from .search.allocation import Allocation as Allocation
from .structure.dependency_groups import Wiring as Wiring
from .structure.dependency_groups import trace_wiring as trace_wiring
from .train_steps import Pruning as Pruning
from .train_steps import Update as Update
from .train_steps import mask_ as mask_
from .train_steps import score_ as score_
from .train_steps import target_sparsity as target_sparsity
from .train_steps import update_ as update_
from .train_steps import update_plan as update_plan
from .wake import calibrate_dormant_ as calibrate_dormant_
from .wake import set_wake_rate as set_wake_rate
