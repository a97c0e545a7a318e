"""Explain image files: heatmaps to look at, raw maps to compute with."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from trompe import notebook, runs
from trompe.base import json_text
from trompe.base.identity import fingerprint
from trompe.base.messages import listed
from trompe.base.progress import shown
from trompe.colour import Floats, Pixels, colour_signed, overlay
from trompe.data.dataset import ImageDataset
from trompe.data.files import Files
from trompe.data.load import unreadable
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.evaluation.pictures import pixels
from trompe.explainers import LRP, Explainer, Recording, read
from trompe.explainers.relevance import conservation
from trompe.explainers.targets import Class, Explainable, Target
from trompe.explainers.targets import read as read_target
from trompe.models import evaluation_mode
from trompe.models.call import placed

TABLE = "images.csv"
MAPS = "maps.safetensors"
DONE = ".explained"  # tells what is done
SHOWN = 4  # images, in a notebook


@dataclass(frozen=True)
class Explanations:
    """What `explain` found of a batch of N images.

    Attributes
    ----------
    images
        ``[N, C, H, W]``, as the model takes them.
    explainers
        With the layers that they found.
    maps
        By explainer ``[N, h, w]``, raw and signed.
    logits
        ``[N, classes]``, where the target is a class; else what it was computed from.
    explained
        Per image the class that is explained, or another target in words.
    """

    images: Tensor
    explainers: tuple[Explainer, ...]
    maps: tuple[Tensor, ...]
    logits: Tensor
    explained: list[int] | list[str]

    @property
    def heatmaps(self) -> tuple[Tensor, ...]:
        """By explainer ``[N, h, w]`` in [0, 1]."""
        pairs = zip(self.explainers, self.maps, strict=True)
        return tuple(explainer.heatmap(found) for explainer, found in pairs)

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.explainers))
        return f"Explanations of {len(self.images)} images by {names}"

    def _repr_html_(self) -> str:
        rows = []
        for number, image in enumerate(self.images[:SHOWN]):
            picture = pixels(None, image.cpu()).numpy()
            maps = (found[number].float().cpu().numpy() for found in self.heatmaps)
            rows.append([picture, *(overlay(picture, one) for one in maps)])
        return notebook.pictures(["image", *map(str, self.explainers)], rows)


@torch.no_grad()
def explain(
    model: nn.Module,
    images: Tensor,
    explainer: str | Explainer | Iterable[str | Explainer] = "grad-cam",
    *,
    target: Explainable = None,
) -> Explanations:
    """Explain a batch of images in one forward pass, by one explainer or several.

    Parameters
    ----------
    model
        A classifier, on any device; left as it was.
    images
        ``[N, C, H, W]``, normalised as the model expects them.
    explainer
        Objects, or names as the command line takes them.
    target
        The class to explain, one or ``[N]``; None for the predicted one; or another target.

    Raises
    ------
    TrompeError
        If a layer or class does not exist, or the target can't be computed.

    Examples
    --------
    >>> from trompe import Shapes, explain, load_model
    >>> image = Shapes("validation", 1)[0][0]
    >>> found = explain(load_model("embedded").model, image[None], ["grad-cam", "lrp"])
    >>> found
    Explanations of 1 images by grad-cam:layer=stage3, lrp
    >>> [tuple(maps.shape) for maps in found.maps]
    [(1, 8, 8), (1, 64, 64)]
    """
    wanted = read_target(target)
    images = placed(images, model)
    used = tuple(one.resolve(model, images[:1]) for one in read(explainer))
    with evaluation_mode(model), Recording(model, used) as forward:
        logits = forward(images)
        maps = forward.maps(wanted)
    explained = (
        wanted.on(logits).chosen.tolist()
        if isinstance(wanted, Class)
        else [str(wanted)] * len(images)
    )
    return Explanations(images, used, tuple(maps), logits, explained)


class Photographs(ImageDataset):
    """Image files, and where each lies.

    Parameters
    ----------
    paths
        Image files, or folders that are searched for images.
    corrupt
        Whether a file that can't be read is refused or skipped with a warning.

    Raises
    ------
    TrompeError
        If there is no image, or one can't be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        preprocessing: Preprocessing,
        corrupt: Literal["refuse", "skip"] = "refuse",
    ) -> None:
        self.found = Files(paths)
        super().__init__(self.found, preprocessing)
        broken = unreadable(self)
        named = listed(
            f"of {len(self)} images can't be read",
            (f"{self.path(i)}: {fault}" for i, fault in broken.items()),
        )
        if broken and (corrupt == "refuse" or len(broken) == len(self)):
            raise TrompeError(f"{named}; mend or remove them, or leave them out with corrupt=skip.")
        if broken:
            warnings.warn(f"{named}; left out.", stacklevel=2)
            kept = np.delete(self.rows, [*broken])
            super().__init__(self.found, preprocessing, rows=kept)

    def path(self, index: int) -> Path:
        """The file of an image."""
        path: Path = self.found.files[self._row(index)]
        return path


