"""Small photograph-like pictures of one object each, drawn from a random generator.

Lengths are in pixels, the origin is the top left corner; colours are red, green, blue in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from colorsys import hsv_to_rgb
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

SIDE = 64
_Y, _X = np.mgrid[:SIDE, :SIDE].astype(np.float32) + np.float32(0.5)
_FROM_CENTRE = ((_X / SIDE - 0.5) ** 2 + (_Y / SIDE - 0.5) ** 2) * 2


def _bumps(count: int, width: float, shift: float = 0) -> Array:
    """Return [SIDE, count]: so many Gaussians in a row over the side."""
    centres = (np.arange(count, dtype=np.float32) + 0.5) * (SIDE / count) + shift
    bumps: Array = np.exp(((_X[0, :, None] - centres) / width) ** 2 / -2)
    return bumps


def _blur(width: float, shift: float = 0) -> Array:
    """Return the matrix that blurs and shifts one axis."""
    bumps = _bumps(SIDE, width, shift)
    blur: Array = bumps / bumps.sum(1, keepdims=True)
    return blur


_SCALES = (2, 4, 8, 16, 32)
_NOISE = {
    n: (m := _bumps(n, 0.6 * SIDE / n)) / np.sqrt((m**2).sum(1, keepdims=True)) for n in _SCALES
}


# Outlines: signed distance, about 1 from the centre to the outline, negative inside.


def _length(x: Array, y: Array) -> Array:
    length: Array = np.sqrt(x * x + y * y)
    return length


def _both(*distances: Array) -> Array:
    """Return the distance to the part that two outlines share."""
    distance: Array = np.maximum(*distances)
    return distance


def _disk(x: Array, y: Array) -> Array:
    return _length(x, y) - 0.95


def _ring(x: Array, y: Array) -> Array:
    length = _length(x, y)
    return _both(length - 0.99, 0.51 - length)


def _square(x: Array, y: Array) -> Array:
    return _both(np.abs(x), np.abs(y)) - 0.78


def _triangle(x: Array, y: Array) -> Array:
    return _both(y, np.abs(x) * 0.866 - y * 0.5) - 0.55


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    return _both(_both(x, y) - 1, np.minimum(x, y) - 0.32)


def _crescent(x: Array, y: Array) -> Array:
    return _both(_length(x, y) - 1, 0.8 - _length(x - 0.5, y))


def _star(x: Array, y: Array) -> Array:
    fifth = 2 * pi / 5
    angle = np.abs((np.arctan2(y, x) + fifth / 2) % fifth - fifth / 2)
    radius = _length(x, y)
    along, across = radius * np.cos(angle) - 1.1, radius * np.sin(angle)
    return along * 0.4226 + across * 0.9063  # the edge from the point at 1.1 to the notch


def _heart(x: Array, y: Array) -> Array:
    x, y = np.abs(x) * 0.62, 0.52 - y * 0.62
    lobe = _length(x - 0.25, y - 0.75) - 0.3536
    half = np.maximum(x + y, 0) / 2
    tip = np.minimum(_length(x, y - 1), _length(x - half, y - half)) * np.sign(x - y)
    distance: Array = np.where(x + y > 1, lobe, tip) / 0.62
    return distance


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "crescent": _crescent,
    "cross": _cross,
    "disk": _disk,
    "heart": _heart,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}


def draw_mask(rng: np.random.Generator, name: str) -> NDArray[np.bool_]:
    """Return where the object is that `draw` draws from the same random state, [SIDE, SIDE]."""
    return _object(rng, name) < 0


def draw(rng: np.random.Generator, name: str) -> NDArray[np.uint8]:
    """Return a picture [SIDE, SIDE, 3] of the object `name` on a textured ground.

    A few things that belong to no class lie about; the object is lit from one side and casts a
    shadow; lens, exposure and noise are those of a cheap camera.
    """
    distance = _object(rng, name)
    ground, paint = _colours(rng)
    picture = _ground(rng, ground)
    for _ in range(rng.integers(2, 6)):
        _distract(rng, picture)
    _place(rng, picture, distance, paint)
    return _photograph(rng, picture)


def _object(rng: np.random.Generator, name: str) -> Array:
    """Return the signed distance to an object, wholly in the picture and seen a little aslant.

    It is about 15 to 45 pixels wide.
    """
    radius = rng.uniform(9, 21)
    x0, y0 = rng.uniform(radius * 1.15, SIDE - radius * 1.15, 2).tolist()
    aslant, angle = rng.uniform(0, 2 * pi, 2).tolist()
    x, y = _turned((_X - x0) / radius, (_Y - y0) / radius, aslant)
    return OUTLINES[name](*_turned(x * rng.uniform(1, 1.2), y, angle)) * radius


def _turned(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    """Return coordinates on axes turned by `angle`."""
    c, s = cos(angle), sin(angle)
    return c * x + s * y, c * y - s * x


def _colours(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return a muted colour for the ground and a richer one that stands out from it."""
    hue = rng.uniform()
    ground = _rgb(hue, rng.uniform(0.08, 0.5), rng.uniform(0.3, 0.85))
    while True:
        paint = _rgb(
            hue + rng.uniform(0.15, 0.85), rng.uniform(0.35, 0.95), rng.uniform(0.35, 0.95)
        )
        if np.abs(paint - ground).sum() > 0.6:
            return ground, paint


