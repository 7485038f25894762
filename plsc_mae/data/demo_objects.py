"""Pictures of shaded objects in front of walls: the demo set whose reconstructions can be judged at a glance.

A picture shows one object, such as a cat, a house or a sailboat, in front of a textured wall. The colors are those of
day or night, and place, size and rotation vary little. So a small network learns in minutes to redraw hidden parts. For
the same reason raw pixels suffice to classify the pictures; features are measured on `demo_shapes` instead.

Lengths are fractions of the image side, in coordinates (x right, y down); an object's own coordinates are in -1..1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SUPERSAMPLING = 4  # objects are drawn at 4 times the size and downscaled, for smooth edges
RADIUS_RANGE = (0.38, 0.42)  # half the side of an object
CENTER_RANGE = (0.47, 0.53)
MAX_ROTATION = 0.05  # radians
HORIZON_RANGE = (0.68, 0.76)  # y of the line between wall and ground
TEXTURE = 6.0  # amplitude of the textures, of 255
NOISE_STD = 1.0  # of 255

Points = NDArray[np.float64]
Plane = NDArray[np.float64]
Color = tuple[int, int, int]
MAIN, SECOND, DARK, LIGHT = range(4)  # numbers of an object's colors


class Scenery(NamedTuple):
    """Colors (RGB, 0..255) of the wall and the ground, and the four colors of an object's parts."""

    wall: Color
    ground: Color
    parts: tuple[Color, Color, Color, Color]


DAY = Scenery((200, 212, 228), (190, 178, 150), ((196, 68, 54), (54, 96, 150), (32, 32, 42), (242, 240, 230)))
NIGHT = Scenery((58, 58, 98), (48, 70, 66), ((238, 176, 76), (116, 196, 200), (26, 26, 34), (246, 240, 226)))


class Part(NamedTuple):
    """Polygon [N, 2] of an object in one of its colors; later parts cover earlier ones."""

    points: Points
    color: int


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
    """Return an ellipse around (x, y) with half axes `width` and `height`; without `height` it is a disc.

    `start` and `stop` are fractions of a turn, clockwise from the right; another range than 0..1 gives a segment.
    """
    angles = 2 * np.pi * np.linspace(start, stop, 64)
    return np.stack([x + width * np.cos(angles), y + (height or width) * np.sin(angles)], axis=1)


def _sector(start: float, stop: float) -> Points:
    return np.concatenate([_polygon((0, 0)), _ellipse(0, 0, 1, start=start, stop=stop)])


def _both(points: Points, color: int) -> tuple[Part, Part]:
    """Return a part and its mirror image about the vertical axis."""
    return Part(points, color), Part(points * (-1, 1), color)


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


