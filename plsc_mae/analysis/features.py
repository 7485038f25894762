"""Computation of a data set's features with an encoder, in batches and any number of processes, and files of them.

Notation: n images, B batch, L patches, D width.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tqdm import tqdm

from plsc_mae import console
from plsc_mae.data.decode import Backend
from plsc_mae.data.evaluation import UNREADABLE, EvaluationDataset
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.loader import KeyedDataset, build_loader
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.pixels import RGB, PixelFormat
from plsc_mae.data.sampler import EpochBatchSampler
from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.transfer import INDEX
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.errors import CheckpointError, ConfigError, DataError
from plsc_mae.files import MARK, result_replacement
from plsc_mae.models.vit import NO_CLASS_TOKEN, VisionTransformer
from plsc_mae.parallel.world import World

TokenKind = Literal["cls", "mean", "patch"]
Arrays = dict[str, npt.NDArray[Any]]
Encode = Callable[[Tensor], dict[str, Tensor]]  # pixels [B, H, W, C] -> {name: [B, ...]}


@dataclass(frozen=True)
class TokenFeatures:
    """Extractor of token features: {"layer12/cls": [B, D], "layer12/patch": [B, L, D], ...}.

    Attributes:
        encoder: the network, in evaluation mode.
        normalize: normalization of the images that the encoder was trained with.
        layers: numbers of the blocks whose output tokens are used; 0 is the input of the first block.
        kinds: "cls" for the class token, "mean" for the mean of the patch tokens, "patch" for all patch tokens.
        norm: True applies the encoder's final norm; MAE-priv's k-NN evaluation does not.

    Raises:
        ConfigError: `kinds` has "cls" and the encoder has no class token.
    """

    encoder: VisionTransformer
    normalize: Normalize
    layers: Sequence[int]
    kinds: Sequence[TokenKind]
    norm: bool

    def __post_init__(self) -> None:
        if "cls" in self.kinds and self.encoder.cls_token is None:
            raise ConfigError(NO_CLASS_TOKEN)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features of uint8 images [B, H, W, 3]."""
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
        num_prefix_tokens: 1 with a class token, 0 without.
    """
    if kind == "cls":
        return tokens[:, 0]
    patches = tokens[:, num_prefix_tokens:]
    return patches.mean(axis=1) if kind == "mean" else patches


def pixel_features(images: Tensor) -> dict[str, Tensor]:
    """Return the pixels in [0, 1] as {"pixels": [B, H*W*C]}, a baseline for learned features."""
    return {"pixels": images.flatten(1).astype("float32") / 255}


class Encoded(NamedTuple):
    """Results of the readable images of a data set.

    Attributes:
        arrays: {name: float32 [n, ...]} of the n readable images in order; empty outside the main process.
        kept: their numbers [n].
        unreadable: numbers of the images that could not be read.
    """

    arrays: Arrays
    kept: npt.NDArray[np.int64]
    unreadable: list[int]


def encode_images(
    encode: Encode,
    images: ImageList,
    transform: Transform,
    world: World,
    *,
    batch_size: int,
    num_workers: int,
    backend: Backend = "pil",
    bad_image: Literal["error", "skip"] = "skip",
    pixel_format: PixelFormat = RGB,
    report: bool = True,
    on_batch: Callable[[], None] | None = None,
) -> Encoded:
    """Compute the features of every readable image of a list once, see `encode_dataset`; all processes must call.

    Args:
        encode: returns the features of a batch.
        images: the list.
        transform: deterministic transform that returns "image", pixels [H, W, C].
        world: the processes that share the work; each of them must call this function.
        batch_size: images per batch and process.
        num_workers: data workers per process.
        backend: image decoder.
        bad_image: "error" raises DataError for an image that cannot be read; "skip" leaves it out.
        pixel_format: form of the pixels.
        report: see `encode_dataset`.
        on_batch: see `encode_dataset`.
    """
    dataset = EvaluationDataset(images, transform, backend=backend, bad_image=bad_image, pixel_format=pixel_format)
    return encode_dataset(
        encode,
        dataset,
        world,
        batch_size=batch_size,
        num_workers=num_workers,
        title=images.root,
        report=report,
        on_batch=on_batch,
    )


@paddle.no_grad()
def encode_dataset(
    encode: Encode,
    dataset: KeyedDataset,
    world: World,
    *,
    batch_size: int,
    num_workers: int,
    title: str,
    report: bool = True,
    on_batch: Callable[[], None] | None = None,
) -> Encoded:
    """Compute the features of every sample once, with the random numbers of epoch 0; all processes must call.

    Args:
        encode: returns the features of a batch of "image", pixels [B, H, W, C].
        dataset: the samples; those that `EvaluationDataset` marks as unreadable are left out.
        world: the processes that share the work; each of them must call this function.
        batch_size: images per batch and process.
        num_workers: data workers per process.
        title: title of the progress bar.
        report: log the names of the unreadable files; False if an earlier call has done so.
        on_batch: called by all processes after every batch; an exception from it ends the encoding.

    Raises:
        DataError: none of the images can be read.
    """
    count = len(dataset)
    sampler = EpochBatchSampler(count, batch_size, world.rank, world.size, seed=0, shuffle=False, drop_last=False)
    # One image determines the shapes, because a process may have no batch at all.
    first = encode(paddle.to_tensor(dataset[SampleKey(0, 0)]["image"][None]))
    whole = {name: np.empty((count, *x.shape[1:]), np.float32) for name, x in first.items()}
    marks = np.zeros(count, np.float32)
    loader = build_loader(dataset, sampler, num_workers=num_workers)
    batches = iter(loader)
    disable = not (world.is_main and console.shows_bars())
    for start in tqdm(range(0, count, sampler.global_batch_size), title, disable=disable):
        stop = min(start + sampler.global_batch_size, count)
        batch = next(batches, None)
        encoded = {} if batch is None else encode(batch["image"])
        loader.transfer_next()
        share = np.array_split(np.arange(stop - start), world.size)[world.rank]
        for name, array in whole.items():
            part = _gather(encoded.get(name), share, (stop - start, *array.shape[1:]), world)
            if world.is_main:
                array[start:stop] = part
        if batch is not None and UNREADABLE in batch:
            marks[start:stop][share] = batch[UNREADABLE]
        if on_batch is not None:
            on_batch()
    marks = world.sum(paddle.to_tensor(marks)).numpy() if world.size > 1 else marks
    kept, unreadable = np.flatnonzero(marks == 0), np.flatnonzero(marks).tolist()
    if unreadable:
        _report_unreadable(dataset, unreadable, report=report and world.is_main)
        whole = {name: array[kept] for name, array in whole.items()} if world.is_main else {}
    return Encoded(whole if world.is_main else {}, kept, unreadable)


def _gather(
    values: Tensor | None, rows: npt.NDArray[np.int64], shape: tuple[int, ...], world: World
) -> npt.NDArray[np.float32]:
    """Return float32 `shape` with this process's `values` in its `rows` and those of the other processes in theirs."""
    part = np.zeros(shape, np.float32)
    if values is not None:
        part[rows] = values.numpy()
    return world.sum(paddle.to_tensor(part)).numpy() if world.size > 1 else part


