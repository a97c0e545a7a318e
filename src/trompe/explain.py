"""Explain image files: heatmaps to look at, raw maps to compute with."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from trompe import runs
from trompe.base.identity import fingerprint
from trompe.base.messages import listed
from trompe.base.progress import shown
from trompe.base.text import from_json
from trompe.data.dataset import ImageDataset
from trompe.data.files import Files
from trompe.data.load import unreadable
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.explainers import LRP, Explainer, Recording
from trompe.explainers.relevance import conservation
from trompe.explainers.targets import Class, Explainable, Target
from trompe.explainers.targets import read as read_target
from trompe.models import evaluation_mode
from trompe.models.call import placed
from trompe.report.colour import Floats, Pixels, colour_signed, overlay

TABLE = "images.csv"
MAPS = "maps.safetensors"
DONE = ".explained"  # tells what is done


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
    shown_here = shown("explain", len(data), quiet=quiet, start=begin)
    with evaluation_mode(model), shown_here as report:
        for start, (images, _) in zip(places, loader, strict=True):
            with Recording(model, resolved) as forward:
                logits = forward(placed(images, model))
                probabilities, predicted = logits.softmax(1).max(1)
                maps = forward.maps(target)
            explained = (
                target.on(logits).chosen.tolist()
                if isinstance(target, Class)
                else [str(target)] * len(images)
            )
            photographs = [np.asarray(data.picture(start + i)) for i in range(len(images))]
            named = [str(explainer) for explainer in explainers]
            kept = kept or _rows(unfinished, data, dict(zip(named, maps, strict=True)), target)
            if isinstance(target, Class):
                kept.put("classes", start, torch.tensor(explained))
            rows: list[dict[str, Any]] = []
            written: list[str] = []
            for explainer, used, found in zip(explainers, resolved, maps, strict=True):
                kept.put(str(explainer), start, found.float().cpu())
                heat = used.heatmap(found).cpu().numpy()
                for i, values in enumerate(found.cpu().numpy()):
                    name = data.name(start + i)
                    stem = out / f"{name}.{_short(explainer, explainers)}"
                    laid = _over(photographs[i], heat[i], data.preprocessing)
                    pictures = {f"{stem}.png": colour_signed(values), f"{stem}.overlay.png": laid}
                    for path, pixels in pictures.items():
                        _save(pixels, path)
                        written.append(path)
                    rows.append(
                        {
                            "path": str(data.path(start + i)),
                            "name": name,
                            "explainer": str(explainer),
                            "layer": used.layer,
                            "predicted": int(predicted[i]),
                            "probability": float(probabilities[i]),
                            "explained": explained[i],
                        }
                    )
            done.add(rows, len(images), written)
            report(start + len(images), {})
    table = pd.DataFrame(done.rows)
    with runs.replacing(out / TABLE) as new:
        table.to_csv(new, index=False)
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
                    told = from_json(line)
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
