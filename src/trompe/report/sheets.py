"""Photographs and heatmaps as CSS: every picture is in the page once, its colours made there.

The heatmaps of one explainer and model lie side by side in one grey picture, a sheet. A layer of a
stage shows its own tile of it, stretched over the photograph; an SVG filter colours it.
"""

import base64
import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

from trompe.colour import HEAT, OPACITY, SIGNED, Floats, Pixels, visible
from trompe.report.run import Gallery, View

PHOTOGRAPHS, HEATMAPS = 2_000_000, 800_000  # bytes of all of them; a third more as base64
LARGEST = 224  # side of a photograph
WEBP_SIDE = 16_383  # the most pixels that a WebP may have
SMOOTH = 56  # side of a heatmap, where there is room: printers show coarse ones as squares
SAMPLE = 16  # photographs that tell the size of all
EDGE = 2  # positions around a tile that repeat its border: stretching reads beyond the tile
FINE, COARSE, EXACT = 95, 80, None  # quality of a picture
COLOURS = 32  # steps of a colour map in the page
MAPS = {"heat": (HEAT, (0, OPACITY)), "signed": (SIGNED, (OPACITY, 0, OPACITY))}


def place(number: int, count: int) -> tuple[int, int]:
    """Column and row of a tile among ``count``."""
    return number % _columns(count), number // _columns(count)


def photographs(images: Pixels) -> Markup:
    """Rules ``.photo-0`` and so on for images ``[n, H, W, 3]``, smaller the more there are."""
    fitted = [_fit(image, LARGEST) for image in images]
    if _size(fitted, FINE) <= PHOTOGRAPHS:
        return _rules(((str(i), image) for i, image in enumerate(fitted)), FINE)
    side = round(LARGEST * min(1, math.sqrt(PHOTOGRAPHS / _size(fitted, COARSE))))
    return _rules(((str(i), _fit(image, side)) for i, image in enumerate(images)), COARSE)


def photograph(name: str, image: Pixels, side: int) -> Markup:
    """A rule ``.photo-NAME`` for one image at most ``side`` pixels a side."""
    return _rules([(name, _fit(image, side))], FINE)


def heatmaps(gallery: Gallery, views: Sequence[View]) -> Markup:
    """Rules that put each view and model on the layers of their names.

    A layer is of the view that is checked in its gallery, or of the one its ``show-`` class names;
    its colours are of heat, or where that is checked and the view has them, of signed maps.
    """
    found = [*gallery.heatmaps.values(), *gallery.signed.values()]
    maps = sum(map(len, found)) * len(gallery.images)
    side = max(7, round(math.sqrt(HEATMAPS / maps)))
    rules = []
    for number, view in enumerate(views):
        chosen = f".gallery:has(.view-{number}:checked)"
        for model, heat in gallery.heatmaps[view].items():
            tiles = [_grey(visible(one), side) for one in heat]
            layer = f".heat.{model}"
            rules.append(f".show-{number} {layer}, {chosen} {layer} {{ {_background(tiles)} }}")
        for model, signed in gallery.signed.get(view, {}).items():
            tiles = [_grey((visible(one) + 1) / 2, side) for one in signed]
            rules.append(
                f"{chosen}:has(.colours-signed:checked) .heat.{model} "
                f"{{ {_background(tiles)}; filter: url(#signed) }}"
            )
    return Markup("\n".join(rules))


def colours(name: str) -> dict[str, str]:
    """A colour map's red, green, blue and opacity (R, G, B, A) as tables of an SVG filter."""
    colour_map, opacities = MAPS[name]
    channels = [*colour_map(np.linspace(0, 1, COLOURS)).T[:3], opacities]
    texts = (" ".join(f"{value:.3f}" for value in channel) for channel in channels)
    return dict(zip("RGBA", texts, strict=True))


def gradient(name: str) -> str:
    """A colour map, as opaque as over an image, as stops of a CSS gradient."""
    colour_map, opacities = MAPS[name]
    places = np.linspace(0, 1, 9)
    alphas = np.interp(places, np.linspace(0, 1, len(opacities)), opacities)
    stops = zip(255 * colour_map(places)[:, :3], alphas, strict=True)
    return ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f} / {a:.2f})" for (r, g, b), a in stops)


def uri(pixels: Pixels, quality: int | None = COARSE) -> str:
    """Pixels ``[H, W, 3]`` or ``[H, W]`` as a WebP, or PNG if too large, that a page can hold."""
    if max(pixels.shape[:2]) <= WEBP_SIDE:
        return _uri("webp", _webp(pixels, quality))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return _uri("png", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _background(tiles: Sequence[Pixels]) -> str:
    """The sheet of tiles behind a layer that shows one of them."""
    stacked = np.stack(tiles)
    return f"background-image: url({uri(_sheet(stacked), EXACT)}); {_window(*stacked.shape)}"


def _window(count: int, height: int, width: int) -> str:
    """Size and place of a sheet behind a layer, so that one tile without its edge fills it."""
    columns = _columns(count)
    rows = math.ceil(count / columns)
    size, position = [], []
    for name, tiles, length in (("column", columns, width), ("row", rows, height)):
        pitch = length + 2 * EDGE
        size.append(f"{100 * tiles * pitch / length:.6g}%")
        share = 100 / (tiles * pitch - length)
        position.append(f"calc((var(--{name}) * {pitch} + {EDGE}) * {share:.8g}%)")
    return f"background-size: {' '.join(size)}; background-position: {' '.join(position)}"


def _sheet(tiles: Pixels) -> Pixels:
    """Tiles ``[n, h, w]`` row by row in one picture, each with its edge around it."""
    count = len(tiles)
    columns = _columns(count)
    rows = math.ceil(count / columns)
    edged = np.pad(tiles, ((0, rows * columns - count), (EDGE, EDGE), (EDGE, EDGE)), "edge")
    _, height, width = edged.shape
    grid = edged.reshape(rows, columns, height, width).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width)


def _grey(values: Floats, side: int) -> Pixels:
    """Values ``[h, w]`` in [0, 1] as bytes, at most ``side`` a side; coarse ones interpolated."""
    values = values.astype(np.float32)
    longest = max(values.shape)
    wanted = min(max(longest, SMOOTH), side)
    if wanted != longest:
        height, width = (max(1, round(n * wanted / longest)) for n in values.shape)
        way = Image.Resampling.BOX if wanted < longest else Image.Resampling.BILINEAR
        values = np.asarray(Image.fromarray(values).resize((width, height), way))
    grey: Pixels = np.rint(255 * values.clip(0, 1)).astype(np.uint8)
    return grey


def _rules(pictures: Iterable[tuple[str, Pixels]], quality: int) -> Markup:
    return Markup(
        "\n".join(
            f".photo-{name} {{ background-image: url({uri(picture, quality)}) }}"
            for name, picture in pictures
        )
    )


def _fit(pixels: Pixels, side: int) -> Pixels:
    """Shrink an image to at most ``side`` pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _size(images: Sequence[Pixels], quality: int) -> float:
    """About how many bytes the images take, told by some of them."""
    some = images[:: -(-len(images) // SAMPLE)]
    return len(images) * sum(len(_webp(image, quality)) for image in some) / len(some)


def _webp(pixels: Pixels, quality: int | None) -> bytes:
    buffer = io.BytesIO()
    lossless = quality is EXACT
    effort = 100 if quality is None else quality
    Image.fromarray(pixels).save(buffer, "WEBP", quality=effort, method=2, lossless=lossless)
    return buffer.getvalue()
