"""Drawings of the demo data set: shaded objects of ten classes in simple scenes, with masks.

A scene has a textured background, a light, and up to three objects of one class, which may cover each other in part.
Places, sizes, rotations, colors, light and background are random and independent of the class. Light objects on dark
ground are as frequent as dark objects on light ground, and two pairs of tones may be exchanged. So neither the average
color nor single pixels determine the class; the arrangement of an object's parts does. Most of a hidden part can be
inferred: the objects of a picture have the same colors and nearly the same size and rotation, their parts have fixed
places, shading is smooth, and textures are periodic.

Lengths are fractions of the image side, in coordinates (x right, y down); an object's own coordinates are in -1..1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SPLITS = ("train", "val")
SUPERSAMPLING = 4  # objects are drawn at 4 times the size and downscaled, for smooth edges
NOISE_STD = 1.0  # of 255

# Brightness (luma, 0..255) of the background and of the four tones of an object, with a light and a dark background.
BACKGROUND = (178.0, 78.0)
TONES = ((72.0, 128.0, 30.0, 222.0), (184.0, 128.0, 44.0, 232.0))
MAIN, SECOND, DARK, LIGHT = range(4)  # numbers of the tones
OBJECT_CHROMA, BACKGROUND_CHROMA = 46.0, 22.0  # distance of the colors from gray, in units of Cb and Cr
TEXTURE = 15.0  # amplitude of the background's textures in luma
RADII = (0.17, 0.27)  # half the side of an object
OBJECTS_PER_PICTURE = 3
MAX_ATTEMPTS = 50  # random positions that are tried for the objects
SPACING = 1.2  # smallest distance between the centers of two objects, in radii: they overlap in part only
MAX_ROTATION = 0.35  # radians

Points = NDArray[np.float64]
Plane = NDArray[np.float64]


class Part(NamedTuple):
    """Polygon [N, 2] of an object in one of its tones; later parts cover earlier ones."""

    points: Points
    tone: int


class Placement(NamedTuple):
    """Place of an object: center (x, y), half its side, rotation in radians, and whether left and right are swapped."""

    x: float
    y: float
    radius: float
    angle: float
    mirrored: bool


def _polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(
    x: float, y: float, width: float, height: float | None = None, start: float = 0, stop: float = 1
) -> Points:
    """Return an ellipse around (x, y) with half axes `width` and `height` (a disc without it).

    `start` and `stop` are fractions of a turn, clockwise from the right; another range than 0..1 gives a segment.
    """
    angles = 2 * np.pi * np.linspace(start, stop, 64)
    return np.stack([x + width * np.cos(angles), y + (height or width) * np.sin(angles)], axis=1)


def _sector(start: float, stop: float) -> Points:
    return np.concatenate([_polygon((0, 0)), _ellipse(0, 0, 1, start=start, stop=stop)])


def _both(points: Points, tone: int) -> tuple[Part, Part]:
    """Return a part and its mirror image at the vertical axis."""
    return Part(points, tone), Part(points * (-1, 1), tone)


def _fir(top: float, bottom: float, width: float) -> Points:
    return _polygon((-width, bottom), (0, top), (width, bottom))


OBJECTS: dict[str, tuple[Part, ...]] = {
    "ball": (
        Part(_ellipse(0, 0, 1), MAIN),
        *(Part(_sector(k / 3, k / 3 + 1 / 6), SECOND) for k in range(3)),
        Part(_ellipse(0, 0, 0.24), LIGHT),
    ),
    "butterfly": (
        *_both(_ellipse(0.54, -0.42, 0.46, 0.5), MAIN),
        *_both(_ellipse(0.42, 0.48, 0.36, 0.42), SECOND),
        *_both(_ellipse(0.56, -0.42, 0.2), LIGHT),
        Part(_ellipse(0, 0.05, 0.11, 0.8), DARK),
        *_both(_polygon((0.0, -0.6), (0.32, -1.0), (0.4, -0.95)), DARK),
    ),
    "car": (
        Part(_polygon((-0.62, 0.0), (-0.42, -0.55), (0.34, -0.55), (0.66, 0.0)), MAIN),
        Part(_polygon((-1, 0.0), (0.8, -0.05), (1, 0.1), (1, 0.5), (-1, 0.5)), MAIN),
        Part(_polygon((-0.48, 0.0), (-0.34, -0.43), (-0.08, -0.43), (-0.08, 0.0)), LIGHT),
        Part(_polygon((0.04, 0.0), (0.04, -0.43), (0.28, -0.43), (0.5, 0.0)), LIGHT),
        Part(_box(-1, 0.12, 1, 0.28), SECOND),
        *(Part(_ellipse(x, 0.5, 0.29), DARK) for x in (-0.55, 0.55)),
        *(Part(_ellipse(x, 0.5, 0.12), LIGHT) for x in (-0.55, 0.55)),
    ),
    "cat": (
        *_both(_polygon((0.9, -0.95), (0.2, -0.5), (0.85, 0.0)), MAIN),
        *_both(_polygon((0.78, -0.7), (0.36, -0.42), (0.76, -0.1)), SECOND),
        Part(_ellipse(0, 0.2, 0.95, 0.78), MAIN),
        *_both(_ellipse(0.4, 0.0, 0.22, 0.24), LIGHT),
        *_both(_ellipse(0.4, 0.0, 0.1, 0.2), DARK),
        Part(_ellipse(0, 0.58, 0.42, 0.28), SECOND),
        Part(_polygon((-0.16, 0.4), (0.16, 0.4), (0, 0.6)), DARK),
    ),
    "fish": (
        Part(_polygon((0.35, 0.0), (1, -0.55), (0.85, 0.0), (1, 0.55)), SECOND),
        Part(_polygon((-0.4, -0.4), (0.2, -0.8), (0.4, -0.3)), SECOND),
        Part(_polygon((-0.2, 0.4), (0.15, 0.75), (0.3, 0.3)), SECOND),
        Part(_ellipse(-0.2, 0, 0.8, 0.52), MAIN),
        Part(_ellipse(-0.18, 0, 0.08, 0.5), SECOND),
        Part(_ellipse(0.14, 0, 0.08, 0.44), SECOND),
        Part(_ellipse(-0.62, -0.1, 0.17), LIGHT),
        Part(_ellipse(-0.64, -0.1, 0.08), DARK),
    ),
    "flower": (
        Part(_box(-0.07, 0.1, 0.07, 1.0), DARK),
        *_both(_ellipse(0.36, 0.72, 0.32, 0.15), DARK),
        *(
            Part(_ellipse(0.44 * np.cos(a), -0.34 + 0.44 * np.sin(a), 0.27), MAIN)
            for a in np.pi * (np.arange(6) / 3 + 1 / 6)
        ),
        Part(_ellipse(0, -0.34, 0.3), SECOND),
        Part(_ellipse(0, -0.34, 0.14), LIGHT),
    ),
    "house": (
        Part(_box(0.4, -0.9, 0.62, -0.2), DARK),
        Part(_box(-0.75, -0.15, 0.75, 1.0), MAIN),
        Part(_polygon((-1, -0.1), (0, -1), (1, -0.1)), SECOND),
        *_both(_box(0.32, 0.1, 0.62, 0.45), LIGHT),
        Part(_box(-0.17, 0.35, 0.17, 1.0), DARK),
        Part(_ellipse(0, -0.42, 0.14), LIGHT),
    ),
    "mushroom": (
        Part(_polygon((-0.24, 0.1), (0.24, 0.1), (0.36, 1.0), (-0.36, 1.0)), LIGHT),
        Part(_ellipse(0, 0.2, 1, 1.15, 0.5, 1), MAIN),
        Part(_ellipse(0, 0.2, 1, 0.14), DARK),
        *_both(_ellipse(0.52, -0.2, 0.17), SECOND),
        *(Part(_ellipse(0, y, 0.17), SECOND) for y in (-0.62, -0.12)),
    ),
    "sailboat": (
        Part(_box(-0.04, -1, 0.05, 0.5), DARK),
        Part(_polygon((0.1, -0.95), (0.1, 0.4), (0.85, 0.4)), LIGHT),
        Part(_polygon((0.1, -0.3), (0.1, -0.02), (0.62, -0.02), (0.46, -0.3)), SECOND),
        Part(_polygon((-0.1, -0.75), (-0.1, 0.4), (-0.75, 0.4)), SECOND),
        Part(_polygon((-1, 0.5), (1, 0.5), (0.68, 0.95), (-0.68, 0.95)), MAIN),
    ),
    "tree": (
        Part(_box(-0.13, 0.5, 0.13, 1.0), DARK),
        Part(_fir(-0.2, 0.72, 0.85), MAIN),
        Part(_fir(-0.6, 0.3, 0.68), SECOND),
        Part(_fir(-1.0, -0.15, 0.5), MAIN),
        *(Part(_ellipse(x, y, 0.09), LIGHT) for x, y in ((-0.4, 0.52), (0.4, 0.52), (0, 0.1), (0, -0.4))),
    ),
}
CLASSES = tuple(OBJECTS)


def draw_demo_image(split: str, class_name: str, index: int, *, image_size: int = 64, seed: int = 0) -> Image.Image:
    """Draw one picture of the demo data set; the pixels depend on the arguments alone.

    Args:
        split: "train" or "val".
        class_name: one of `CLASSES`.
        index: number of the picture within its split and class, from 0.
        image_size: side in pixels.
        seed: random seed of the data set.

    Returns:
        RGB image of `image_size` x `image_size` pixels.

    Raises:
        ValueError: unknown split or class.
    """
    rng = _picture_rng(split, class_name, index, seed)
    placements = _place_objects(rng)
    night = int(rng.integers(2))
    light = rng.choice((-1.0, 1.0))
    tones = _draw_tones(TONES[night], rng)
    pixels = _draw_background(image_size, BACKGROUND[night], light, rng)
    x, y = _coordinates(image_size)
    for placement in placements:
        pixels *= 1.0 - _draw_shadow(placement, x, y)[..., None]
        layer = _draw_object(OBJECTS[class_name], placement, image_size, tones)
        pixels = layer[..., :3] * _shade(placement, x, y, light)[..., None] + (1.0 - layer[..., 3:] / 255.0) * pixels
    pixels += rng.normal(0.0, NOISE_STD, pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def draw_demo_mask(split: str, class_name: str, index: int, *, image_size: int = 64, seed: int = 0) -> Image.Image:
    """Draw the mask of the picture that `draw_demo_image` draws with the same arguments.

    Returns:
        Gray image of class indices: 0 for the background, 1 + the number of the class for pixels of which an object
        covers at least half.

    Raises:
        ValueError: unknown split or class.
    """
    placements = _place_objects(_picture_rng(split, class_name, index, seed))
    tones = [(0, 0, 0)] * len(TONES[0])
    layers = [_draw_object(OBJECTS[class_name], placement, image_size, tones) for placement in placements]
    covered = np.max([layer[..., 3] for layer in layers], axis=0) >= 127.5
    return Image.fromarray(np.where(covered, 1 + CLASSES.index(class_name), 0).astype(np.uint8))


def _picture_rng(split: str, class_name: str, index: int, seed: int) -> np.random.Generator:
    return np.random.default_rng((SPLITS.index(split), CLASSES.index(class_name), index, seed))


def _place_objects(rng: np.random.Generator) -> list[Placement]:
    """Draw the places of the objects from top to bottom; a lower object may cover a higher one in part."""
    radius, angle = rng.uniform(*RADII), rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    centers: list[tuple[float, float]] = []
    for x, y in rng.uniform((0.08, 0.15), (0.92, 0.85), (MAX_ATTEMPTS, 2)).tolist():
        apart = all(np.hypot(x - other[0], y - other[1]) > SPACING * radius for other in centers)
        if len(centers) < OBJECTS_PER_PICTURE and apart:
            centers.append((x, y))
    return [
        Placement(x, y, radius * rng.uniform(0.85, 1.15), angle + rng.uniform(-0.1, 0.1), bool(rng.integers(2)))
        for x, y in sorted(centers, key=lambda center: center[1])
    ]


def _draw_object(
    parts: tuple[Part, ...], place: Placement, image_size: int, tones: list[tuple[int, int, int]]
) -> Plane:
    """Draw an object without shading; return its color times its coverage, and its coverage, [S, S, 4] in 0..255."""
    canvas = Image.new("RGBA", (image_size * SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    cos, sin = np.cos(place.angle), np.sin(place.angle)
    axes = np.array([(-cos, -sin) if place.mirrored else (cos, sin), (-sin, cos)])
    for points, tone in parts:
        corners = ((place.x, place.y) + place.radius * points @ axes) * canvas.width
        pen.polygon([tuple(corner) for corner in corners.tolist()], fill=(*tones[tone], 255))
    layer = np.array(canvas.reduce(SUPERSAMPLING), np.float64)
    layer[..., :3] *= layer[..., 3:] / 255.0  # Pillow averages colors without the transparent pixels
    return layer


def _draw_tones(lumas: tuple[float, float, float, float], rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Draw the colors of the four tones; the first two are exchanged at random, and so are the last two."""
    colors = rng.permutation([_to_rgb(luma, _draw_chroma(rng, OBJECT_CHROMA)) for luma in lumas[:2]]).tolist()
    grays = rng.permutation([_to_rgb(luma, np.zeros(2)) for luma in lumas[2:]]).tolist()
    return [(red, green, blue) for red, green, blue in (*colors, *grays)]


