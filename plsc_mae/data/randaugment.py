"""RandAugment (Cubuk et al. 2020) with the operations and the string notation of timm 0.3.2.

It runs in the worker on the cropped and flipped image. Every draw comes from the sample's generator.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from plsc_mae.data.pixels import Pixels
from plsc_mae.data.transforms import IMAGENET_MEAN, InterpolationChoice, draw_interpolation
from plsc_mae.errors import ConfigError

MAX_LEVEL = 10  # upper end of the usual range of magnitudes
_APPLY_PROBABILITY = 0.5
_UNIFORM_ABOVE = 100  # a larger "mstd" makes the magnitude uniform in [0, m]

# Probabilities of the operations with "w0"; operations that are not listed have weight 0.
CHOICE_WEIGHTS = {
    "Rotate": 0.3,
    "ShearX": 0.2,
    "ShearY": 0.2,
    "TranslateXRel": 0.1,
    "TranslateYRel": 0.1,
    "Color": 0.025,
    "Sharpness": 0.025,
    "AutoContrast": 0.025,
    "Solarize": 0.005,
    "SolarizeAdd": 0.005,
    "Contrast": 0.005,
    "Brightness": 0.005,
    "Equalize": 0.005,
}


GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


class Resampling(NamedTuple):
    """Options of geometric operations: Pillow's filter, and the color of pixels from outside the image."""

    resample: Image.Resampling
    fillcolor: tuple[int, ...] | int


class Operation(NamedTuple):
    """Image operation, and the rule that converts a level to its argument."""

    # maps a level, usually in [0, 10], and a sign, 1 or -1, to the argument of `apply`
    argument: Callable[[float, int], Any]
    apply: Callable[[Image.Image, Any, Resampling], Image.Image]  # returns the changed image


@functools.cache
def operations(*, increasing: bool) -> dict[str, Operation]:
    """Return the fifteen operations by name.

    Args:
        increasing: if True, Posterize, Solarize and the enhancements get stronger with the level, and an enhancement
            factor moves up or down from 1. If False, the first two are strongest at level 0, and enhancement factors
            rise from 0.1 to 1.9.
    """
    bits = _increasing_bits if increasing else _bits
    threshold = _increasing_threshold if increasing else _threshold
    factor = _increasing_factor if increasing else _factor
    return {
        "AutoContrast": Operation(_no_argument, lambda image, _value, _how: ImageOps.autocontrast(image)),
        "Equalize": Operation(_no_argument, lambda image, _value, _how: ImageOps.equalize(image)),
        "Invert": Operation(_no_argument, lambda image, _value, _how: ImageOps.invert(image)),
        "Rotate": Operation(_degrees, lambda image, degrees, how: image.rotate(degrees, **how._asdict())),
        "Posterize": Operation(bits, _posterize),
        "Solarize": Operation(threshold, lambda image, threshold, _how: ImageOps.solarize(image, threshold)),
        "SolarizeAdd": Operation(_addend, _solarize_add),
        "Color": Operation(factor, lambda image, factor, _how: ImageEnhance.Color(image).enhance(factor)),
        "Contrast": Operation(factor, lambda image, factor, _how: ImageEnhance.Contrast(image).enhance(factor)),
        "Brightness": Operation(factor, lambda image, factor, _how: ImageEnhance.Brightness(image).enhance(factor)),
        "Sharpness": Operation(factor, lambda image, factor, _how: ImageEnhance.Sharpness(image).enhance(factor)),
        "ShearX": Operation(_slope, lambda image, slope, how: _affine(image, (1, slope, 0, 0, 1, 0), how)),
        "ShearY": Operation(_slope, lambda image, slope, how: _affine(image, (1, 0, 0, slope, 1, 0), how)),
        "TranslateXRel": Operation(
            _shift, lambda image, shift, how: _affine(image, (1, 0, shift * image.width, 0, 1, 0), how)
        ),
        "TranslateYRel": Operation(
            _shift, lambda image, shift, how: _affine(image, (1, 0, 0, 0, 1, shift * image.height), how)
        ),
    }


