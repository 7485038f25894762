"""Computation of the features of a data set with an encoder, in batches and any number of processes.

Notation: n images, B batch, L patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor
from tqdm import tqdm

from plsc_mae import console
from plsc_mae.data.evaluation import UNREADABLE, EvaluationDataset
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.loader import KeyedDataset, build_loader
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.transfer import INDEX
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.data.unreadable import none_can_be_read
from plsc_mae.errors import CheckpointError, ConfigError, DataError, flag
from plsc_mae.models.vit import NO_CLASS_TOKEN, VisionTransformer
from plsc_mae.parallel.world import World

CHECKED_BYTES = 1 << 26  # of features that `require_finite_features` checks at a time

TokenKind = Literal["cls", "mean", "patch"]
Arrays = dict[str, npt.NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]
Encode = Callable[[Tensor], dict[str, Tensor]]  # pixels [B, H, W, C] -> {name: [B, ...]}


@dataclass(frozen=True)
class TokenFeatures:
    """Extractor of token features: {"layer12/cls": [B, D], "layer12/patch": [B, L, D], ...}.

    Raises:
        ConfigError: `kinds` has "cls" and the encoder has no class token.
    """

    encoder: VisionTransformer  # the network, in evaluation mode
    normalize: Normalize  # image normalization with which the encoder was trained
    layers: Sequence[int]  # blocks whose output tokens are used, numbered from 1; 0 is the input of the first block
    # "cls" for the class token, "mean" for the mean of the patch tokens, "patch" for all patch tokens
    kinds: Sequence[TokenKind]
    norm: bool  # True applies the encoder's final norm; False does not, as in MAE-priv's k-NN evaluation

    def __post_init__(self) -> None:
        if "cls" in self.kinds and self.encoder.cls_token is None:
            raise ConfigError(NO_CLASS_TOKEN)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features of pixels [B, H, W, C] from 0 to 255."""
        states = self.encoder.forward_layers(self.normalize(images))
        features = {}
        for layer in self.layers:
            tokens = self.encoder.norm(states[layer]) if self.norm else states[layer]
            for kind in self.kinds:
                features[f"layer{layer}/{kind}"] = select_tokens(tokens, kind, self.encoder.num_prefix_tokens)
        return features


def select_tokens(tokens: Tensor, kind: TokenKind, num_prefix_tokens: int = 1) -> Tensor:
    """Return the class token [B, D], the mean of the patch tokens [B, D], or the patch tokens [B, L, D].

    Args:
        tokens: [B, T + L, D], where the first T = `num_prefix_tokens` tokens are not patches.
        kind: "cls", "mean" or "patch".
        num_prefix_tokens: number of class and register tokens.
    """
    if kind == "cls":
        return tokens[:, 0]
    patches = tokens[:, num_prefix_tokens:]
    return patches.mean(axis=1) if kind == "mean" else patches


def pixel_features(images: Tensor) -> dict[str, Tensor]:
    """Return the pixels in [0, 1] as {"pixels": [B, H*W*C]}, a baseline for learned features."""
    return {"pixels": images.flatten(1).astype("float32") / 255}


class Rows(Protocol):
    """Destination of the features of a data set, which the main process fills batch by batch."""

    images: int  # number of images that are done, including unreadable ones
    unreadable: list[int]  # indices of the unreadable images

    def open(self, shapes: Shapes, count: int) -> None:
        """Prepare for at most `count` rows; `shapes` has the shape of a row of each array by name."""
        ...

    def add(self, arrays: Arrays, images: int, unreadable: Sequence[int]) -> None:
        """Append the rows of the next `images` images; those with an index in `unreadable` have no row in `arrays`."""
        ...

    def finish(self) -> Arrays:
        """Return the arrays of all rows by name."""
        ...


class RowsInMemory:
    """Features in memory.

    Args:
        dtype: type of the stored features.
    """

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype, self.images = np.dtype(dtype), 0
        self.unreadable: list[int] = []
        self._arrays: Arrays = {}
        self._rows = 0

    def open(self, shapes: Shapes, count: int) -> None:
        """Reserve memory for `count` rows."""
        self._arrays = {name: np.empty((count, *shape), self.dtype) for name, shape in shapes.items()}

    def add(self, arrays: Arrays, images: int, unreadable: Sequence[int]) -> None:
        """Append rows, see `Rows.add`.

        Raises:
            DataError: a feature exceeds the range of the type.
        """
        start, self._rows = self._rows, self._rows + images - len(unreadable)
        for name, array in arrays.items():
            self._arrays[name][start : self._rows] = convert(array, self.dtype)
        self.images += images
        self.unreadable += unreadable

    def finish(self) -> Arrays:
        """Return the arrays of all rows."""
        return {name: array[: self._rows] for name, array in self._arrays.items()}