def _shade(place: Placement, x: Plane, y: Plane, light: float) -> Plane:
    """Return the brightness factors [S, S] of a round object, lit from above and from the left (-1) or right (1)."""
    u, v = (x - place.x) / place.radius, (y - place.y) / place.radius
    facing = np.sqrt(1.0 - 0.7 * np.minimum(u * u + v * v, 1.0))
    return 0.68 + 0.45 * np.clip(0.5 * light * u - 0.5 * v + 0.7 * facing, 0.0, 1.0)


def _draw_shadow(place: Placement, x: Plane, y: Plane) -> Plane:
    """Return the share of the light, [S, S] in 0..1, that an object takes from the ground at its lower end."""
    u, v = (x - place.x) / place.radius, (y - place.y - 0.95 * place.radius) / (0.22 * place.radius)
    return 0.4 * np.exp(-(u * u + v * v))


def _draw_background(image_size: int, luma: float, light: float, rng: np.random.Generator) -> Plane:
    """Draw wall and ground, each with its texture and color and a gradient of the light; return pixels [S, S, 3]."""
    x, y = _coordinates(image_size)
    horizon = rng.uniform(0.5, 0.75)
    wall, ground = (textures[rng.integers(len(textures))] for textures in (WALLS, GROUNDS))
    lumas = luma + 12.0 * light * (2 * x - 1) + 14.0 * (y - 0.5)
    above, below = lumas + 8.0 + TEXTURE * wall(x, y, rng), lumas - 16.0 + TEXTURE * ground(x, y - horizon, rng)
    wall_chroma, ground_chroma = (_draw_chroma(rng, BACKGROUND_CHROMA) for _ in range(2))
    above, below = above[..., None] + _chroma_rgb(wall_chroma), below[..., None] + _chroma_rgb(ground_chroma)
    is_wall = np.clip((horizon - y) * image_size + 0.5, 0.0, 1.0)[..., None]
    return is_wall * above + (1.0 - is_wall) * below


