"""Published evaluation sets of ImageNet-1k: their images, with the outputs of a trained classifier for their classes.

Every set has a rule for its folders and for the classes that a prediction may take. Classes are matched by WordNet id
or by name, so a classifier with class names may have them in any order.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc_mae.analysis.corruption import ALEXNET_ERRORS, EXTRA_CORRUPTIONS, SEVERITIES
from plsc_mae.data.cifar import CifarImages
from plsc_mae.data.classes import ClassOrder, listed
from plsc_mae.data.folder_walk import LeftOut, scan
from plsc_mae.data.imagefolder import ImageList, find_images, require_classes, subset
from plsc_mae.data.imagenet import find_synset, synsets, validation_number
from plsc_mae.data.listing import list_images
from plsc_mae.errors import DataError
from plsc_mae.loading.class_names import Head

REAL_LABELS = "real.json"

logger = logging.getLogger(__name__)


class EvaluationPart(NamedTuple):
    """Labeled images that are evaluated together; `images.classes` are the C classes that a prediction may take."""

    name: str  # name of the part, such as "fog/3"; empty if the set has a single part
    images: ImageList | CifarImages  # the images; labels are indices into the C classes
    # index [C] of the classifier's output for each class; None for all outputs in their order
    outputs: npt.NDArray[np.int64] | None = None
    # bool [n, C], True for every correct class of an image; None if only its label is correct
    accepted: npt.NDArray[np.bool_] | None = None


class Source(NamedTuple):
    """Location of an evaluation set and the classifier to evaluate."""

    path: str  # folder or list file
    flag: str  # option that `path` comes from, for messages
    head: Head  # outputs of the classifier
    real_labels: str = ""  # JSON file of ReaL's labels; "" for real.json in `path`
    given: ImageList | None = None  # images in place of those of `path`; None to list them

    def images(self) -> ImageList:
        """Return `given`, or else list the images.

        Raises:
            DataError: the images cannot be listed, or have no classes.
            ConfigError: see `find_images`.
        """
        images = find_images(self.path, "val", flag=self.flag) if self.given is None else self.given
        require_classes(images, "evaluation")
        return images


def find_parts(name: str, source: Source) -> Iterator[EvaluationPart]:
    """Yield the parts of the evaluation set `name`, a key of RULES.

    Images are listed when iteration reaches their part.

    Raises:
        DataError: images, labels or folders are missing or are not those of the published set, or the outputs of the
            classifier for its classes are unknown.
        ConfigError: see `find_images`.
    """
    return RULES[name](source)


# ---------------------------------------------------------------------------------------------------- rules


def _subset_rule(letter: str) -> Callable[[Source], Iterator[EvaluationPart]]:
    """Return the rule of a set whose folders are WordNet ids of ImageNet-1k or of its subset `letter`."""

    def rule(source: Source) -> Iterator[EvaluationPart]:
        classes = synsets(letter)
        outputs = _outputs(source.head, classes)
        yield EvaluationPart("", _labeled(source.images(), classes), outputs)

    return rule


def _numbered_rule(source: Source) -> Iterator[EvaluationPart]:
    """Yield ImageNet-V2, whose folders are class numbers (modestyachts/ImageNetV2)."""
    outputs = _outputs(source.head, synsets())
    yield EvaluationPart("", _labeled(source.images(), synsets(), numbers=True), outputs)


def _real_rule(source: Source) -> Iterator[EvaluationPart]:
    """Yield the validation images with their reassessed labels (google-research/reassessed-imagenet).

    The labels are a JSON list with a list of class numbers for every validation image, in the order of the numbers in
    their file names. Images without a label are left out, as in the original.
    """
    outputs = _outputs(source.head, synsets())
    file = Path(source.real_labels or Path(source.path) / REAL_LABELS)
    if source.given is not None:
        raise DataError(f"{source.given.source} is in memory; ReaL needs the file names of a folder")
    answers = _read_answers(file)
    images = list_images(source.path, "val", flag=source.flag, labeled=False)
    numbers = [_validation_number(images.path(i), answers, file) for i in range(len(images))]
    rows = np.array([i for i, number in enumerate(numbers) if answers[number - 1]], np.int64)
    if not len(rows):
        raise DataError(f"{file} has no label for any image of {images.source}; expected the labels of these images")
    accepted = np.zeros((len(rows), len(outputs)), np.bool_)
    for row, index in enumerate(rows):
        accepted[row, answers[numbers[index] - 1]] = True
    labeled = sum(map(bool, answers))
    level = logging.INFO if len(rows) == labeled else logging.WARNING
    logger.log(level, "%s has %d of the %d images with labels in %s", images.source, len(rows), labeled, file)
    chosen = dataclasses.replace(subset(images, rows), labels=accepted.argmax(axis=1), classes=synsets())
    yield EvaluationPart("", chosen, outputs, accepted)


def _corrupted_rule(source: Source) -> Iterator[EvaluationPart]:
    """Yield a part for each CORRUPTION/SEVERITY of ImageNet-C; further folders may group the corruptions."""
    outputs = _outputs(source.head, synsets())
    for name, folder in sorted(_corruption_folders(source).items()):
        for severity in SEVERITIES:
            images = find_images(folder / str(severity), "val", flag=source.flag)
            require_classes(images, "evaluation")
            yield EvaluationPart(f"{name}/{severity}", _labeled(images, synsets()), outputs)


def _shared_rule(source: Source) -> Iterator[EvaluationPart]:
    """Yield the images of the classes that set and classifier share; predictions may take these classes only."""
    images, head = source.images(), source.head
    names = _output_names(head) or (tuple(map(str, range(head.outputs))) if images.numbered else ())
    known = _numbers_by_key(names)
    found = {label: known.get(_key(images.classes[label])) for label in np.unique(images.labels).tolist()}
    shared = {label: output for label, output in found.items() if output is not None}
    if not shared:
        raise DataError(
            f"{images.source} and {head.source} have no class in common: {listed(images.classes)} against "
            f"{listed(names) or 'outputs without names'}; give the names of the outputs with --classes FILE"
        )
    outputs = np.unique(list(shared.values()))
    numbers = np.full(len(images.classes), -1, np.int64)
    numbers[list(shared)] = np.searchsorted(outputs, list(shared.values()))
    rows = np.flatnonzero(numbers[images.labels] >= 0)
    chosen = subset(images, rows)
    logger.warning(
        "--eval_set shared: %d of the %d classes of %s are among the %d of %s; accuracies are over these classes, and "
        "%d images of other classes are left out",
        *(len(shared), len(found), images.source, head.outputs, head.source, len(images) - len(rows)),
    )
    classes = tuple(names[output] for output in outputs)
    yield EvaluationPart("", dataclasses.replace(chosen, labels=numbers[chosen.labels], classes=classes), outputs)


RULES: Mapping[str, Callable[[Source], Iterator[EvaluationPart]]] = {
    "imagenet-a": _subset_rule("a"),
    "imagenet-r": _subset_rule("r"),
    "imagenet-sketch": _subset_rule(""),
    "imagenet-v2": _numbered_rule,
    "imagenet-real": _real_rule,
    "imagenet-c": _corrupted_rule,
    "shared": _shared_rule,
}


# -------------------------------------------------------------------------------------------------- classes


def _labeled(images: ImageList, classes: Sequence[str], *, numbers: bool = False) -> ImageList:
    """Renumber the labels of images as indices into `classes`, the WordNet ids of a published set.

    Classes are matched by the WordNet ids in their names. If `numbers` is true, or the images have numbers as classes,
    the names may be class numbers of ImageNet-1k instead.
    """
    numbers = numbers or images.numbered
    place = {name: number for number, name in enumerate(classes)}
    present = np.unique(images.labels).tolist()
    found = [place.get(_synset(images.classes[label], numbers=numbers)) for label in present]
    unknown = [images.classes[label] for label, number in zip(present, found, strict=True) if number is None]
    if unknown:
        expected = f"class numbers from 0 to {len(synsets()) - 1}" if numbers else f"WordNet ids such as {classes[0]}"
        start = "; the numbers seem to start at 1" if unknown == ["1000"] else ""
        raise DataError(
            f"{images.source} has classes that do not belong to the {len(classes)} of this --eval_set: "
            f"{listed(unknown)}; expected {expected}{start}; choose another --eval_set, or correct the names"
        )
    absent = [name for number, name in enumerate(classes) if number not in set(found)]
    if absent:
        logger.warning(
            "%s has images of %d of the %d classes of this --eval_set and none of %s; accuracies are over its images "
            "and all %d classes, so they are not those of the published set",
            *(images.source, len(classes) - len(absent), len(classes), listed(absent), len(classes)),
        )
    renumbered = np.full(len(images.classes), -1, np.int64)
    renumbered[present] = np.array(found, np.int64)
    return dataclasses.replace(images, labels=renumbered[images.labels], classes=tuple(classes))


def _synset(name: str, *, numbers: bool) -> str:
    """Return the WordNet id in the name of a class or, if `numbers` is true, of a class number; "" without one."""
    if numbers and name.isdecimal() and int(name) < len(synsets()):
        return synsets()[int(name)]
    return find_synset(name) or ""


def _outputs(head: Head, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the output indices [C] of a classifier for WordNet ids; all classes must be known and unique."""
    names = _output_names(head)
    if not names:
        raise DataError(
            f"{head.source} has {head.outputs} outputs without names, so the outputs of ImageNet's classes are "
            "unknown; give their WordNet ids with --classes FILE, one per line"
        )
    known = _numbers_by_key(names)
    missing = [name for name in classes if name not in known]
    if missing:
        raise DataError(
            f"{head.source} lacks {len(missing)} of the {len(classes)} classes of this --eval_set: {listed(missing)}; "
            "its outputs need WordNet ids, from the training folders or --classes FILE; --eval_set shared evaluates "
            "the classes that set and classifier share"
        )
    if not head.names:
        logger.info("%s stores no class names: its outputs are taken in the order of ImageNet-1k", head.source)
    return np.array([known[name] for name in classes], np.int64)


