"""Bases that the repository keeps, so that nobody trains for hours what others have trained: `bases/<card>/seed<n>`."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .runs import Run
from .task import Task

FOLDER = Path(__file__).resolve().parents[1] / "bases"
LEFT_OUT = ("examples",)  # of a run: what is scored anew


def kept(task: Task, run: Run, folder: Path = FOLDER) -> Path | None:
    """The base of this seed, where one is kept that was made by this recipe.

    Its weights are in half precision, and `run.json` beside them says how it was made.
    """
    path = folder / Path(task.default_card).stem / f"seed{run.seed}"
    if run.method != "base" or not (path / "model.safetensors").exists():
        return None
    made = json.loads((path / "run.json").read_text())
    return path if made["recipe"] == json.loads(json.dumps(task.base_recipe(task.recipe()))) else None


def keep(task: Task, run: Run, output_dir: Path, folder: Path = FOLDER) -> Path:
    """Write a finished base to where it is kept, and return that place."""
    path = folder / Path(task.default_card).stem / f"seed{run.seed}"
    path.mkdir(parents=True, exist_ok=True)
    made = json.loads((output_dir / f"{run.name}.json").read_text())
    model = task.load(output_dir / run.name)
    assert isinstance(model, PreTrainedModel)
    model.half().save_pretrained(path)
    described = {name: value for name, value in made.items() if name not in LEFT_OUT}
    (path / "run.json").write_text(json.dumps({"command": _command(task, run), **described}, indent=1) + "\n")
    return path


def take(task: Task, run: Run, path: Path, output_dir: Path) -> dict[str, Any]:
    """Put a kept base, in full precision, where a training would have put it; what its run.json says, scored anew."""
    finished, unfinished = output_dir / run.name, output_dir / f"{run.name}.kept"
    model = task.load(path)
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(unfinished)
    processing = task.processing()
    if processing is not None:
        processing.save_pretrained(unfinished)
    shutil.rmtree(finished, ignore_errors=True)
    unfinished.rename(finished)
    score = task.score(task.load(finished))
    made = json.loads((path / "run.json").read_text())
    return made | {"score": score.value, "examples": score.examples, **score.extras, "kept": path.parent.name}


def _command(task: Task, run: Run) -> str:
    """What trains it anew; the folders are those of whoever does."""
    recipe = task.base_recipe(task.recipe())
    options = [word for name, value in recipe.items() if value is not None for word in _option(name, value)]
    script = f"python examples/benchmarks/{task.card().script}"
    return f"{script} base --train_bases --seeds {run.seed} {shlex.join(options)}"


def _option(name: str, value: Any) -> list[str]:
    return [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