def _coordinates(image_size: int) -> tuple[Plane, Plane]:
    """Return x and y, each [S, S], of the pixels' centers."""
    centers = (np.arange(image_size) + 0.5) / image_size
    x, y = np.meshgrid(centers, centers)
    return x, y


def _wave(t: Plane, sharpness: float = 3.0) -> Plane:
    """Return a wave of period 1 in -1..1 with flat tops."""
    return np.clip(sharpness * np.sin(2 * np.pi * t), -1.0, 1.0)


# Textures of a wall or, with y = 0 at the horizon, of the ground: values [S, S] in -1..1. Periods are random.


def _plain(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    return np.zeros_like(x)


def _stripes(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    return _wave(x / rng.uniform(0.18, 0.28) + rng.uniform())


def _bricks(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    height = rng.uniform(0.11, 0.15)
    row = y / height + rng.uniform()
    column = x / (2.2 * height) + 0.5 * (np.floor(row) % 2) + rng.uniform()
    joint = np.minimum(0.5 - np.abs(row % 1 - 0.5), 2.2 * (0.5 - np.abs(column % 1 - 0.5)))  # distance in brick heights
    return 0.5 - 1.5 * np.clip(1.6 - 8.0 * joint, 0.0, 1.0)


def _hills(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    ridge = 0.42 + 0.09 * np.sin(2 * np.pi * (x / rng.uniform(0.5, 0.8) + rng.uniform()))
    return 2.0 * np.clip(12.0 * (ridge - y) + 0.5, 0.0, 1.0) - 1.0


def _planks(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    return _wave(np.log(np.maximum(y, 0.0) + 0.1) * rng.uniform(1.5, 2.2) + rng.uniform())


def _tiles(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    depth = 1.0 / (np.maximum(y, 0.0) + 0.35)
    period = rng.uniform(0.55, 0.8)
    return _wave((x - 0.5) * depth / period + rng.uniform()) * _wave(depth / period + rng.uniform())


Texture = Callable[[Plane, Plane, np.random.Generator], Plane]
WALLS: tuple[Texture, ...] = (_plain, _stripes, _bricks, _hills)
GROUNDS: tuple[Texture, ...] = (_plain, _planks, _tiles)


def _draw_chroma(rng: np.random.Generator, distance: float) -> NDArray[np.float64]:
    """Draw the chroma (Cb, Cr) of a random hue at this distance from gray."""
    hue = rng.uniform(0.0, 2 * np.pi)
    return distance * np.array((np.cos(hue), np.sin(hue)))


def _chroma_rgb(chroma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the offset (r, g, b) from gray of a chroma (Cb, Cr); it has no luma (ITU-R BT.601)."""
    cb, cr = chroma
    return np.array([1.402 * cr, -0.344136 * cb - 0.714136 * cr, 1.772 * cb])


def _to_rgb(luma: float, chroma: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (luma + _chroma_rgb(chroma)).round().clip(0, 255).astype(int).tolist()
    return red, green, blue