def draw_object(class_name: str, image_size: int, rng: np.random.Generator) -> Image.Image:
    """Draw a picture: RGB, `image_size` x `image_size` pixels.

    Raises:
        KeyError: unknown class.
    """
    place = _draw_placement(rng)
    scenery = (DAY, NIGHT)[rng.integers(2)]
    light = rng.choice((-1.0, 1.0))
    x, y = _coordinates(image_size)
    pixels = _draw_background(scenery, x, y, image_size, rng) + 8.0 * light * (2 * x - 1)[..., None]
    pixels *= 1.0 - _shadow(place, x, y)[..., None]
    layer = _draw_parts(OBJECTS[class_name], place, image_size, scenery.parts)
    pixels = layer[..., :3] * _shade(place, x, y, light)[..., None] + (1.0 - layer[..., 3:] / 255.0) * pixels
    pixels += rng.normal(0.0, NOISE_STD, pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def cover_object(class_name: str, image_size: int, rng: np.random.Generator) -> Plane:
    """Return the fraction of each pixel that the object covers, [S, S] in 0..1.

    With a generator in the same state, `draw_object` draws this object.

    Raises:
        KeyError: unknown class.
    """
    layer = _draw_parts(OBJECTS[class_name], _draw_placement(rng), image_size, DAY.parts)
    return layer[..., 3] / 255.0


def _draw_placement(rng: np.random.Generator) -> Placement:
    """Draw the place of the object, before all other draws of a picture."""
    x, y = rng.uniform(*CENTER_RANGE, 2).tolist()
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    return Placement(x, y, rng.uniform(*RADIUS_RANGE), angle, bool(rng.integers(2)))


def _draw_parts(parts: tuple[Part, ...], place: Placement, image_size: int, colors: tuple[Color, ...]) -> Plane:
    """Draw an object without shading; return [S, S, 4] in 0..255: RGB color times coverage, then the coverage."""
    canvas = Image.new("RGBA", (image_size * SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    cos, sin = np.cos(place.angle), np.sin(place.angle)
    axes = np.array([(-cos, -sin) if place.mirrored else (cos, sin), (-sin, cos)])
    for points, color in parts:
        corners = ((place.x, place.y) + place.radius * points @ axes) * canvas.width
        pen.polygon([tuple(corner) for corner in corners.tolist()], fill=(*colors[color], 255))
    layer = np.array(canvas.reduce(SUPERSAMPLING), np.float64)
    layer[..., :3] *= layer[..., 3:] / 255.0  # Pillow averages colors without the transparent pixels
    return layer


def _shade(place: Placement, x: Plane, y: Plane, light: float) -> Plane:
    """Return the brightness factors [S, S] of a round object lit from above and from left (`light` -1) or right (1)."""
    u, v = (x - place.x) / place.radius, (y - place.y) / place.radius
    facing = np.sqrt(1.0 - 0.7 * np.minimum(u * u + v * v, 1.0))
    return 0.68 + 0.45 * np.clip(0.5 * light * u - 0.5 * v + 0.7 * facing, 0.0, 1.0)


def _shadow(place: Placement, x: Plane, y: Plane) -> Plane:
    """Return the fraction of the light, [S, S] in 0..1, that is lost in the shadow at an object's lower end."""
    u, v = (x - place.x) / place.radius, (y - place.y - 0.95 * place.radius) / (0.22 * place.radius)
    return 0.4 * np.exp(-(u * u + v * v))


def _draw_background(scenery: Scenery, x: Plane, y: Plane, image_size: int, rng: np.random.Generator) -> Plane:
    """Draw wall and ground, each with a texture; return pixels [S, S, 3]."""
    horizon = rng.uniform(*HORIZON_RANGE)
    wall, ground = WALLS[rng.integers(len(WALLS))](x, y, rng), _tiles(x, y - horizon, rng)
    is_wall = np.clip((horizon - y) * image_size + 0.5, 0.0, 1.0)[..., None]
    above, below = scenery.wall + TEXTURE * wall[..., None], scenery.ground + TEXTURE * ground[..., None]
    return is_wall * above + (1.0 - is_wall) * below


def _coordinates(image_size: int) -> tuple[Plane, Plane]:
    """Return x and y, each [S, S], of the pixels' centers."""
    centers = (np.arange(image_size) + 0.5) / image_size
    x, y = np.meshgrid(centers, centers)
    return x, y


def _wave(t: Plane) -> Plane:
    """Return a wave of period 1 in -1..1 with flat tops."""
    return np.clip(3.0 * np.sin(2 * np.pi * t), -1.0, 1.0)


# Textures: values [S, S] in -1..1 of the wall or, with y = 0 at the horizon, of the ground.


def _stripes(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    return _wave(x / 0.22 + rng.uniform())


def _bricks(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    row = y / 0.13 + rng.uniform()
    column = x / 0.286 + 0.5 * (np.floor(row) % 2) + rng.uniform()
    joint = np.minimum(0.5 - np.abs(row % 1 - 0.5), 2.2 * (0.5 - np.abs(column % 1 - 0.5)))  # distance in brick heights
    return 0.5 - 1.5 * np.clip(1.6 - 8.0 * joint, 0.0, 1.0)


def _tiles(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    depth = 1.0 / (np.maximum(y, 0.0) + 0.35)
    return _wave((x - 0.5) * depth / 0.7 + rng.uniform()) * _wave(depth / 0.7 + rng.uniform())


WALLS: tuple[Callable[[Plane, Plane, np.random.Generator], Plane], ...] = (_stripes, _bricks)
