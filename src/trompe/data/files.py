"""Image files without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

import torch
from PIL import Image

from trompe.data.dataset import Source
from trompe.data.folder import SUFFIXES
from trompe.data.reader import opened
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
        found = [(path, place) for place in paths for path in _found(place)]
        if not found:
            raise TrompeError(f"There is no image in {', '.join(map(str, paths))}.")
        self.files = [path for path, _ in found]
        self.labels = torch.zeros(len(found), dtype=torch.int64)
        self._names = _distinct([path.relative_to(_folder(place)) for path, place in found])

    def open(self, row: int) -> Image.Image:
        """Open the file."""
        return opened(self.files[row])

    def content(self, row: int) -> Path:
        """Return the file."""
        return self.files[row]

    def name(self, row: int) -> str:
        """Return the file's path below the folder given, with what tells it from others."""
        return self._names[row]


def _found(place: Path) -> list[Path]:
    if place.is_file():
        return [place] if place.suffix.lower() in SUFFIXES else []
    if not place.exists():
        raise TrompeError(f"There is no image or folder '{place}'; check the spelling.")
    return sorted(
        file
        for file in place.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file()
    )


def _folder(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def _distinct(paths: Sequence[Path]) -> list[str]:
    """Names of files: without suffix, with it where two would be alike, else with a number."""
    stems = Counter(path.with_suffix("") for path in paths)
    names: dict[str, None] = {}
    for path in paths:
        base = str(path if stems[path.with_suffix("")] > 1 else path.with_suffix(""))
        numbered = (f"{base}-{number}" for number in count(2))
        names[next(name for name in chain([base], numbered) if name not in names)] = None
    return [*names]


def images_in(folder: Path) -> list[Path]:
    """The image files that lie in a folder itself."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