@torch.no_grad()
def explain_files(
    model: nn.Module,
    data: Photographs,
    explainers: Sequence[Explainer],
    out: Path,
    *,
    classes: Explainable = None,
    batch_size: int = 16,
    quiet: bool = False,
) -> pd.DataFrame:
    """Write a heatmap, an overlay and the raw maps of every image and explainer.

    Parameters
    ----------
    classes
        The class to explain, or None for the predicted one; or another target.
    out
        Gets ``NAME.EXPLAINER.png`` (raw map, signed colours), ``NAME.EXPLAINER.overlay.png``
        (heatmap over the photograph, at its size), ``maps.safetensors`` and ``images.csv``, the
        table that is returned. A name keeps the folders below the one that was given. Explainers of
        one kind are numbered from the second on, as in ``lrp-2``. What is there of the same task
        and not damaged is not made again.

    Returns
    -------
    DataFrame
        One row per image and explainer: ``path``, ``name``, ``explainer``, ``layer``, the
        ``predicted`` class with its ``probability``, the ``explained`` class or target.

    Raises
    ------
    TrompeError
        If a layer or class does not exist, or the target can't be computed.
    """
    target = read_target(classes)
    resolved = [e.resolve(model, placed(data[0][0][None], model)) for e in explainers]
    unfinished = runs.unfinished(out / MAPS)
    with runs.writing(out / MAPS):
        if (out / MAPS).exists():  # all of them, or some are damaged
            os.replace(out / MAPS, unfinished)
    done = _Done(out / DONE, fingerprint(model, data, explainers, target), unfinished)
    begin = done.images
    kept: runs.Rows | None = None
    places = range(begin, len(data), batch_size)
    loader: Any = DataLoader(Subset(data, range(begin, len(data))), batch_size=batch_size)
    with shown("explain", len(data), quiet=quiet, start=begin) as report:
        for start, (images, _) in zip(places, loader, strict=True):
            batch = explain(model, images, resolved, target=target)
            probabilities, predicted = batch.logits.softmax(1).max(1)
            photographs = [np.asarray(data.picture(start + i)) for i in range(len(images))]
            named = dict(zip(map(str, explainers), batch.maps, strict=True))
            kept = kept or _rows(unfinished, data, named, target)
            if isinstance(target, Class):
                kept.put("classes", start, torch.tensor(batch.explained))
            rows: list[dict[str, Any]] = []
            written: list[str] = []
            found_by = zip(explainers, resolved, batch.maps, batch.heatmaps, strict=True)
            for explainer, used, found, heatmaps in found_by:
                kept.put(str(explainer), start, found.float().cpu())
                heat = heatmaps.cpu().numpy()
                for i, values in enumerate(found.cpu().numpy()):
                    name = data.name(start + i)
                    stem = out / f"{name}.{_short(explainer, explainers)}"
                    laid = _over(photographs[i], heat[i], data.preprocessing)
                    pictures = {f"{stem}.png": colour_signed(values), f"{stem}.overlay.png": laid}
                    for path, pixels_of in pictures.items():
                        _save(pixels_of, path)
                        written.append(path)
                    rows.append(
                        {
                            "path": str(data.path(start + i)),
                            "name": name,
                            "explainer": str(explainer),
                            "layer": used.layer,
                            "predicted": int(predicted[i]),
                            "probability": float(probabilities[i]),
                            "explained": batch.explained[i],
                        }
                    )
            done.add(rows, len(images), written)
            report(start + len(images), {})
    table = pd.DataFrame(done.rows)
    with runs.replacing(out / TABLE) as new:
        runs.write_csv(table, new)
    with runs.writing(out / MAPS):
        os.replace(unfinished, out / MAPS)
    return table


