"""Loading checkpoints that were edited: refused in words, or a model that answers as the original does."""

import copy
import random
import shutil
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from optimum.dendritic import DendriticError, compress_
from optimum.dendritic.state import layout_of

from .interruptions import bits
from .mutations import EDITS
from .subjects import SUBJECTS, inputs_of
from .trials import Tell

OURS = "optimum/dendritic"
# what may come of a case
FINE = ("refused", "refused when run", "refused by transformers", "not asked", "another head", "equal", "harmless")
CLOSE = 1e-4  # of the largest output: packing sums in another order


class Bases:
    """Checkpoints of all subjects in a folder, and the models that they hold."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cases = folder / "bases", folder / "cases"
        self.cases.mkdir(parents=True, exist_ok=True)
        self.models: dict[str, PreTrainedModel] = {}
        for name, subject in SUBJECTS.items():
            shutil.rmtree(self.folder / name, ignore_errors=True)
            subject.saved(self.folder / name)
            self.models[name] = type(subject.dense()).from_pretrained(self.folder / name)
        self.outputs = {name: answer(model) for name, model in self.models.items()}
        self.states = {name: state(model) for name, model in self.models.items()}

    def run(self, seed: int, index: int, tell: Tell) -> str:
        """Case number `index`: tells its kind of edit, on what and how, and returns its outcome."""
        chance = random.Random(f"mutation {seed} {index}")
        base, kind = list(self.models)[index % len(self.models)], chance.choice(list(EDITS))
        folder = self.cases / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / base, folder)
        said = EDITS[kind](chance, folder)
        if chance.random() < 0.1:  # a second one on top; the first may have left it nothing to edit
            try:
                said += f"; {EDITS[chance.choice(list(EDITS))](chance, folder)}"
            except Exception as error:
                said += f"; {type(error).__name__}"
        tell(kind, f"{base}: {said}")
        before = listing(self.cases)
        outcome = self.load(base, folder, pack=chance.random() < 0.25)
        if listing(self.cases) != before:
            outcome = "stray file: loading wrote into the folder"
        return outcome

    def load(self, base: str, folder: Path, pack: bool) -> str:
        """What comes of loading the folder.

        Args:
            pack: whether an injected model that loads is packed, too, which must not change what it answers.
        """
        original = self.models[base]
        try:
            model = type(original).from_pretrained(folder)
        except Exception as error:
            return refusal(error, "refused")
        if not (folder / "config.json").exists():
            return "not asked"
        random_left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
        if random_left:
            return f"changed: {random_left[0]} has no values"
        try:
            found = answer(model)
        except Exception as error:
            return refusal(error, "refused when run")
        layout = layout_of(model)
        if bits(found) != bits(self.outputs[base]):
            other = "not asked" if layout is None else "changed: it answers otherwise"
            return other if found.shape == self.outputs[base].shape else "another head"
        equal = state(model) == self.states[base]
        if pack and layout is not None and not layout.packed:
            return self.pack(model, base) or ("equal" if equal else "harmless")
        return "equal" if equal else "harmless"

    def pack(self, model: PreTrainedModel, base: str) -> str | None:
        try:
            compress_(model, inputs_of(model))
        except DendriticError:
            return None
        found, expected = answer(model), self.outputs[base]
        difference = (found - expected).abs().max().item()
        close = difference <= CLOSE * expected.abs().max().item()
        return None if close else "changed: it answers otherwise once packed"


def refusal(error: Exception, ours: str) -> str:
    """The outcome of one: `ours`, unless it is transformers' or torch's own and nothing of this package was asked."""
    if isinstance(error, DendriticError):
        return ours
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if OURS in frame.filename]
    if not frames:
        return "refused by transformers"
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    return f"other error: {type(error).__name__}: {str(error)[:200]} at {place}"


@torch.no_grad()
def answer(model: PreTrainedModel) -> Any:
    """The logits."""
    inputs = {name: tensor for name, tensor in inputs_of(model).items() if name != "labels"}
    return model.eval()(**inputs).logits


def state(model: PreTrainedModel) -> dict[str, Any]:
    layout = copy.deepcopy(layout_of(model))
    return {"layout": layout} | {name: bits(tensor) for name, tensor in model.state_dict().items()}


def listing(folder: Path) -> dict[str, Any]:
    """Every file below a folder, its size and its time."""
    return {str(file): (file.lstat().st_size, file.lstat().st_mtime_ns) for file in sorted(folder.rglob("*"))}