@dataclass(frozen=True)
class RandAugment:
    """Augmentation that applies randomly chosen operations, each with probability 0.5."""

    magnitude: int = 10  # mean level of the operations
    num_layers: int = 2  # number of operations chosen per image
    # standard deviation of the level; infinity draws the level uniformly from [0, magnitude]
    magnitude_std: float = 0.0
    # levels are clipped to [0, magnitude_max]; above 10, operations exceed their usual range
    magnitude_max: int = MAX_LEVEL
    # True makes Posterize, Solarize and the enhancements stronger with the level, see `operations`
    increasing: bool = False
    # True chooses by CHOICE_WEIGHTS without replacement; False chooses uniformly with replacement
    weighted: bool = False
    fill: tuple[int, ...] = (124, 116, 104)  # color of pixels from outside the image
    # filter of geometric operations; "random" chooses for each operation
    interpolation: InterpolationChoice = "bicubic"
    geometric: bool = False  # True chooses among the GEOMETRIC operations only, which have a meaning for any channels

    @classmethod
    def parse(
        cls, text: str, mean: Sequence[float] = IMAGENET_MEAN, interpolation: InterpolationChoice = "bicubic"
    ) -> RandAugment:
        """Create a RandAugment from timm's notation, such as rand-m9-mstd0.5-inc1.

        After "rand" come sections in any order, all optional: m, the magnitude; n, the number of operations per image;
        mstd, the standard deviation of the magnitude (above 100: a uniform magnitude); mmax, the largest magnitude;
        inc with any number, increasing operations; w0, weighted choice.

        Args:
            text: sections separated by dashes.
            mean: mean of the normalization; its color fills pixels from outside the image.
            interpolation: filter of geometric operations.

        Raises:
            ConfigError: the text is not in this notation, or a value is invalid.
        """
        head, *sections = text.split("-")
        if head != "rand":
            raise _bad_notation(text, f"it starts with '{head}' instead of 'rand'")
        settings = dict(_parse_section(text, section) for section in sections)
        fill = tuple(min(255, round(255 * channel)) for channel in mean)
        augment = cls(**settings, fill=fill, interpolation=interpolation)
        if augment.weighted and augment.num_layers > len(CHOICE_WEIGHTS):
            raise _bad_notation(
                text, f"w0 chooses from {len(CHOICE_WEIGHTS)} operations, fewer than n{augment.num_layers}"
            )
        return augment

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Augment an RGB image.

        `rng` first draws all operations, then for each one the decision to apply it and, if so, its level, sign and
        interpolation (if random).
        """
        for operation, argument, resample in self._draw(rng):
            image = operation.apply(image, argument, Resampling(resample, self.fill))
        return image

    def augment_channels(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Augment all channels of pixels [h, w, C] alike, with the draws of `__call__`; `geometric` must be True."""
        planes = [Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(pixels.shape[2])]
        for operation, argument, resample in self._draw(rng):
            planes = [
                operation.apply(plane, argument, Resampling(resample, fill))
                for plane, fill in zip(planes, self.fill, strict=True)
            ]
        return np.stack([np.asarray(plane) for plane in planes], axis=-1)

    def _draw(self, rng: np.random.Generator) -> Iterator[tuple[Operation, Any, Image.Resampling]]:
        """Yield the operations to apply, with their arguments and filters."""
        for name in self._choose(rng):
            if rng.random() > _APPLY_PROBABILITY:
                continue
            operation = operations(increasing=self.increasing)[name]
            argument = operation.argument(self._draw_level(rng), 1 if rng.random() > 0.5 else -1)
            yield operation, argument, Image.Resampling[draw_interpolation(self.interpolation, rng).upper()]

    def _choose(self, rng: np.random.Generator) -> list[str]:
        if not self.weighted:
            names = list(GEOMETRIC if self.geometric else operations(increasing=self.increasing))
            return [names[choice] for choice in rng.integers(len(names), size=self.num_layers)]
        names = list(GEOMETRIC if self.geometric else CHOICE_WEIGHTS)
        weights = np.array([CHOICE_WEIGHTS[name] for name in names])
        count = min(self.num_layers, len(names))
        chosen = rng.choice(len(weights), count, replace=False, p=weights / weights.sum())
        return [names[choice] for choice in chosen]

    def _draw_level(self, rng: np.random.Generator) -> float:
        if math.isinf(self.magnitude_std):
            level = rng.uniform(0, self.magnitude)
        else:
            level = rng.normal(self.magnitude, self.magnitude_std)
        return min(max(level, 0.0), float(self.magnitude_max))


