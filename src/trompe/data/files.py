"""Image files without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from trompe.data.dataset import Source
from trompe.data.folder import SUFFIXES
from trompe.errors import TrompeError

UNLABELLED = ("unknown",)  # the one class of images without labels


class Files(Source):
    """Image files without labels: those given, and those found in the folders given.

    Raises
    ------
    TrompeError
        If a path does not exist, or there is no image.
    """

    classes = UNLABELLED

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files: list[Path] = []
        for path in paths:
            if not path.exists():
                raise TrompeError(f"There is no image or folder '{path}'; check the spelling.")
            found = [path] if path.is_file() else path.rglob("*")
            self.files += sorted(f for f in found if f.suffix.lower() in SUFFIXES)
        if not self.files:
            raise TrompeError(f"There is no image in {', '.join(map(str, paths))}.")
        self.labels = torch.zeros(len(self.files), dtype=torch.int64)

    def open(self, row: int) -> Image.Image:
        """Open the file."""
        return Image.open(self.files[row])

    def name(self, row: int) -> str:
        """The file's name without suffix, made unique by a number where it must be."""
        stem = self.files[row].stem
        same = [f for f in self.files if f.stem == stem]
        return stem if len(same) == 1 else f"{stem}-{same.index(self.files[row]) + 1}"


def images_in(folder: Path) -> list[Path]:
    """The image files that lie in a folder itself."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
