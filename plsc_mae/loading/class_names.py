"""Number and names of the classes of a trained classifier, and conversion of a data set's labels to its outputs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from plsc_mae.data.cifar import CifarImages
from plsc_mae.data.classes import ClassOrder, LabeledImages, Reference, label_warnings, match_images, sorted_as_text
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.list_file import CLASSES_FILE, read_class_names
from plsc_mae.errors import CheckpointError, DataError, flag, remedies
from plsc_mae.names import escape_controls
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.dialects.base import tensor_of_rank
from plsc_mae.wording import counted, span

logger = logging.getLogger(__name__)

_BIASES = ("head.bias", "head.1.bias")  # of classifiers and of probes, in every dialect
_SWEEP = "head.linears."
_CHANGES_SHOWN = 3

AnyImages = TypeVar("AnyImages", ImageList, CifarImages)


class Head(NamedTuple):
    """Outputs of a trained classifier."""

    outputs: int  # number of outputs
    names: tuple[str, ...]  # names of the first outputs; empty if they are unknown
    source: str  # the checkpoint, for messages


def read_head(stored: Checkpoint, names_file: str = "") -> Head:
    """Return the number and the names of the outputs of the classifier in a file.

    Args:
        stored: the file, in the base naming of its dialect.
        names_file: text file with one class name per line, in place of the stored names; "" for the stored names.

    Raises:
        CheckpointError: the file does not hold a single, well-formed classifier.
        DataError: the file of names cannot be read, is not text, or does not have one name per output.
    """
    count = count_classes(stored)
    if count == 1:
        logger.warning("%s is a classifier of a single class, whose probability is 100 %% for every image", stored.path)
    known = stored_names(stored, count)
    if names_file:
        given = _read_names(names_file, count)
        _warn_of_other_names(given, known, names_file, str(stored.path))
        known = given
    return Head(count, known, str(stored.path))


def _warn_of_other_names(given: Sequence[str], known: Sequence[str], names_file: str, path: str) -> None:
    """Warn if --classes changes the stored names, unless these are only the indices of the outputs."""
    changed = [i for i, (name, old) in enumerate(zip(given, known, strict=False)) if name != old]
    if not changed or list(known) == [str(i) for i in range(len(known))]:
        return
    same = sorted(given) == sorted(known)
    examples = [f"output {i} is '{given[i]}' instead of '{known[i]}'" for i in changed[:_CHANGES_SHOWN]]
    more = f" and {len(changed) - _CHANGES_SHOWN} more" if len(changed) > _CHANGES_SHOWN else ""
    logger.warning(
        "--classes %s has %s; using those of --classes%s",
        names_file,
        f"the names stored in {path} in a different order" if same else f"other names than those stored in {path}",
        f": {', '.join(examples)}{more}; leave out --classes to keep the stored {'order' if same else 'names'}",
    )


def count_classes(stored: Checkpoint) -> int:
    """Return the number of classes, which is the length of the head's bias.

    Raises:
        CheckpointError: the file does not hold a single, well-formed classifier.
    """
    found = (tensor_of_rank(stored.model, name, 1, str(stored.path)) for name in _BIASES if name in stored.model)
    head = next(found, None)
    if head is not None:
        return len(head)
    if any(name.startswith(_SWEEP) for name in stored.model):
        raise CheckpointError(
            f"{stored.path} holds the classifiers of {flag('lr_sweep')}, one for each rate; train the best rate alone"
        )
    raise CheckpointError(
        f"{stored.path} holds no classifier: it has no head; expected a checkpoint of `plsc-mae finetune` or "
        "`plsc-mae linprobe`, or a fine-tuned or probed file of facebookresearch/mae, CAE, PLSC, MAE-priv or "
        "MAE-pytorch; if the classifier is another part of the file, choose it with --model_key or --model_prefix"
    )


def stored_names(stored: Checkpoint, count: int) -> tuple[str, ...]:
    """Return the class names that a checkpoint stores, in the order of its outputs.

    The result is empty if the checkpoint stores no names, or more names than its `count` outputs. A classifier trained
    with a larger --nb_classes has names for its first outputs only.
    """
    names = stored.meta.get("classes")
    if not isinstance(names, (list, tuple)):
        return ()
    if len(names) > count:
        remedy = remedies("give the names of the outputs with --classes FILE")
        logger.warning(
            "%s stores %d class names for %d outputs, so the names are not used%s",
            *(stored.path, len(names), count, f"; {remedy}" if remedy else ""),
        )
        return ()
    return tuple(_printable(str(name)) for name in names)


def _printable(name: str) -> str:
    """Return a stored name without control characters; names of folders were escaped before they were stored."""
    return escape_controls(name, one_line=True).encode("utf-8", "backslashreplace").decode()


def numbered_names(head: Head) -> tuple[str, ...]:
    """Return a name for every output; an output without a name is named by its index."""
    return (*head.names, *(str(number) for number in range(len(head.names), head.outputs)))


def number_by_outputs(images: AnyImages, head: Head) -> AnyImages:
    """Return the images with output indices of a trained classifier as labels, matched by class name.

    If the classifier has no names, the labels of a list file are output indices, and class folders are numbered in
    the order of their names, which requires one folder per output.

    Raises:
        DataError: images have a class that the classifier does not know, or their outputs cannot be determined.
    """
    for sentence in label_warnings(images):
        logger.warning("%s", sentence)
    if head.names:
        remedy = (
            "rename or remove them in the data, or give the names of the classifier's outputs with --classes FILE, "
            "one per line"
        )
        labels, note = match_images(images, Reference(head.names, head.source, remedy))
        if note:
            logger.info("%s", note)
        return dataclasses.replace(images, labels=labels, classes=head.names)
    _check_unnamed(images, head)
    return images


def head_to_keep(stored: Checkpoint, count: int, classes: ClassOrder, names_file: str = "") -> list[int] | None:
    """Return the index of the stored output for each output of a run's classifier; None if the run needs a new head.

    A new head is needed if the file has no classifier, or one with another number of outputs or other classes. If the
    class names of the file or of the run are unknown, an equal number of outputs is enough, with a warning.

    Args:
        stored: the file, in the base naming of its dialect.
        count: number of outputs of the run's classifier.
        classes: classes of the run.
        names_file: see `read_head`.

    Raises:
        CheckpointError: `names_file` is given, but `stored` has no head; or the head is malformed.
        DataError: see `read_head`.
    """
    if "head.bias" not in stored.model:
        if names_file:
            raise CheckpointError(
                f"{flag('classes')} {names_file} names the outputs of a classifier, but {stored.path} has no head; "
                f"leave out {flag('classes')}: a new head is named after the classes of the data, for a list file by "
                f"{CLASSES_FILE} beside it"
            )
        return None
    head = read_head(stored, names_file)
    known = head.names
    if head.outputs != count:
        logger.info(
            "%s has %s, this run %d: initializing a new head", stored.path, counted(head.outputs, "class"), count
        )
        return None
    if not known or not classes.names:
        logger.warning(
            "the head of %s is kept because it has the %d outputs of this run, but the file stores no class names: its "
            "classes must be those of the data in the same order",
            *(stored.path, count),
        )
        return list(range(count))
    order = classes.find_in(known)
    if order is None:
        logger.info("the classes of %s differ from those of this run: initializing a new head", stored.path)
        return None
    if order != list(range(len(order))):
        logger.info("the outputs of %s are reordered by class name to match this run", stored.path)
    return [*order, *range(len(order), count)]


def _check_unnamed(images: LabeledImages, head: Head) -> None:
    """Check that the labels of images can be outputs of a classifier without names; log how classes are numbered."""
    count, source = len(images.classes), head.source
    remedy = "give the names of its outputs with --classes FILE, one per line, or a list file with 'path label' lines"
    if images.numbered:
        if images.labels.max() >= head.outputs:
            start = ": they seem to start at 1, so subtract 1 from every label" if images.labels.min() == 1 else ""
            raise DataError(
                f"{images.source} has the labels {span(images.labels.min(), images.labels.max())}, but {source} has "
                f"{counted(head.outputs, 'output')}, for labels {span(0, head.outputs - 1)}"
                f"{start or '; correct the list'}"
            )
        return
    if count != head.outputs:
        raise DataError(
            f"{images.source} has {counted(count, 'class')} and {source} has {counted(head.outputs, 'output')} "
            f"without names, so the output of each class is unknown; {remedy}"
        )
    wrong = sorted_as_text(images.classes)
    if wrong is not None:
        logger.warning(
            "the folders of %s are numbers but are sorted as text, so '%s' is output %d, and %s stores no class names "
            "to compare with; if its outputs are in the order of the numbers, %s",
            *(images.source, wrong, images.classes.index(wrong), source, remedy),
        )
    else:
        logger.info(
            "%s stores no class names: its outputs are taken in the order of the classes of %s", source, images.source
        )


def _read_names(path: str, count: int) -> tuple[str, ...]:
    """Read `count` class names with `read_class_names`; another number of names is a DataError."""
    names = read_class_names(path)
    if len(names) != count:
        raise DataError(
            f"--classes {path} has {counted(len(names), 'name')}; expected {count}, one per line for each class of the "
            "classifier"
        )
    return names
