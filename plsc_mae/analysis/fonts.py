"""Fonts for names of any script in pictures of Pillow and Matplotlib.

Text in ASCII is drawn in the default font of each library. In other text, each character is drawn in the first of
these fonts that contains it: the file that PLSC_MAE_FONT names, DejaVu Sans of Matplotlib, the fonts of the system. A
name with a character that none of these contains is replaced by its number. In Matplotlib's pictures, Matplotlib's
default font is tried before them.
"""

from __future__ import annotations

import itertools
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

VARIABLE = "PLSC_MAE_FONT"
# Parts of file names, lower case without separators: preferred fonts, styles that are avoided, and fonts that
# cannot draw text.
_PREFERRED = (
    *("notosanscjk", "sourcehansans", "wqymicrohei", "wqyzenhei", "droidsansfallback", "pingfang", "hiragino"),
    *("stheiti", "msyh", "simhei", "meiryo", "malgun", "applesdgothic", "arialuni", "notosans"),
)
_STYLES = ("bold", "black", "light", "thin", "italic", "oblique", "mono", "condensed", "serif")
_NO_TEXT = ("coloremoji", "lastresort", "blank")
_NAMES_SHOWN = 5
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_logged: set[str] = set()  # replacements that have been logged
logger = logging.getLogger(__name__)


def drawable_names(names: Sequence[str], numbers: Sequence[int] | None = None) -> tuple[str, ...]:
    """Return names for a picture; a name with a character that no font contains is replaced by its number, such as #3.

    A replacement is logged once per process.

    Args:
        names: names of classes, files or folders.
        numbers: number of each name, such as the class number; None counts from 0.
    """
    numbers = range(len(names)) if numbers is None else numbers
    if replaced := [text for text in _replacements(names, numbers) if text not in _logged]:
        _logged.update(replaced)
        logger.warning("%s", _describe(replaced))
    return tuple(
        _composed(name) if _is_drawable(name, _named_font()) else f"#{number}"
        for number, name in zip(numbers, names, strict=True)
    )


def undrawable_names(names: Sequence[str]) -> str:
    """Return a sentence about the names that pictures replace by their numbers, counted from 0; "" without any."""
    replaced = _replacements(names, range(len(names)))
    return _describe(replaced) if replaced else ""


def _replacements(names: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Return "'NAME' as #NUMBER", without repeats, for each name that no font can draw."""
    pairs = zip(names, numbers, strict=True)
    return list(
        dict.fromkeys(f"'{name}' as #{number}" for name, number in pairs if not _is_drawable(name, _named_font()))
    )


def _describe(replaced: Sequence[str]) -> str:
    more = f" and {len(replaced) - _NAMES_SHOWN} more" if len(replaced) > _NAMES_SHOWN else ""
    return (
        "no font has all characters of some names, so pictures show numbers: "
        f"{', '.join(replaced[:_NAMES_SHOWN])}{more}; install a font of their script, for example the package "
        f"fonts-noto-cjk, or set {VARIABLE} to a font file"
    )


@cache
def _is_drawable(name: str, named: str) -> bool:
    return name.isascii() or all(_font_of(each, named) for each in _composed(name))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS writes decomposed names of files


class Lettering:
    """Drawing of text of one size in pictures of Pillow.

    Args:
        size: size of the fonts in pixels.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        own = self._own = ImageFont.load_default(size=size)
        self._line = own.getbbox("A")[3] + 2
        self._ascent = own.getmetrics()[0] if isinstance(own, ImageFont.FreeTypeFont) else size

    def width(self, text: str) -> float:
        """Return the width of a line in pixels."""
        return sum(font.getlength(part) for font, part in self._parts(text))

    def fitted(self, text: str, width: float) -> str:
        """Return a line of text; if it is wider than `width` pixels, "..." replaces its middle."""
        kept, shown = len(text), text
        while kept and self.width(shown) > width:
            kept -= 1
            shown = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
        return shown

    def draw(self, canvas: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
        """Draw black text, which may have several lines, with its top left corner at `place`."""
        for number, line in enumerate(text.split("\n")):
            left, baseline = place[0], place[1] + number * self._line + self._ascent
            for font, part in self._parts(line):
                canvas.text((left, baseline), part, fill="black", font=font, anchor="ls")
                left += font.getlength(part)

    def _parts(self, line: str) -> Iterator[tuple[Font, str]]:
        if line.isascii():
            yield self._own, line
            return
        paths = [_font_of(each, _named_font()) or _bundled() for each in line]
        for i in range(1, len(line)):
            paths[i] = paths[i - 1] if line[i] == " " else paths[i]  # the words of a script are shaped together
        for path, group in itertools.groupby(zip(paths, line, strict=True), key=lambda item: item[0]):
            yield _load(path, self._size), "".join(each for _, each in group)


def text_style(names: Sequence[str]) -> dict[str, Any]:
    """Return Matplotlib's text arguments for `names`: fonts that have their characters, and $ as a plain character."""
    from matplotlib import font_manager, rcParams

    named = _named_font()
    found = dict.fromkeys(_font_of(each, named) for name in names for each in name if not each.isascii())
    families = []
    for path in filter(None, found):
        if all(entry.fname != path for entry in font_manager.fontManager.ttflist):
            font_manager.fontManager.addfont(path)
        families.append(font_manager.FontProperties(fname=path).get_name())
    return {"fontfamily": [*rcParams["font.family"], *families], "parse_math": False}


# ------------------------------------------------------------------------------------------------- choice of a font


@cache
def _font_of(character: str, named: str) -> str | None:
    """Return the path of the first font that contains `character`; None if no font does."""
    return next((path for path in _candidates(named) if ord(character) in _characters(path)), None)


def _candidates(named: str) -> Iterator[str]:
    """Yield the font files to search, the best first."""
    if named:
        yield named
    yield _bundled()
    yield from _system_fonts()


def _bundled() -> str:
    """Return the path of DejaVu Sans, which Matplotlib contains: Latin, Greek, Cyrillic, Arabic and other scripts."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def _system_fonts() -> list[str]:
    """Return the files of the system's fonts, the best first."""
    from matplotlib import font_manager

    return sorted(font_manager.findSystemFonts(), key=_rank)


def _rank(path: str) -> tuple[int, int, str]:
    """Return a sort key: preferred fonts first, then fonts with the fewest words of `_STYLES` in their names."""
    name = _plain_name(path)
    preferred = next((i for i, part in enumerate(_PREFERRED) if name.startswith(part)), len(_PREFERRED))
    return preferred, sum(style in name for style in _STYLES), path


def _plain_name(path: str) -> str:
    return Path(path).name.lower().translate(str.maketrans("", "", "-_ "))


@cache
def _characters(path: str) -> frozenset[int]:
    """Return the code points of a font's characters; the set is empty if it cannot draw text."""
    from matplotlib.ft2font import FT2Font

    if any(part in _plain_name(path) for part in _NO_TEXT):
        return frozenset()
    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # it is missing or damaged
        return frozenset()


def _named_font() -> str:
    """Return the font file that the environment names; "" if it names none or an unusable one."""
    named = os.environ.get(VARIABLE, "")
    return named if named and _is_usable(named) else ""


@cache
def _is_usable(named: str) -> bool:
    if _characters(named):
        return True
    logger.warning(
        "%s=%s is not a font that can be read, so it is not used; expected a .ttf, .otf or .ttc file", VARIABLE, named
    )
    return False


@cache
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