def _output_names(head: Head) -> Sequence[str]:
    """Return names for the outputs of a classifier: WordNet ids for those of ImageNet-1k, else stored names or ().

    A classifier of 1000 outputs without names, or with ImageNet's classes in words, has the order of ImageNet-1k.
    """
    ids = synsets()
    if not head.names:
        return ids if head.outputs == len(ids) else ()
    order = ClassOrder(ids).find_in(head.names)
    if order is None:
        return head.names
    by_output = dict(zip(order, ids, strict=True))
    return [by_output[number] for number in range(len(ids))]


def _numbers_by_key(names: Sequence[str]) -> dict[Hashable, int]:
    """Return the index of each class by its key, without classes whose key is not unique."""
    keys = [_key(name) for name in names]
    count = Counter(keys)
    return {key: number for number, key in enumerate(keys) if count[key] == 1}


def _key(name: str) -> Hashable:
    """Return the key that identifies a class: the WordNet id in its name, the value of a number, or the name itself."""
    composed = unicodedata.normalize("NFC", name).strip()
    return find_synset(composed) or (int(composed) if composed.isdecimal() else composed)


# ---------------------------------------------------------------------------------------------------- files


def _read_answers(file: Path) -> list[list[int]]:
    """Read ReaL's labels: a list of class numbers for every validation image."""
    try:
        answers: Any = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(
            f"cannot read the labels {file}: {error.strerror}; download real.json of "
            "google-research/reassessed-imagenet and name it with --real_labels"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"--real_labels {file} is not JSON ({error}); download it again") from None
    count = len(synsets())
    fits = isinstance(answers, list) and all(
        isinstance(each, list) and all(type(label) is int and 0 <= label < count for label in each) for each in answers
    )
    if not fits:
        raise DataError(
            f"--real_labels {file}: expected a list with a list of class numbers from 0 to {count - 1} for every "
            "validation image; download it again"
        )
    return list(answers)