class _Done:
    """The rows of the images that are explained, and what tells that their files are as written.

    Parameters
    ----------
    path
        A line tells the task, then there is one for each batch.
    task
        The fingerprint of what is explained how; what was done of another is not gone on with.
    maps
        The raw maps.
    """

    def __init__(self, path: Path, task: str, maps: Path) -> None:
        self.path, self.maps = path, maps
        self.rows: list[dict[str, Any]] = []
        self.images = 0
        with runs.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text().split("\n")[:-1] if path.exists() else []
            path.write_text(f"{task}\n")
            for line in lines[1:] if lines[:1] == [task] else []:
                with suppress(ValueError, KeyError, TypeError, SafetensorError, OSError):
                    told = json_text.loaded(line)
                    self.add(told["rows"], told["images"], told["files"], told["digest"])
                    continue
                break  # what follows is explained again

    def add(
        self, rows: list[dict[str, Any]], images: int, files: list[str], digest: str | None = None
    ) -> None:
        """Keep the rows of a batch, if the digest of its files is this one."""
        with safe_open(self.maps, framework="pt") as held:
            part = slice(self.images, self.images + images)
            maps = [held.get_slice(name)[part] for name in sorted(held.keys())]
        found = fingerprint(maps, *map(Path, files))
        if digest not in (None, found):
            raise ValueError("a file is damaged")
        told = {"rows": rows, "images": images, "files": files, "digest": found}
        with runs.writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(told) + "\n")
        self.rows += rows
        self.images += images


def _rows(path: Path, data: Photographs, maps: Mapping[str, Tensor], target: Target) -> runs.Rows:
    """The file of all raw maps, which are shaped like these."""
    count = len(data)
    tensors = {name: (torch.float32, (count, *found.shape[1:])) for name, found in maps.items()}
    if isinstance(target, Class):
        tensors["classes"] = (torch.int64, (count,))
    files = [data.name(row) for row in range(count)]
    return runs.Rows(path, tensors, {"files": json.dumps(files)})


def check_conservation(
    model: nn.Module,
    data: Photographs,
    explainers: Sequence[Explainer],
    *,
    classes: Explainable = None,
    batch_size: int = 16,
) -> dict[str, pd.DataFrame]:
    """The table of `relevance.conservation` for each LRP explainer, on the first batch of images.

    Raises
    ------
    TrompeError
        If no explainer is LRP, and as `explain_files`.
    """
    chosen = [explainer for explainer in explainers if isinstance(explainer, LRP)]
    if not chosen:
        raise TrompeError("--check follows the relevance of LRP; give --explainer lrp.")
    images = torch.stack([data[row][0] for row in range(min(batch_size, len(data)))])
    images = placed(images, model)
    return {str(lrp): conservation(lrp, model, images, classes) for lrp in chosen}


def _over(photograph: Pixels, heatmap: Floats, preprocessing: Preprocessing) -> Pixels:
    """The heatmap over the part of the photograph that the model saw, the rest as it is."""
    height, width = photograph.shape[:2]
    side = round(min(height, width) * preprocessing.crop / preprocessing.resize)
    top, left = (height - side) // 2, (width - side) // 2
    seen = slice(top, top + side), slice(left, left + side)
    laid = photograph.copy()
    laid[seen] = overlay(photograph[seen], heatmap)
    return laid


def _short(explainer: Explainer, explainers: Sequence[Explainer]) -> str:
    same = [other for other in explainers if other.name == explainer.name]
    number = same.index(explainer) + 1
    return explainer.name if number == 1 else f"{explainer.name}-{number}"


def _save(pixels: Pixels, path: str) -> None:
    with runs.writing(Path(path)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
