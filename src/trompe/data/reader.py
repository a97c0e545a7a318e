"""How the pixels of an image file are read, photographs and masks alike."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trompe.base import code
from trompe.errors import TrompeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is called; PIL would hand PostScript to Ghostscript."""
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "PA")
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF


def opened(file: Path | BytesIO) -> Image.Image:
    """A picture, not decoded yet; only formats of pixels, so that no other program is started.

    Raises
    ------
    OSError
        If it is none.
    TrompeError
        If it is no file, or would be too large.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise TrompeError("it is no file but a device or a pipe")
    most = Image.MAX_IMAGE_PIXELS
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TrompeError(f"it has more than {most:,} pixels; make it smaller") from error
    if most is not None and image.width * image.height > most:
        raise TrompeError(f"it has more than {most:,} pixels; make it smaller")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` upright and in RGB.

    The EXIF orientation is applied; transparent parts are laid over white; 16-bit greys keep
    their upper 8 bits.

    Raises
    ------
    TrompeError
        If nobody knows the range of its pixels: floating-point numbers, or 32 bits.
    """
    return _flat(image, "white").convert("RGB")


def to_grey(image: Image.Image) -> NDArray[np.float32]:
    """Brightness ``[h, w]`` in [0, 1] of ``image``, upright; what is transparent is 0.

    Raises
    ------
    TrompeError
        As `to_rgb`.
    """
    if image.mode.startswith("I"):
        return _sixteen_bits(image, ground=0).astype(np.float32) / np.float32(65535)
    return np.asarray(_flat(image, "black").convert("L"), np.float32) / np.float32(255)


def read_mask(path: Path) -> Tensor:
    """The brightness ``[h, w]`` in [0, 1] of an image file.

    Raises
    ------
    TrompeError
        If it can't be read, or nobody knows the range of its pixels.
    """
    code.refuse_found(path, "a file elsewhere")
    try:
        with opened(path) as image:
            return torch.from_numpy(to_grey(image))
    except (OSError, ValueError, SyntaxError) as error:
        raise TrompeError(
            f"The mask '{path}' can't be read as an image; give a PNG that is bright where the "
            "mask is."
        ) from error


def _flat(image: Image.Image, ground: str) -> Image.Image:
    """The image upright, with 8 bits, laid over a ground where it is transparent."""
    if image.mode == "F":
        raise TrompeError(
            "An image with floating-point pixels has no known range; save it with 8 bits."
        )
    if image.mode.startswith("I"):
        return Image.fromarray((_sixteen_bits(image, ground=65535) >> 8).astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image


def _sixteen_bits(image: Image.Image, ground: int) -> NDArray[np.int64]:
    """Grey values from 0 to 65535, upright, of more than 8 bits; ``ground`` where transparent."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (16,))[0]
    values = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
    if bits > 16 or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise TrompeError(
            "An image with 32 bits has no known range; save it with 8 or 16 bits without a sign."
        )
    clear = values == image.info.get("transparency")
    values <<= 16 - bits
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 65535 - values
    values[clear] = ground
    return values