def _validation_number(path: str, answers: Sequence[list[int]], file: Path) -> int:
    number = validation_number(path)
    if number is None:
        raise DataError(f"{path} has no validation number in its name; expected ILSVRC2012_val_00000001.JPEG and so on")
    if not 1 <= number <= len(answers):
        raise DataError(f"{path} is validation image {number}, but {file} has labels of 1 to {len(answers)}")
    return number


def _corruption_folders(source: Source) -> dict[str, Path]:
    """Return the folders of the corruptions by name; each has a folder for every severity."""
    known = {*ALEXNET_ERRORS, *EXTRA_CORRUPTIONS}
    root = Path(source.path)
    if source.given is not None or not root.is_dir():
        raise DataError(f"{source.flag} {root} is not a folder; expected CORRUPTION/SEVERITY/CLASS/*.JPEG in it")
    folders: dict[str, Path] = {}
    for name in scan(root, LeftOut())[0]:
        inner = scan(root / name, LeftOut())[0]
        grouped = [root / name / each for each in inner] if inner and {_plain(each) for each in inner} <= known else []
        folders |= {_plain(folder.name): folder for folder in grouped or [root / name]}
    unknown = sorted(folders.keys() - known)
    if unknown or not folders:
        raise DataError(
            f"{root} has the folders {listed(unknown) or 'of no corruption'}; expected those of ImageNet-C: "
            f"{', '.join(ALEXNET_ERRORS)}"
        )
    for folder in folders.values():
        lacking = [str(severity) for severity in SEVERITIES if not (folder / str(severity)).is_dir()]
        if lacking:
            raise DataError(f"{folder} lacks the severities {', '.join(lacking)}; expected the folders 1 to 5")
    if absent := [name for name in ALEXNET_ERRORS if name not in folders]:
        logger.warning("%s lacks the corruptions %s, so there is no mCE", root, ", ".join(absent))
    return folders


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
