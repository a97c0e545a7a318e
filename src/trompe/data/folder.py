"""Pictures in one folder per class."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trompe.data.classes import as_numbers
from trompe.data.dataset import Source
from trompe.data.reader import opened
from trompe.errors import TrompeError

SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_EXPECTED = f"expected FOLDER/CLASS/IMAGE with one of the suffixes {' '.join(SUFFIXES)}"
_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test")


class Folder(Source):
    """Every image below ``root/CLASS/``; classes and files in the order of their names.

    Names of classes that are all numbers are in the order of the numbers. Hidden files and folders
    are passed over.

    Raises
    ------
    TrompeError
        If there is no class folder, one holds no image, or the class folders are splits.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
        _refuse_splits(root, folders)
        if (numbers := as_numbers([f.name for f in folders])) is not None:
            folders = [folders[i] for i in np.argsort(numbers, kind="stable")]
        files = [_images(folder) for folder in folders]
        if not any(files):
            tables = sorted({str(file.parent) for file in root.glob("*/*.parquet")})
            advice = f"perhaps one of {', '.join(tables)} is meant" if tables else _EXPECTED
            raise TrompeError(f"{root} holds no images in class folders; {advice}.")
        if empty := [f.name for f, held in zip(folders, files, strict=True) if not held]:
            raise TrompeError(
                f"{root} has class folders without images: {', '.join(empty)}; fill or remove them."
            )
        self.classes = tuple(f.name for f in folders)
        self.labels = torch.arange(len(files)).repeat_interleave(torch.tensor([*map(len, files)]))
        self._files = np.array([os.fsencode(f) for f in chain.from_iterable(files)])

    def open(self, row: int) -> Image.Image:
        """Return the picture of a row."""
        return opened(self.root / self.name(row))

    def content(self, row: int) -> Path:
        """Return the file of a row."""
        return self.root / self.name(row)

    def name(self, row: int) -> str:
        """Return the file's path below the root."""
        return os.fsdecode(self._files[row])


def _images(folder: Path) -> list[str]:
    """Return the image files anywhere below `folder`, as paths from its parent."""
    return sorted(
        os.path.relpath(os.path.join(place, file), folder.parent)
        for place, _, files in os.walk(folder)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    )


def _refuse_splits(root: Path, folders: list[Path]) -> None:
    """Raise if the class folders are splits, which hold class folders themselves."""
    splits = [f for f in folders if f.name.lower() in _SPLITS and _holds_folders_only(f)]
    if splits:
        raise TrompeError(
            f"{root} holds splits, not classes; name one of them: {', '.join(map(str, splits))}."
        )


def _holds_folders_only(folder: Path) -> bool:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return bool(entries) and all(entry.is_dir() for entry in entries)
