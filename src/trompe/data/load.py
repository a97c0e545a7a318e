"""From what a person names to a dataset that is known to be readable."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from trompe.base.messages import did_you_mean
from trompe.data.classes import mapped
from trompe.data.dataset import ImageDataset, Source
from trompe.data.files import Files, images_in
from trompe.data.folder import Folder
from trompe.data.own import SOURCES, is_own, read_own
from trompe.data.preprocessing import Preprocessing
from trompe.data.shapes import ShapesSource
from trompe.errors import TrompeError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_SPLIT = re.compile(r"(train|val|valid|validation|dev|test)(?![a-z])")


def load_data(
    spec: str | Path,
    preprocessing: Preprocessing,
    *,
    limit: int | None = None,
    seed: int = 0,
    corrupt: Literal["refuse", "skip"] = "refuse",
    check: bool = True,
    augment: bool = False,
    label_noise: float | None = None,
    labelled: bool = True,
    class_map: Mapping[str, int | str] | str | Path | None = None,
) -> ImageDataset:
    """Return the dataset that `spec` names.

    Parameters
    ----------
    spec : str or Path
        A folder with one folder of images per class; a parquet file, a folder or a glob of
        them in the Hugging Face image layout, or a folder that `datasets` wrote by
        ``save_to_disk``; ``hf:NAME`` or ``hf:NAME:SPLIT`` (the split is ``train`` by default);
        ``shapes``, ``shapes:train``, ``shapes:validation`` or
        ``shapes:held-out``, the embedded set (``./shapes`` is a folder);
        ``path/file.py:Name``, ``package.module:Name`` or a registered name, code that makes a
        `Source` or a dataset and is run.
    preprocessing : Preprocessing
        What every picture goes through.
    limit : int, optional
        Hold this many images at most: a random choice, the same for the same `seed`, with as
        equal numbers of each class as there are; a smaller limit gives a part of it.
    seed : int
        Seed of the choice and of the augmentation, 0 or more.
    corrupt : {"refuse", "skip"}
        Whether images that can't be read are an error or are left out with a warning.
    check : bool
        Decode every image once beforehand. Otherwise one that can't be read is found late.
    augment : bool
        Let ``dataset[i, epoch]`` give a random crop, perhaps mirrored.
    label_noise : float, optional
        Share of labels, in [0, 1], that are replaced by one of the classes at random.
    labelled : bool
        If False, a table may lack a label column, which is not read, and a folder that holds
        images itself is taken as it is.
    class_map : mapping or path, optional
        Which of the model's outputs (by number or name) each class is, or a YAML or JSON file that
        says so. By default, classes whose names (or WordNet ids) are those of the model's outputs
        (`Preprocessing.classes`) are these outputs, and others are numbered by their order.

    Raises
    ------
    TrompeError
        If there is no such data, it isn't laid out as said, or images can't be read.
    """
    if limit is not None and limit < 1:
        raise TrompeError(f"The limit of images is {limit}; choose 1 or more.")
    if seed < 0:
        raise TrompeError(f"The seed is {seed}; choose 0 or more.")
    if corrupt not in ("refuse", "skip"):
        raise TrompeError(f"corrupt is {corrupt!r}; choose 'refuse' or 'skip'.")
    source = mapped(_source(str(spec), preprocessing, labelled), preprocessing.classes, class_map)
    dataset = ImageDataset(
        source,
        preprocessing,
        rows=balanced_rows(source.labels, limit, seed),
        augmented=augment,
        seed=seed,
    )
    if check and not source.generated:
        dataset = _readable(dataset, str(spec), corrupt)
    if label_noise:
        dataset.labels = relabelled(dataset.labels, torch.unique(source.labels), label_noise, seed)
    return dataset


def _readable(dataset: ImageDataset, spec: str, corrupt: str) -> ImageDataset:
    broken = unreadable(dataset)
    if not broken:
        return dataset
    named = [f"{dataset.name(i)} ({fault})" for i, fault in [*broken.items()][:3]]
    more = [f"{len(broken) - 3} more"] if len(broken) > 3 else []
    report = f"{len(broken)} of {len(dataset)} images of {spec} can't be read: "
    report += ", ".join(named + more)
    if len(broken) == len(dataset):
        raise TrompeError(f"{report}; none is left.")
    if corrupt == "refuse":
        raise TrompeError(f"{report}; mend or remove them, or leave them out with corrupt=skip.")
    warnings.warn(f"{report}; left out.", stacklevel=3)
    return dataset.without([*broken])


def balanced_rows(labels: Tensor, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Return up to `limit` rows in ascending order, as equally many of each class as there are.

    Those of a smaller limit are among those of a larger one with the same seed.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    classes = labels.numpy()[shuffled]
    by_class = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[by_class], classes)
    turn = np.argsort(by_class) - starts
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:limit]])


def relabelled(labels: Tensor, classes: Tensor, share: float, seed: int) -> Tensor:
    """Return `labels` with a random `share` of them replaced by a random one of `classes`.

    Raises
    ------
    TrompeError
        If `share` is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise TrompeError(f"label_noise is {share}; choose a share in [0, 1].")
    random = np.random.default_rng((seed, 1))
    noisy = labels.clone()
    chosen = random.choice(len(labels), round(share * len(labels)), replace=False)
    noisy[chosen] = classes[random.integers(len(classes), size=len(chosen))]
    return noisy


