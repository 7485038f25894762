"""Classes of ImageNet-1k by their WordNet ids, and the 200 classes of ImageNet-A and of ImageNet-R.

The class number of ImageNet-1k is the position of the id among the 1000 sorted ids. The ids of ImageNet-A and of
ImageNet-R are those of their folders (hendrycks/natural-adv-examples, hendrycks/imagenet-r).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

_FILE = Path(__file__).with_name("imagenet_synsets.txt")  # an id per line, with "a" and "r" for the two subsets
_SYNSET = re.compile(r"(?<![A-Za-z0-9])n\d{8}(?!\d)")
_VALIDATION_FILE = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")


@functools.cache
def synsets(subset: str = "") -> tuple[str, ...]:
    """Return the sorted WordNet ids of ImageNet-1k, or of its subset "a" (ImageNet-A) or "r" (ImageNet-R)."""
    rows = [line.split() for line in _FILE.read_text(encoding="ascii").splitlines()]
    return tuple(name for name, *subsets in rows if not subset or subset in subsets)


def find_synset(name: str) -> str | None:
    """Return the WordNet id in the name of a class, as in "n01440764" or "n01440764 tench"; None without an id."""
    found = _SYNSET.search(name)
    return found[0] if found else None


def validation_number(path: str) -> int | None:
    """Return the number, from 1, in the name of a validation image of ImageNet-1k; None if it has another name."""
    found = _VALIDATION_FILE.match(Path(path).name)
    return int(found[1]) if found else None
