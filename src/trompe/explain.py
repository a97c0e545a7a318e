"""Explain image files: heatmaps to look at, raw maps to compute with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trompe import runs
from trompe.base.progress import shown
from trompe.data.dataset import ImageDataset
from trompe.data.files import Files
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.explainers import LRP, Explainer, Recording
from trompe.explainers.relevance import conservation
from trompe.models import evaluation_mode
from trompe.models.call import placed
from trompe.report import colour_signed, overlay


@torch.no_grad()
def explain_files(
    model: nn.Module,
    preprocessing: Preprocessing,
    paths: Sequence[Path],
    explainers: Sequence[Explainer],
    out: Path,
    *,
    classes: int | None = None,
    batch_size: int = 16,
    quiet: bool = False,
) -> int:
    """Write a heatmap, an overlay and the raw maps of every image and explainer.

    Parameters
    ----------
    paths
        Image files, or folders that are searched for images.
    classes
        The class to explain, or None for the predicted one.
    out
        Gets ``NAME.EXPLAINER.png`` (raw map, signed colours), ``NAME.EXPLAINER.overlay.png``
        (heatmap over the preprocessed image) and ``maps.safetensors``. Explainers of one kind are
        numbered from the second on, as in ``lrp-2``.

    Returns
    -------
    int
        The number of images.

    Raises
    ------
    TrompeError
        If there is no image, one can't be read, or a layer or class does not exist.
    """
    data = ImageDataset(Files(paths), preprocessing)
    raw: dict[str, list[Tensor]] = {}
    explained: list[Tensor] = []
    loader: Any = DataLoader(data, batch_size=batch_size)
    with evaluation_mode(model), shown("explain", len(data), quiet=quiet) as report:
        for start, (images, _) in zip(range(0, len(data), batch_size), loader, strict=True):
            with Recording(model, explainers) as forward:
                logits = forward(placed(images, model))
                maps = forward.maps(classes)
            explained.append(
                logits.argmax(1) if classes is None else torch.full((len(images),), classes)
            )
            pixels = (preprocessing.denormalise(images).clamp(0, 1) * 255).round().byte()
            for explainer, found in zip(explainers, maps, strict=True):
                raw.setdefault(str(explainer), []).append(found.cpu())
                heat = explainer.heatmap(found).cpu().numpy()
                for row, values in enumerate(found.cpu().numpy()):
                    stem = f"{data.name(start + row)}.{_short(explainer, explainers)}"
                    image = pixels[row].permute(1, 2, 0).numpy()
                    _save(colour_signed(values), out / f"{stem}.png")
                    _save(overlay(image, heat[row]), out / f"{stem}.overlay.png")
            report(start + len(images), {})
    with runs.replacing(out / "maps.safetensors") as new:
        tensors = {name: torch.cat(parts) for name, parts in raw.items()}
        tensors["classes"] = torch.cat(explained).cpu()
        save_file(tensors, new, {"files": json.dumps([data.name(i) for i in range(len(data))])})
    return len(data)


def check_conservation(
    model: nn.Module,
    preprocessing: Preprocessing,
    paths: Sequence[Path],
    explainers: Sequence[Explainer],
    *,
    classes: int | None = None,
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
    data = ImageDataset(Files(paths), preprocessing)
    images = torch.stack([data[row][0] for row in range(min(batch_size, len(data)))])
    images = placed(images, model)
    return {str(lrp): conservation(lrp, model, images, classes) for lrp in chosen}


def _short(explainer: Explainer, explainers: Sequence[Explainer]) -> str:
    same = [other for other in explainers if other.name == explainer.name]
    number = same.index(explainer) + 1
    return explainer.name if number == 1 else f"{explainer.name}-{number}"


def _save(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    with runs.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