def _rgb(hue: float, saturation: float, value: float) -> Array:
    return np.array(hsv_to_rgb(hue % 1, saturation, value), np.float32)[:, None, None]


def _noise(rng: np.random.Generator, scale: int) -> Array:
    """Return smooth noise of variance 1 with about `scale` bumps along a side."""
    noise: Array = _NOISE[scale] @ rng.standard_normal((scale, scale), np.float32) @ _NOISE[scale].T
    return noise


def _ground(rng: np.random.Generator, colour: Array) -> Array:
    """Return a ground [3, SIDE, SIDE]: light falling off, and a texture in two shades."""
    along, _ = _turned(_X - SIDE / 2, _Y - SIDE / 2, rng.uniform(0, 2 * pi))
    roughness, strength = rng.uniform(0.35, 0.9), rng.uniform(0.1, 0.4)
    texture = np.zeros_like(along)
    for octave, scale in enumerate(_SCALES):
        texture += strength * roughness**octave * _noise(rng, scale)
    kind = rng.integers(3)
    if kind == 0:  # boards, fabric
        bend = rng.uniform(0, 0.8) * _noise(rng, 4)
        texture = 0.5 * texture + 0.5 * np.sin(along * (2 * pi / rng.uniform(5, 16)) + bend)
    elif kind == 1:  # an edge, as of a table
        edge = np.tanh((along - rng.uniform(-16, 16)) / rng.uniform(0.7, 3))
        texture = 0.6 * texture + rng.uniform(0.4, 1) * edge
    shade = colour * rng.uniform(0.05, 0.35, (3, 1, 1)).astype(np.float32)
    light = 1 + rng.uniform(0, 0.01) * along
    return (colour + shade * texture) * light


def _lay(picture: Array, cover: Array, paint: Array) -> None:
    picture += cover * (paint - picture)


def _inside(distance: Array, softness: float) -> Array:
    """Return 1 inside an outline, 0 outside, over an edge `softness` pixels wide."""
    cover: Array = np.clip(0.5 - distance / softness, 0, 1)
    return cover * cover * (3 - 2 * cover)


def _distract(rng: np.random.Generator, picture: Array) -> None:
    """Draw a thin line, a piece of an arc or a small blob that belongs to no class."""
    x0, y0 = rng.uniform(0, SIDE, 2).tolist()
    x, y = _turned(_X - x0, _Y - y0, rng.uniform(0, 2 * pi))
    kind = rng.integers(3)
    if kind == 0:
        distance = _length(x - np.clip(x, 0, rng.uniform(10, 50)), y) - rng.uniform(0.5, 1.2)
    elif kind == 1:
        radius = rng.uniform(6, 24)
        arc = np.abs(_length(x, y) - radius) - rng.uniform(0.5, 1.2)
        distance = _both(arc, radius * rng.uniform(0.2, 0.8) - x)
    else:
        distance = _length(rng.uniform(0.4, 0.7) * x, y) - rng.uniform(1, 2.5)
        distance += 0.6 * _noise(rng, 16)
    paint = _rgb(rng.uniform(), rng.uniform(0.1, 0.8), rng.uniform(0.2, 0.9))
    _lay(picture, rng.uniform(0.4, 0.9) * _inside(distance, rng.uniform(1, 2.5)), paint)


def _place(rng: np.random.Generator, picture: Array, distance: Array, paint: Array) -> None:
    """Draw the object with its shadow, lit from one side."""
    angle, height = rng.uniform(0, 2 * pi), rng.uniform(1.5, 5)
    light_x, light_y = cos(angle), sin(angle)
    cover = _inside(distance, 1.4)
    shadow = _blur(height / 2, -light_y * height) @ cover @ _blur(height / 2, -light_x * height).T
    _lay(picture, rng.uniform(0.4, 0.75) * shadow, np.zeros_like(paint))

    slope_y, slope_x = np.gradient(distance)
    bevel = np.clip(1 + distance / rng.uniform(2, 8), 0, 1)
    facing = bevel * (light_x * slope_x + light_y * slope_y)
    across = light_x * (_X - SIDE / 2) + light_y * (_Y - SIDE / 2)
    light = 0.95 + rng.uniform(0.1, 0.4) * facing + rng.uniform(0, 0.012) * across
    light += rng.uniform(0, 0.1) * _noise(rng, 32)
    gloss = rng.uniform(0, 0.5) * np.clip(facing - 0.5, 0, 1)
    _lay(picture, cover, paint * light + gloss)


def _photograph(rng: np.random.Generator, picture: Array) -> NDArray[np.uint8]:
    """Return 8-bit pixels [SIDE, SIDE, 3] after lens, exposure, white balance and sensor."""
    lens = _blur(rng.uniform(0.35, 0.8))
    picture = lens @ picture @ lens.T
    balance = rng.uniform(0.8, 1.2) * rng.uniform(0.94, 1.06, (3, 1, 1)).astype(np.float32)
    picture *= balance * (1 - rng.uniform(0, 0.4) * _FROM_CENTRE)
    picture += rng.uniform(0.005, 0.03) * rng.standard_normal(picture.shape, np.float32)
    pixels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