def convert(features: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert features to another type; NaN and infinite values are kept.

    Raises:
        DataError: a finite value exceeds the range of the type.
    """
    with np.errstate(over="ignore"):
        converted = features.astype(dtype, copy=False)
    if converted.dtype != features.dtype and np.count_nonzero(np.isinf(converted)) > np.count_nonzero(
        np.isinf(features)
    ):
        raise DataError(
            f"features up to {np.abs(features[np.isfinite(features)]).max():.3g} exceed the range of {dtype}, which "
            f"ends at {np.finfo(dtype).max:.3g}; store them as {flag('dtype')} float32"
        )
    return converted


class Encoded(NamedTuple):
    """Results of the readable images of a data set."""

    arrays: Arrays  # {name: [n, ...]} of the n readable images in order; empty outside the main process
    kept: npt.NDArray[np.int64]  # indices [n] of these images in the data set
    unreadable: list[int]  # indices of the images that could not be read


def encode_images(
    encode: Encode,
    images: ImageList,
    transform: Transform,
    world: World,
    *,
    bad_image: Literal["error", "skip"] = "skip",
    pixel_format: PixelFormat = RGB,
    **encoding: Any,
) -> Encoded:
    """Compute the features of every readable image of a list once; all processes must call.

    Args:
        encode: returns the features of a batch.
        images: the list.
        transform: deterministic transform that returns "image", pixels [H, W, C].
        world: the processes that share the work.
        bad_image: "error" raises DataError for an unreadable image; "skip" leaves it out.
        pixel_format: format of the pixels.
        encoding: further arguments of `encode_dataset`.
    """
    dataset = EvaluationDataset(images, transform, bad_image=bad_image, pixel_format=pixel_format)
    return encode_dataset(encode, dataset, world, title=images.root, **encoding)


@paddle.no_grad()
def encode_dataset(
    encode: Encode,
    dataset: KeyedDataset,
    world: World,
    *,
    batch_size: int,
    num_workers: int,
    title: str,
    rows: Rows | None = None,
    report: bool = True,
    on_batch: Callable[[], None] | None = None,
) -> Encoded:
    """Compute the features of every sample once, with the random numbers of epoch 0; all processes must call.

    Args:
        encode: returns the features of a batch of "image", pixels [B, H, W, C].
        dataset: the samples; those that `EvaluationDataset` marks as unreadable are left out.
        world: the processes that share the work.
        batch_size: images per batch and process.
        num_workers: data workers per process.
        title: title of the progress bar.
        rows: destination in the main process, which may hold the first batches already; None is float32 in memory.
        report: whether to log the unreadable files; False if an earlier call has done so.
        on_batch: called by all processes after every batch; an exception from it ends the encoding.

    Raises:
        DataError: no image can be read, `dataset` refuses an unreadable one, or `rows` cannot store the features.
        TypeError: `dataset` marks samples as unreadable and is not an `EvaluationDataset`.
    """
    count = len(dataset)
    sampler = EpochBatchSampler(count, batch_size, world.rank, world.size, seed=0, shuffle=False, drop_last=False)
    rows = RowsInMemory() if rows is None else rows
    shapes = _shapes(encode, dataset)
    if world.is_main:
        rows.open(shapes, count)
    done, marks = _progress(rows, count, world)
    first_batch = done // sampler.global_batch_size
    sampler.set_position(0, min(first_batch, len(sampler)))
    loader = build_loader(dataset, sampler, num_workers=num_workers)
    batches = iter(loader)
    starts = range(done, count, sampler.global_batch_size)
    disable = not (world.is_main and console.shows_bars())
    for start in tqdm(starts, title, first_batch + len(starts), initial=first_batch, disable=disable):
        size = min(sampler.global_batch_size, count - start)
        batch = next(batches, None)
        encoded = {} if batch is None else encode(batch["image"])
        loader.transfer_next()
        share = np.array_split(np.arange(size), world.size)[world.rank]
        arrays = {name: _gather(encoded.get(name), share, (size, *shape), world) for name, shape in shapes.items()}
        marked = _gather(None if batch is None else batch.get(UNREADABLE), share, (size,), world)
        marks[start : start + size] = marked
        if world.is_main:
            readable = {name: array[marked == 0] for name, array in arrays.items()}
            rows.add(readable, size, (start + np.flatnonzero(marked)).tolist())
        if on_batch is not None:
            on_batch()
    kept, unreadable = np.flatnonzero(marks == 0), np.flatnonzero(marks).tolist()
    if unreadable:
        _report_unreadable(dataset, unreadable, report=report and world.is_main)
    return Encoded(rows.finish() if world.is_main else {}, kept, unreadable)


def _shapes(encode: Encode, dataset: KeyedDataset) -> dict[str, tuple[int, ...]]:
    """Encode the first image and return the shapes of its features by name, which a process without batches needs."""
    first = encode(paddle.to_tensor(dataset[SampleKey(0, 0)]["image"][None]))
    return {name: tuple(x.shape[1:]) for name, x in first.items()}


def _progress(rows: Rows, count: int, world: World) -> tuple[int, npt.NDArray[np.float32]]:
    """Return the number of images that `rows` already has, and marks [count], 1 for unreadable images.

    All processes must call.
    """
    done, marks = np.zeros(1, np.int64), np.zeros(count, np.float32)
    if world.is_main:
        done[0], marks[rows.unreadable] = rows.images, 1
    if world.size > 1:
        done, marks = (world.sum(paddle.to_tensor(values)).numpy() for values in (done, marks))
    return int(done[0]), marks


def _gather(
    values: Tensor | npt.NDArray[Any] | None, rows: npt.NDArray[np.int64], shape: tuple[int, ...], world: World
) -> npt.NDArray[np.float32]:
    """Return a float32 array of `shape`, in which each process has filled its `rows` with its `values`.

    If the `values` of a process are None, its rows are 0. All processes must call.
    """
    part = np.zeros(shape, np.float32)
    if values is not None:
        part[rows] = values.numpy() if isinstance(values, Tensor) else values
    return world.sum(paddle.to_tensor(part)).numpy() if world.size > 1 else part


def _report_unreadable(dataset: KeyedDataset, unreadable: Sequence[int], *, report: bool) -> None:
    """Log the unreadable files if `report` is true; raise DataError if no file can be read."""
    if not isinstance(dataset, EvaluationDataset):
        raise TypeError(f"{type(dataset).__name__} marks samples as unreadable and cannot name them")
    if len(unreadable) == len(dataset):
        raise none_can_be_read(dataset.reason(unreadable[0]), len(unreadable))
    if report:
        dataset.log_unreadable(unreadable)


def require_finite_features(arrays: Mapping[str, npt.NDArray[np.float32]], origin: str) -> None:
    """Check that the results of a network are finite for every image.

    Args:
        arrays: results by name, [n, ...] for n images.
        origin: name of the network's weights for the message.

    Raises:
        CheckpointError: a result is NaN or infinite.
    """
    for name, array in arrays.items():
        bad = _rows_not_finite(array)
        if bad:
            raise CheckpointError(
                f"{origin} gives {name} that are NaN or infinite for {len(bad)} of {len(array)} images (the first is "
                f"number {bad[0]}): its weights are too large for float32; take an earlier checkpoint of the run"
            )


def _rows_not_finite(array: npt.NDArray[Any]) -> list[int]:
    step = max(1, CHECKED_BYTES // max(1, array[:1].nbytes))
    found: list[int] = []
    for start in range(0, len(array), step):
        block = array[start : start + step]
        found += (start + np.flatnonzero(~np.isfinite(block).reshape(len(block), -1).all(axis=1))).tolist()
    return found


class FeatureDataset:
    """Data set of precomputed features, for probes that train on cached features.

    A sample is {"features": [D], "label", `INDEX`, "skipped"} with "skipped" 0; it is the same in every epoch.

    Args:
        features: float32 [n, D].
        labels: class numbers int64 [n], or labels float32 [n, K].
    """

    def __init__(self, features: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: SampleKey) -> Sample:
        numbers = {name: np.asarray(number, np.int64) for name, number in ((INDEX, key.index), ("skipped", 0))}
        return {"features": self.features[key.index], "label": np.asarray(self.labels[key.index]), **numbers}
