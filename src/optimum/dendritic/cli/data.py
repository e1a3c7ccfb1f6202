"""A dataset for calibration and evaluation: its splits, its columns, and a few samples of it."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .loading import Refusal

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HELD_OUT = ("validation", "test", "eval", "validation_matched")


def load_splits(args: Namespace) -> "DatasetDict":
    """Every split of `--dataset`. Raises `Refusal` where there is none to be had."""
    try:
        from datasets import DatasetDict, load_dataset
        from datasets.utils.logging import disable_progress_bar
    except ImportError as error:
        raise Refusal(f"{error}. Install it: pip install optimum-dendritic[train]") from None
    disable_progress_bar()
    try:
        splits = load_dataset(args.dataset, args.subset)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refusal(f"--dataset {args.dataset}: {error}") from error
    assert isinstance(splits, DatasetDict)
    return splits


def split_of(splits: "DatasetDict", option: str, name: str) -> "Dataset":
    """The split of that name."""
    if name not in splits:
        raise Refusal(f"{option} {name}: the dataset has no such split. Its splits are {', '.join(map(str, splits))}.")
    return splits[name]


def held_out(splits: "DatasetDict", args: Namespace) -> "Dataset | None":
    """The split to evaluate on: the one asked for, else a usual one, else none."""
    if args.eval_split is not None:
        return split_of(splits, "--eval-split", args.eval_split)
    return next((splits[name] for name in HELD_OUT if name in splits and name != args.split), None)


def draw(dataset: "Dataset", samples: int, args: Namespace) -> Iterator[dict[str, list[Any]]]:
    """Up to so many rows, drawn by `--seed` alone, in batches: a list for each column."""
    chosen = dataset.shuffle(seed=args.seed).select(range(min(samples, len(dataset))))
    for rows in chosen.iter(args.batch_size):
        assert isinstance(rows, dict)
        yield rows


def text_columns(dataset: "Dataset", given: Sequence[str] | None) -> list[str]:
    """The column of text, or the two columns of a pair if they are named."""
    if given is not None:
        return [_given(dataset, "--text-column", name) for name in given]
    return [_found(dataset, "--text-column", ("text", "sentence", "content", "review"), _is_text)]


def image_column(dataset: "Dataset", given: str | None) -> str:
    """The column of images."""
    if given is not None:
        return _given(dataset, "--image-column", given)
    return _found(dataset, "--image-column", ("image", "img", "pixel_values"), lambda f: type(f).__name__ == "Image")


def label_column(dataset: "Dataset", given: str | None) -> str:
    """The column of labels."""
    if given is not None:
        return _given(dataset, "--label-column", given)
    return _found(
        dataset, "--label-column", ("label", "labels", "fine_label"), lambda f: type(f).__name__ == "ClassLabel"
    )


def _is_text(feature: Any) -> bool:
    return type(feature).__name__ == "Value" and feature.dtype in ("string", "large_string")


def _given(dataset: "Dataset", option: str, name: str) -> str:
    if name not in dataset.column_names:
        raise Refusal(f"{option} {name}: the dataset's columns are {', '.join(dataset.column_names)}.")
    return name


def _found(dataset: "Dataset", option: str, usual: Sequence[str], fits: Callable[[Any], bool]) -> str:
    """A column of a usual name, else the only one of a fitting kind."""
    for name in usual:
        if name in dataset.column_names:
            return name
    fitting = [name for name, feature in dataset.features.items() if fits(feature)]
    if len(fitting) == 1:
        return fitting[0]
    raise Refusal(f"{option}: name one of the dataset's columns, which are {', '.join(dataset.column_names)}.")
