"""The peers of the tables: their packages, what of them prunes, and on which tasks it was tried."""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

METHODS = Path(__file__).with_name("methods")
LEVELS: dict[str, tuple[float, ...]] = {"resnet20": (0.5,), "mnist": (0.8, 0.9), "sst2": (0.6, 0.8)}
TITLES = {"resnet20": "ResNet-20, CIFAR-10", "mnist": "CNN, MNIST", "sst2": "MiniLM, SST-2"}
OWN = "dendritic"
IMAGES = {task: levels for task, levels in LEVELS.items() if task != "sst2"}
BESIDES = {
    "nvidia-modelopt": ("requests", "torchprofile==0.0.4"),
    "nncf": ("torchao",),
}  # what a package imports and does not declare


@dataclass(frozen=True)
class Method:
    """One way to prune.

    Attributes:
        label: How the table calls it.
        package: Its distribution and version for pip; empty for what comes with PyTorch.
        tasks: Where it was tried, with the levels.
    """

    label: str
    package: str = ""
    tasks: dict[str, tuple[float, ...]] = field(default_factory=lambda: LEVELS)


ALL = {
    OWN: Method("optimum-dendritic"),
    "torch_pruning_magnitude": Method("torch-pruning, group magnitude", "torch-pruning==1.6.1"),
    "torch_pruning_taylor": Method("torch-pruning, Taylor", "torch-pruning==1.6.1"),
    "torch_pruning_group_norm": Method("torch-pruning, GroupNorm (shrinkage)", "torch-pruning==1.6.1"),
    "modelopt_fastnas": Method("ModelOpt, FastNAS", "nvidia-modelopt==0.47.0", IMAGES),
    "nncf_magnitude": Method("NNCF, magnitude, global", "nncf==3.4.0", IMAGES),
    "torch_l1_unstructured": Method("torch.nn.utils.prune, L1, unstructured"),
    "torch_ln_structured": Method("torch.nn.utils.prune, L2, rows"),
}
WORDS = {
    "torch-pruning 1.6.1": (
        "cuts whole groups physically by its dependency graph, without training in it: when to cut, how to shrink and "
        "how to recover is the user's loop. It saves by pickling the module, and to load that is to "
        "run what the file says."
    ),
    "nvidia-modelopt 0.47.0": (
        "has two modes of `mtp.prune` left for plain PyTorch and Megatron, `fastnas` (widths of convolutional nets, by "
        "a search before the training) and `mcore_minitron` (Megatron models only); `gradnas`, which pruned BERT, is "
        "gone, so that there is no row of MiniLM. Nothing is pruned during the training. `modelopt.torch.sparsity` "
        "makes 2:4 masks, whose zeros stay in the file. Not all that `fastnas` imports is declared: it needs "
        "`requests` and torchprofile 0.0.4 (0.1.0 has no `handlers`)."
    ),
    "nncf 3.4.0": (
        "has `nncf.prune` with three modes, all of single weights (magnitude of each tensor, magnitude of all, a "
        "regularised mask that is trained): filters, heads and blocks, which earlier versions pruned, are gone. Masks "
        "are functions around the weights; `nncf.strip` writes their zeros into them, and the file stays as it was. "
        "`import nncf.torch` needs torchao, which it does not declare."
    ),
    "perforatedai 3.2.9": (
        "adds to a model: copies of its modules beside them, as dendrites of its neurons, when the score stops rising. "
        "It removes nothing. Its claims of compression start from a smaller architecture that its user chooses. There "
        "is nothing to set beside a pruned model, so that it has no row."
    ),
    "torch.nn.utils.prune": (
        "masks: single weights or whole rows become zeros in tensors of the old shape. File, MACs and time stay."
    ),
}


def module_of(name: str) -> ModuleType:
    """`compress`, `save` and `load` of a method; its package must be there."""
    return import_module(f"peers.methods.{name}")