def _report_unreadable(dataset: KeyedDataset, unreadable: Sequence[int], *, report: bool) -> None:
    """Log each unreadable file and its reason if `report` is true.

    Raises:
        DataError: all files are unreadable.
    """
    if not isinstance(dataset, EvaluationDataset):
        raise TypeError(f"{type(dataset).__name__} marks samples as unreadable and cannot name them")
    if len(unreadable) == len(dataset):
        others = f", nor any other of {len(unreadable)} files" if len(unreadable) > 1 else ""
        raise DataError(f"{dataset.reason(unreadable[0])}{others}; repair or replace the files")
    if report:
        dataset.log_unreadable(unreadable)


def require_finite_features(arrays: Mapping[str, npt.NDArray[np.float32]], origin: str) -> None:
    """Check that the results of a network are finite for every image.

    Args:
        arrays: results by name, [n, ...] for n images.
        origin: the weights of the network, for the message.

    Raises:
        CheckpointError: a result is NaN or infinite.
    """
    for name, array in arrays.items():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if len(bad):
            raise CheckpointError(
                f"{origin} gives {name} that are NaN or infinite for {len(bad)} of {len(array)} images (the first is "
                f"number {bad[0]}): its weights are too large for float32; take an earlier checkpoint of the run"
            )


class FeatureDataset:
    """Data set of precomputed features, for probes that train on cached features.

    A sample is {"features": [D], "label", `INDEX`, "skipped"} with "skipped" 0; it is the same in every epoch.

    Args:
        features: float32 [n, D].
        labels: class numbers [n].
    """

    def __init__(self, features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: SampleKey) -> Sample:
        numbers = {"label": self.labels[key.index], INDEX: key.index, "skipped": 0}
        return {"features": self.features[key.index]} | {
            name: np.asarray(number, np.int64) for name, number in numbers.items()
        }


def save_arrays(path: str | Path, arrays: Arrays, texts: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
    """Write arrays and lists of text to a file.

    Args:
        path: destination; .safetensors stores texts as metadata (JSON lists), any other suffix writes an npz file with
            texts as arrays of strings.
        arrays: arrays by name.
        texts: lists of text by name.

    Raises:
        DataError: the file cannot be written, or exists and was not written by this function.
    """
    path = Path(path)
    try:
        with result_replacement(path) as temporary:
            if path.suffix == ".safetensors":
                metadata = {name: json.dumps(list(text)) for name, text in texts.items()} | {"origin": MARK}
                save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, metadata)
            else:
                content: Arrays = {name: np.array(list(text), dtype=np.str_) for name, text in texts.items()}
                with temporary.open("wb") as stream:
                    np.savez(stream, **{**arrays, **content})  # type: ignore[arg-type]  # means allow_pickle
                with zipfile.ZipFile(temporary, "a") as archive:
                    archive.comment = MARK.encode()
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot write {path}: {reason}; choose another --save_path") from None
