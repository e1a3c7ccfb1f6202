"""A dataset for calibration and evaluation: its splits, its columns, and a few samples of it."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import invalid
from .loading import told

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HELD_OUT = ("validation", "test", "eval", "validation_matched")


def load_splits(args: Namespace) -> "DatasetDict":
    """Every split of `--dataset`. Raises `DendriticError` if it cannot be loaded."""
    try:
        from datasets import DatasetDict, load_dataset
        from datasets.utils.logging import disable_progress_bar
    except ImportError as error:
        remedy = "Install it: pip install optimum-dendritic[train]."
        raise invalid("--dataset", args.dataset, str(error), remedy) from error
    disable_progress_bar()
    try:
        splits = load_dataset(args.dataset, args.subset)
    except Exception as error:  # the errors of datasets and of the readers of files have no common class
        remedy = "Name a folder that datasets.load_dataset reads, or a dataset on the Hub, and its --subset."
        raise invalid("--dataset", args.dataset, f"cannot be loaded ({told(error)})", remedy) from error
    assert isinstance(splits, DatasetDict)
    return splits


def split_of(splits: "DatasetDict", option: str, name: str) -> "Dataset":
    """The split of that name. Raises `DendriticError` if there is not one or it is empty."""
    remedy = f"Its splits are {', '.join(map(str, splits))}."
    if name not in splits:
        raise invalid(option, name, "the dataset has no such split", remedy)
    if len(splits[name]) == 0:
        raise invalid(option, name, "the split is empty", remedy)
    return splits[name]


def held_out(splits: "DatasetDict", args: Namespace) -> "Dataset | None":
    """The split to evaluate on: that of `--eval-split`, else the first of `HELD_OUT` that has rows, else None."""
    if args.eval_split is not None:
        return split_of(splits, "--eval-split", args.eval_split)
    usual = [splits[name] for name in HELD_OUT if name in splits and name != args.split]
    return next((split for split in usual if len(split) > 0), None)


def draw(dataset: "Dataset", samples: int, args: Namespace) -> Iterator[dict[str, list[Any]]]:
    """Up to `samples` rows, drawn by `--seed` alone, in batches: a list for each column."""
    chosen = dataset.shuffle(seed=args.seed).select(range(min(samples, len(dataset))))
    for rows in chosen.iter(args.batch_size):
        assert isinstance(rows, dict)
        yield rows


def text_columns(dataset: "Dataset", given: Sequence[str] | None, most: int) -> list[str]:
    """The column of text, or the two columns of a pair if they are named and `most` is 2."""
    if given is not None:
        if len(given) > most:
            remedy = "Name that of the text." if most == 1 else "Name that of the text, or the two of a pair."
            raise invalid("--text-column", " ".join(given), f"such a model reads at most {most}", remedy)
        return [_given(dataset, "--text-column", name, _is_text) for name in given]
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


def _given(dataset: "Dataset", option: str, name: str, fits: Callable[[Any], bool] = lambda feature: True) -> str:
    if name not in dataset.column_names or not fits(dataset.features[name]):
        rule = "is of another type" if name in dataset.column_names else "the dataset has no such column"
        raise invalid(option, name, rule, f"Its columns are {', '.join(dataset.column_names)}.")
    return name


def _found(dataset: "Dataset", option: str, usual: Sequence[str], fits: Callable[[Any], bool]) -> str:
    """A column of a usual name, else the only one of a fitting kind."""
    for name in usual:
        if name in dataset.column_names:
            return name
    fitting = [name for name, feature in dataset.features.items() if fits(feature)]
    if len(fitting) == 1:
        return fitting[0]
    rule = "which of the dataset's columns to use is not clear"
    raise invalid(option, None, rule, f"Name one of {', '.join(dataset.column_names)}.")
