"""Heatmaps as colour, alone or laid over the image they explain."""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from trompe.errors import TrompeError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]

HEAT = colormaps["inferno"]
SIGNED = colormaps["coolwarm"]
RATE = colormaps["cividis"]
OPACITY = 0.85
FINE, OUTLIERS = 32 * 32, 0.02  # a heatmap of more positions has this share of them cut off
INK_TURNS = 0.5  # of the rates: below, white text has the higher contrast, above, black


def overlay(image: Pixels, heatmap: Floats) -> Pixels:
    """Lay a heatmap over its image: the hotter, the more opaque; no heat leaves the image.

    Parameters
    ----------
    image
        ``[H, W, 3]``, uint8.
    heatmap
        ``[h, w]`` in [0, 1]; resized bilinearly to the image.

    Returns
    -------
    ``[H, W, 3]``, uint8.

    Raises
    ------
    TrompeError
        If a shape, a type or the range is another.
    """
    _check(image, heatmap)
    if not (heatmap.min() >= 0 and heatmap.max() <= 1):
        raise TrompeError(
            f"The heatmap has values from {heatmap.min():g} to {heatmap.max():g}, but an overlay "
            "needs them in [0, 1]; normalise it first, or use signed_overlay for a raw map."
        )
    heat = _resize(visible(heatmap), image)
    return _blend(image, HEAT(heat)[..., :3], heat)


def visible(values: Floats) -> Floats:
    """A map ``[h, w]`` in [-1, 1] as it is shown.

    In a fine one a few pixels outshine all others, so the largest are cut off (as in Captum's
    ``visualize_image_attr``, ``outlier_perc=2``).
    """
    if values.size <= FINE:
        return values
    largest = np.quantile(np.abs(values.astype(np.float32)), 1 - OUTLIERS)
    return np.clip(values / largest, -1, 1) if largest > 0 else values


def signed_overlay(image: Pixels, values: Floats) -> Pixels:
    """Lay a raw signed map over its image: red speaks for the class, blue against it.

    Parameters
    ----------
    image
        ``[H, W, 3]``, uint8.
    values
        ``[h, w]``, any finite range; scaled by its largest magnitude (a fine map by its largest
        but 2 %), resized bilinearly.

    Returns
    -------
    ``[H, W, 3]``, uint8.

    Raises
    ------
    TrompeError
        If a shape or a type is another, or a value is not finite.
    """
    _check(image, values)
    scaled = _resize(_unit(values), image)
    return _blend(image, SIGNED((scaled + 1) / 2)[..., :3], np.abs(scaled))


def colour_signed(values: Floats) -> Pixels:
    """Colour a raw signed map ``[h, w]`` as ``[h, w, 3]`` uint8: red above zero, blue below.

    Raises
    ------
    TrompeError
        If the map is not two-dimensional, or a value is not finite.
    """
    _check_map(values)
    return _bytes(SIGNED((_unit(values) + 1) / 2)[..., :3] * 255)


def rate_colours(share: float) -> tuple[str, str]:
    """Colour a success rate in [0, 1]: the ground and the ink that is readable on it, as CSS."""
    ground = to_hex(RATE(share))
    return ground, "#fff" if share < INK_TURNS else "#000"


def _unit(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise TrompeError(
            "The map holds NaN or infinite values, which have no colour; check the model's output."
        )
    values = values.astype(np.float64)
    largest = np.abs(values).max()
    return visible(values / largest) if largest > 0 else values


def _resize(values: Floats, image: Pixels) -> Floats:
    height, width = image.shape[:2]
    resized = Image.fromarray(values.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return np.asarray(resized, dtype=np.float64)


def _blend(image: Pixels, colour: Floats, strength: Floats) -> Pixels:
    alpha = OPACITY * strength[..., None]
    return _bytes((1 - alpha) * image + alpha * 255 * colour)


def _bytes(values: Floats) -> Pixels:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _check(image: Pixels, values: Floats) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise TrompeError(
            f"The image is {image.dtype} of shape {list(image.shape)}, but an overlay needs uint8 "
            "of shape [H, W, 3]; convert it first."
        )
    _check_map(values)


def _check_map(values: Floats) -> None:
    if values.ndim != 2 or values.size == 0:
        raise TrompeError(
            f"The map has shape {list(values.shape)}, but one map of shape [h, w] is expected; "
            "pass the maps of a batch one by one."
        )
