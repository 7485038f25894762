"""Classes of images, matched by name with the classes of a checkpoint or of another data set.

The number of a class depends on the other classes of its data set, so only names identify classes. The rules below are
tried in this order. The first rule applies that matches every name, each with a different class:
- names are equal;
- names are equal without surrounding blanks and in Unicode's composed form (macOS writes decomposed file names);
- numbers have equal values, so folder 7 is class 07;
- names are equal after those that are not UTF-8 have been read as GBK;
- labels without names are the class numbers of a reference whose classes have names;
- ImageNet's synsets are the classes of a reference that has them in words, in the same order.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor

from plsc_mae.errors import CheckpointError, DataError
from plsc_mae.names import gbk_reading
from plsc_mae.wording import counted, span

_NAMES_SHOWN = 5
_IMAGENET_CLASSES = 1000  # from tench (n01440764) to toilet tissue (n15075141)

logger = logging.getLogger(__name__)


class LabeledImages(Protocol):
    """Images with class numbers; `ImageList` and `CifarImages` implement it."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class numbers [n]."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their numbers."""

    @property
    def source(self) -> str:
        """Folder or file of the images, for messages."""

    @property
    def numbered(self) -> bool:
        """True if the classes are numbers without names, such as the labels of a list file."""

    @property
    def numbers_are_named(self) -> bool:
        """True if names were given to classes that were only numbers; a reference may still list the numbers."""


class Reference(NamedTuple):
    """Classes that other classes are matched with."""

    names: Sequence[str]  # class names in the order of their numbers
    source: str  # file or folder they belong to, for messages
    remedy: str  # advice to the user whose classes do not match, for messages


class ClassMatch(NamedTuple):
    """Labels of a data set in the numbering of a reference."""

    labels: npt.NDArray[np.int64]  # the reference's class number [n] of every image
    note: str  # sentence for the log; "" if the images have all classes of the reference under their names, in order


class _Found(NamedTuple):
    numbers: list[int]
    rule: str


def match_images(images: LabeledImages, reference: Reference) -> ClassMatch:
    """Convert the labels of images to the class numbers of a reference; classes without images need no match.

    Raises:
        DataError: the classes of the images cannot be matched with those of the reference.
    """
    present = np.unique(images.labels)
    names = [images.classes[number] for number in present]
    found = _match(names, reference.names, numbered=images.numbered)
    if found is None and images.numbers_are_named:
        found = _match_numbers(present.tolist(), reference.names)
    if found is None:
        raise DataError(_refusal(names, images, reference))
    renumbered = np.full(len(images.classes), -1, np.int64)
    renumbered[present] = found.numbers
    return ClassMatch(renumbered[images.labels], _note(names, found, images.source, reference))


class ClassOrder:
    """Order of a run's classes in the outputs of its classifier, which may differ from the order in the data.

    A new run numbers its outputs as the data does. A resumed run keeps the outputs of its checkpoint and matches the
    classes of the data with them by name.

    Args:
        names: class names in the order of the labels of the data; empty if they are unknown.
        numbered: whether the classes are numbers without names, such as the labels of a list file.
        numbers_are_named: whether the names belong to such numbers; an older checkpoint may have the numbers only.

    Attributes:
        names: class names in the order of the outputs.
    """

    def __init__(self, names: Sequence[str] = (), *, numbered: bool = False, numbers_are_named: bool = False) -> None:
        self.names = self._data_names = tuple(names)
        self._numbered, self._numbers_are_named = numbered, numbers_are_named
        self._outputs: Tensor | None = None  # output of every label; None if output and label are equal

    def outputs_of(self, labels: Tensor) -> Tensor:
        """Return the output numbers [B] of labels [B]; for labels [B, K], return the columns in output order."""
        if self._outputs is None:
            return labels
        if labels.ndim == 2:
            return paddle.index_select(labels, paddle.argsort(self._outputs), axis=1)
        return paddle.gather(self._outputs, labels)

    def find_in(self, stored: Sequence[str]) -> list[int] | None:
        """Return, for every class of the data, its number in `stored`; None if `stored` has other classes."""
        found = self._match(stored)
        return None if found is None else found.numbers

    def restore(self, stored: Sequence[str] | None, path: str | Path, remedy: str) -> None:
        """Adopt the class order stored in a checkpoint; if the data has no class names, nothing is checked.

        Args:
            stored: class names in the checkpoint; None or empty keeps the order of the data.
            path: the checkpoint, for messages.
            remedy: advice to the user whose classes changed, for messages.

        Raises:
            CheckpointError: the data has other classes than the checkpoint.
        """
        if not stored:
            logger.info("%s stores no class names: its outputs are taken in the order of the classes of the data", path)
            return
        if tuple(stored) == self.names:
            return
        if not self._data_names:
            self.names = tuple(stored)
            return
        found = self._match(stored)
        if found is None:
            raise CheckpointError(
                f"{path} was trained on other classes than those of the data: {_difference(self._data_names, stored)}; "
                f"{remedy}"
            )
        self.names, self._outputs = tuple(stored), paddle.to_tensor(found.numbers, dtype="int64")
        logger.info("%s", _note(self._data_names, found, "the data", Reference(stored, str(path), "")))

    def _match(self, stored: Sequence[str]) -> _Found | None:
        if len(stored) != len(self._data_names):
            return None
        found = _match(self._data_names, stored, numbered=self._numbered)
        if found is None and self._numbers_are_named:
            found = _match_numbers(range(len(stored)), stored)
        return found


def class_warnings(images: LabeledImages) -> Iterator[str]:
    """Yield a sentence for each property of the classes of training images that is probably a mistake."""
    present = np.unique(images.labels)
    if len(present) == 1:
        yield (
            f"{images.source} has images of one class only, '{images.classes[present[0]]}': accuracy is 100 % and the "
            "loss goes to 0 whatever the network learns; expected two or more classes, so check that this is the "
            "folder of the class folders and not its parent"
        )
    yield from label_warnings(images)
    readings = [(name, reading) for name in images.classes if (reading := gbk_reading(name))]
    if readings:
        yield (
            f"{images.source} has class names that are not UTF-8, such as {readings[0][0]}, which is "
            f"'{readings[0][1]}' in GBK: results and pictures show the bytes; convmv renames folders to UTF-8"
        )
    by_letters: dict[str, list[str]] = {}
    for name in images.classes:
        by_letters.setdefault(_letters(name), []).append(name)
    for alike in by_letters.values():
        if len(alike) > 1:
            yield (
                f"{images.source} has classes whose names differ only in case, blanks or Unicode form: "
                f"{listed(alike)}; they are trained as different classes, so merge their folders if they are one"
            )


def log_class_warnings(images: LabeledImages) -> None:
    """Log the sentences of `class_warnings` as warnings."""
    for sentence in class_warnings(images):
        logger.warning("%s", sentence)


def label_warnings(images: LabeledImages) -> Iterator[str]:
    """Yield a sentence if labels without names seem to start at 1."""
    if images.numbered and images.labels.min() == 1:
        yield (
            f"{images.source} has no label 0, only {span(1, images.labels.max())}; the first class is "
            "0, so subtract 1 from every label if yours start at 1"
        )


def sorted_as_text(names: Sequence[str]) -> str | None:
    """Return the first name that is out of numeric order; None if all are in order, or if a name is not a number."""
    values = [_value(name) for name in names]
    if not names or any(value is None for value in values):
        return None
    by_value = sorted(names, key=int)
    return next((name for name, other in zip(names, by_value, strict=True) if name != other), None)


def _match(names: Sequence[str], known: Sequence[str], *, numbered: bool) -> _Found | None:
    """Return the index in `known` of each of `names`, and the rule that matched them; None if no rule matches all."""
    rules: tuple[tuple[str, Callable[[str], Hashable]], ...] = (
        ("", str),
        ("without surrounding blanks and in composed Unicode", _composed),
        ("by value", _value_or_name),
        ("with names that are not UTF-8 read as GBK", _gbk_or_name),
    )
    for rule, key in rules:
        numbers = _match_by(key, names, known)
        if numbers is not None:
            return _Found(numbers, rule)
    labels = [int(name) for name in names] if numbered else []
    if labels and max(labels) < len(known) and all(_value(name) in (None, i) for i, name in enumerate(known)):
        return _Found(labels, "as class numbers")
    if _is_imagenet(names, known):
        return _Found(list(range(len(names))), "in the order of ImageNet-1k")
    return None


def _match_numbers(numbers: Sequence[int], known: Sequence[str]) -> _Found | None:
    """Match class numbers with `known` if its names are 0, 1, 2, ... and include all of them; else return None."""
    are_numbers = all(_value(name) == i for i, name in enumerate(known))
    return _Found(list(numbers), "as class numbers") if are_numbers and max(numbers) < len(known) else None


def _is_imagenet(names: Sequence[str], known: Sequence[str]) -> bool:
    """Return True if `names` seem to be the synsets of ImageNet-1k and `known` its classes in words, in order."""
    if not len(names) == len(known) == _IMAGENET_CLASSES or "tench" not in known[0] or "toilet" not in known[-1]:
        return False
    return list(names) == sorted(names) and all(re.fullmatch(r"n\d{8}", name) for name in names)


def _match_by(key: Callable[[str], Hashable], names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    wanted, keys = [key(name) for name in names], [key(name) for name in known]
    if len(set(wanted)) < len(wanted):
        return None
    counts, numbers = Counter(keys), {name: number for number, name in enumerate(keys)}
    return [numbers[name] for name in wanted] if all(counts[name] == 1 for name in wanted) else None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _gbk_or_name(name: str) -> str:
    return _composed(gbk_reading(name) or name)


def _letters(name: str) -> str:
    return _composed(name).casefold()


def _value(name: str) -> int | None:
    # Python refuses to convert thousands of digits.
    return int(name) if re.fullmatch(r"\s*[0-9]{1,1000}\s*", name) else None


def _value_or_name(name: str) -> int | str:
    value = _value(name)
    return _composed(name) if value is None else value


def _note(names: Sequence[str], found: _Found, source: str, reference: Reference) -> str:
    """Return the `ClassMatch.note` of a match, which may be ""."""
    known, numbers = reference.names, found.numbers
    parts = []
    if found.rule:
        example = f"'{names[-1]}' is '{known[numbers[-1]]}'"
        parts.append(f"the classes of {source} are matched with those of {reference.source} {found.rule}: {example}")
    elif numbers != sorted(numbers):
        example = f"'{names[-1]}' is class {numbers[-1]}"
        parts.append(f"the classes of {source} are numbered by name as in {reference.source}: {example}")
    if len(numbers) < len(known):
        present = set(numbers)
        absent = [name for number, name in enumerate(known) if number not in present]
        parts.append(
            f"{source} has images of {len(numbers)} of the {len(known)} classes of {reference.source} and none of "
            f"{listed(absent)}; accuracies are over these images and all {len(known)} classes"
        )
    return "; ".join(parts)


def _refusal(names: Sequence[str], images: LabeledImages, reference: Reference) -> str:
    """Return the error message about `names`, classes of the images that cannot be matched with the reference."""
    known = reference.names
    twice = [name for name, number in Counter(known).items() if number > 1 and name in names]
    if twice:
        return (
            f"{reference.source} has several classes called {listed(twice)}, so the images of {images.source} cannot "
            f"be matched with them; {reference.remedy}"
        )
    if images.numbered and images.labels.min() == 1 and images.labels.max() == len(known):
        return (
            f"the labels of {images.source} are 1 to {len(known)}, so they seem to start at 1; expected 0 to "
            f"{len(known) - 1} for the {len(known)} classes of {reference.source}: subtract 1 from every label"
        )
    if images.numbered and images.labels.max() >= len(known):
        return (
            f"{images.source} has labels up to {images.labels.max()}; expected {span(0, len(known) - 1)} for the "
            f"{counted(len(known), 'class')} of {reference.source}; {reference.remedy}"
        )
    return (
        f"{images.source} has classes that {reference.source} does not have: {_unknown(names, known)}; expected only "
        f"{listed(known)}; {reference.remedy}"
    )


def _difference(names: Sequence[str], stored: Sequence[str]) -> str:
    """Return text that lists the classes that only the data has and those that only the checkpoint has."""
    parts = [f"{_unknown(names, stored)} in the data only"] if set(names) - set(stored) else []
    if left := [name for name in stored if name not in set(names)]:
        parts.append(f"{listed(left)} in the checkpoint only")
    return ", ".join(parts)


def _unknown(names: Sequence[str], known: Sequence[str]) -> str:
    """Return text that lists the names missing from `known` and points out the first that resembles a known name."""
    similar = {_letters(name): name for name in known}
    unknown = [name for name in names if name not in set(known)]
    alike = [f" ('{name}' resembles '{similar[_letters(name)]}')" for name in unknown if _letters(name) in similar]
    return listed(unknown) + "".join(alike[:1])


def listed(names: Iterable[str]) -> str:
    """Return text with up to five names in quotes and, if there are more, the number of the others."""
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_NAMES_SHOWN]) + more