def _parse_section(text: str, section: str) -> tuple[str, Any]:
    parsed = re.fullmatch(r"([a-z]+)([0-9.]+|inf)", section)
    key, value = parsed.groups() if parsed else (section, "")
    try:
        if key == "inc" and value:
            return "increasing", True
        if key == "mstd":
            std = float(value)
            return "magnitude_std", math.inf if std > _UNIFORM_ABOVE else std
        if key == "w" and int(value) == 0:
            return "weighted", True
        if key in ("m", "mmax") or (key == "n" and int(value) > 0):
            return {"m": "magnitude", "mmax": "magnitude_max", "n": "num_layers"}[key], int(value)
    except ValueError as error:
        raise _bad_notation(text, f"'{section}' has an invalid number") from error
    raise _bad_notation(text, f"'{section}' is not a known section")


def _bad_notation(text: str, reason: str) -> ConfigError:
    return ConfigError(
        f"--aa '{text}' is invalid: {reason}; expected rand with m, n, mmax (integers), mstd (number), inc1 or w0, "
        f"as in rand-m9-mstd0.5-inc1"
    )


# Arguments of the operations by level and sign. The limits take effect only for levels above 10.


def _no_argument(_level: float, _sign: int) -> None:
    return None


def _degrees(level: float, sign: int) -> float:
    return sign * (level / MAX_LEVEL * 30)


def _bits(level: float, _sign: int) -> int:
    return min(8, int(level / MAX_LEVEL * 4))


def _increasing_bits(level: float, sign: int) -> int:
    return max(0, 4 - _bits(level, sign))


def _threshold(level: float, _sign: int) -> int:
    return min(256, int(level / MAX_LEVEL * 256))


def _increasing_threshold(level: float, sign: int) -> int:
    return 256 - _threshold(level, sign)


def _addend(level: float, _sign: int) -> int:
    return min(128, int(level / MAX_LEVEL * 110))


def _factor(level: float, _sign: int) -> float:
    return level / MAX_LEVEL * 1.8 + 0.1


def _increasing_factor(level: float, sign: int) -> float:
    return max(0.1, 1 + sign * (level / MAX_LEVEL * 0.9))


def _slope(level: float, sign: int) -> float:
    return sign * (level / MAX_LEVEL * 0.3)


def _shift(level: float, sign: int) -> float:
    return sign * (level / MAX_LEVEL * 0.45)


# Operations without a suitable function in Pillow


def _posterize(image: Image.Image, bits: int, _how: Resampling) -> Image.Image:
    # With increasing operations, level 10 asks for 0 bits. Old versions of Pillow's posterize then returned a black
    # image, as this does; newer ones raise.
    dropped = 2 ** (8 - bits) - 1
    return image.point([value & ~dropped for value in range(256)] * 3)


def _solarize_add(image: Image.Image, addend: int, _how: Resampling) -> Image.Image:
    table = [min(255, value + addend) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _affine(image: Image.Image, matrix: tuple[float, ...], how: Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **how._asdict())
