"""torchvision, which timm imports, and transformers where it finds it: PyPI's build of it cannot load its compiled
operators beside a build of torch for CPUs, and registers shapes for two of them all the same, which fails.

Here both operators are declared, with the signatures that torchvision gives them and without code. So everything of
torchvision that is written in Python is the real thing, and so are timm's models, which call no operator of it; to
suppress overlapping boxes (`nms`, `qnms`) would raise. Where torchvision works, or is absent, nothing is done.
"""

import importlib
import importlib.util

BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> None:
    """Import it where it is installed, with both operators declared where it fails for want of them."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        import torch

        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", BOXES)
        importlib.import_module("torchvision")
