"""`Allocation`: what a search finds, to and from a file that any training takes."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import DendriticConfig
from ..errors import DendriticError, invalid

VERSION = 1
LARGEST = 2**24  # bytes of a file that is read


@dataclass(frozen=True)
class Allocation:
    """How the budget is divided, and what that is worth.

    Attributes:
        kept: The fraction of its segments that each keeps, by the name of the layer that holds its mask; for
            `DendriticConfig(allocation=...)`.
        method: How it was found.
        sparsity: The fraction of the budget that was to go.
        loss: The mean loss on the calibration batches with it, of the model that is pruned so and not trained.
        controls: The same of `"dense"`, `"uniform"` and `"global"`.
        evaluations: How often all batches were run, those of the controls not counted.
        seed: The seed of the search.
        history: The best loss after each of the evaluations at which it fell, as pairs.
    """

    kept: dict[str, float]
    method: str
    sparsity: float
    loss: float
    controls: dict[str, float]
    evaluations: float
    seed: int
    history: list[tuple[float, float]] = field(default_factory=list)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        Path(file).write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "Allocation":
        """Read what `save` wrote.

        Raises:
            DendriticError: the file holds something else.
            OSError: it is not there.
        """
        path = Path(file)
        if path.stat().st_size > LARGEST:
            raise _bad(path, f"has more than {LARGEST} bytes")
        try:
            fields: Any = json.loads(path.read_text("utf-8"))
            assert isinstance(fields, dict) and fields.pop("version") == VERSION
            fields["history"] = [(float(spent), float(loss)) for spent, loss in fields["history"]]
            found = cls(**fields)
            numbers = [found.loss, found.sparsity, found.evaluations, *found.controls.values()]
            assert all(isinstance(number, int | float) for number in numbers) and isinstance(found.method, str)
            DendriticConfig(allocation=found.kept)
        except (ValueError, RecursionError, AssertionError, KeyError, TypeError, AttributeError) as error:
            said = f" ({error})" if isinstance(error, DendriticError) else ""
            raise _bad(path, f"is not an allocation{said}") from error
        return found


def _bad(path: Path, rule: str) -> DendriticError:
    return invalid("file", path.name, rule, "Search one with search_allocation(...), and save it.")
