"""What a dataset says of itself: its name, whether that is an id on the Hub, its split and its size."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Data:
    """A dataset, as far as it describes itself.

    Attributes:
        name: The id of the dataset on the Hub, or its name.
        on_hub: Whether `name` is an id on the Hub.
        config: The name of its configuration; None if it has only one.
        split: The name of the split; None if it is not known.
        samples: The number of samples; None if it is not known.
    """

    name: str
    on_hub: bool
    config: str | None = None
    split: str | None = None
    samples: int | None = None


def data_of(source: Any) -> Data | None:
    """The name of a `datasets.Dataset`, or of the one in a `DataLoader`; None if there is not one."""
    if isinstance(source, Data):
        return source
    library = sys.modules.get("datasets")  # who never imported it has none of its datasets
    dataset: Any = source.dataset if isinstance(source, DataLoader) else source
    if library is None or not isinstance(dataset, library.Dataset) or not dataset.info.dataset_name:
        return None
    info, split = dataset.info, dataset.split
    id_on_hub = _id_on_hub(dataset)
    config = None if info.config_name in (None, "default") else info.config_name
    name, part = id_on_hub or Path(info.dataset_name).name, None if split is None else str(split)
    return Data(name, on_hub=id_on_hub is not None, config=config, split=part, samples=len(dataset))


def _id_on_hub(dataset: Any) -> str | None:
    """From the addresses that it was downloaded from, or from its place in the cache, `owner___name`."""
    for address in dataset.info.download_checksums or ():
        if address.startswith("hf://datasets/"):
            return address.removeprefix("hf://datasets/").partition("@")[0]
    for file in dataset.cache_files:
        for part in Path(file["filename"]).parts:
            owner, _, name = part.partition("___")
            if name == dataset.info.dataset_name:
                return f"{owner}/{name}"
    return None