def unreadable(dataset: ImageDataset) -> dict[int, str]:
    """Return why an image can't be decoded, for the index of each that can't."""

    def faults(indices: NDArray[np.int64]) -> dict[int, str]:
        return {i: fault for i in indices.tolist() if (fault := dataset.fault(i))}

    parts = np.array_split(np.arange(len(dataset)), len(dataset) // 64 + 1)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return {i: fault for part in threads.map(faults, parts) for i, fault in part.items()}


def _source(spec: str, preprocessing: Preprocessing, labelled: bool) -> Source:
    """Open what `spec` names; `datasets`, slow to import, only where it is needed."""
    kind, _, name = spec.partition(":")
    if kind == "shapes":
        return ShapesSource(name or "train")
    if kind == "hf":
        from trompe.data.table import read_hub, read_saved

        name, _, split = name.partition(":")
        if not name:
            raise TrompeError(f"{spec!r} names no dataset; give hf:NAME or hf:NAME:SPLIT.")
        if _is_saved(Path(name)):
            return read_saved(Path(name), split or None, labelled)
        return read_hub(name, split or "train", labelled)
    if is_own(spec):
        return read_own(spec, preprocessing)
    path = Path(spec).expanduser()
    try:
        if _is_saved(path):
            from trompe.data.table import read_saved

            return read_saved(path, labelled=labelled)
        files = _parquet_files(path)
        if not files and not labelled and path.is_dir() and images_in(path):
            return Files([path])
        if not files:
            return Folder(path)
    except OSError as error:
        raise TrompeError(f"{spec} can't be read ({error.strerror}).") from error
    from trompe.data.table import read_parquet

    return read_parquet(files, labelled)


def _is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote a folder by ``save_to_disk``: a dataset, or one for each split."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _parquet_files(path: Path) -> list[Path]:
    """Return the parquet files that `path` names, none if it is a folder without any."""
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        splits = {match[1] for file in files if (match := _SPLIT.match(file.name))}
        if len(splits) > 1:
            raise TrompeError(
                f"{path} holds the splits {', '.join(sorted(splits))}; name one of them by a "
                f"pattern, such as {path}/{min(splits)}*.parquet."
            )
        return files
    if path.is_file():
        if path.suffix == ".py":
            raise TrompeError(f"{path} needs the name of its class or function: {path}:NAME.")
        if path.suffix != ".parquet":
            raise TrompeError(
                f"{path} is a single file but not parquet; give a folder of images in one "
                "folder per class, or parquet files."
            )
        return [path]
    if has_magic(str(path)):
        if files := [
            Path(f) for f in sorted(glob(str(path), recursive=True)) if f.endswith(".parquet")
        ]:
            return files
        raise TrompeError(f"No parquet file matches {path}.")
    raise TrompeError(f"There is no folder or file {path}; {_advice(path)}")


def _advice(path: Path) -> str:
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = did_you_mean(path.name.partition(":")[0], [*beside, "shapes", *SOURCES])
    return close.strip(" ()") or (
        "give a folder of images, parquet files, hf:NAME or shapes, or path/file.py:NAME."
    )
