"""An environment with the packages of this one, except ours, and what models answer that are loaded there."""

import subprocess
import sys
from pathlib import Path

import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.families import Family, inputs_of
from helpers.processes import HANGS

CHILD = """
import importlib.util, sys
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file, save_file
assert importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.dendritic") is None
for folder in map(Path, sys.argv[1:]):
    auto = getattr(transformers, (folder / "auto").read_text())
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(model).__module__.startswith("transformers.")
    with torch.no_grad():
        outputs = model(**load_file(folder / "inputs.safetensors"))
    save_file({"logits": outputs.logits.contiguous()}, folder / "outputs.safetensors")
print("loaded without optimum.dendritic")
"""


def python_without_us(folder: Path) -> Path:
    """The interpreter of an environment that is made in `folder` (an editable install, whose own `.pth` is not read
    there)."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = Path(hf.__file__).parents[1]
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "packages.pth").write_text(f"{packages}\n")
    return folder / "bin" / "python"


def answers_elsewhere(python: Path, models: dict[Path, tuple[hf.PreTrainedModel, Family]]) -> dict[Path, Tensor]:
    """Save each model in its folder, load it by its family's class in another process, and return its logits there."""
    for folder, (model, family) in models.items():
        model.save_pretrained(folder)
        (folder / "auto").write_text(family.load.__name__)
        save_file({k: v.contiguous() for k, v in inputs_of(family).items()}, folder / "inputs.safetensors")
    done = subprocess.run(
        [str(python), "-I", "-c", CHILD, *map(str, models)], capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0 and "loaded without" in done.stdout, done.stderr
    return {folder: load_file(folder / "outputs.safetensors")["logits"] for folder in models}
