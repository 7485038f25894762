"""Evaluation of the encoder's features between epochs: k-NN accuracy, statistics, and the loss of fixed images.

Notation: n images, B batch, D width.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.analysis.features import Encoded, encode_dataset, select_tokens
from plsc_mae.analysis.health import EXTREMES, alignment, feature_health
from plsc_mae.analysis.knn import TRAINING_K, default_ks, knn_accuracy
from plsc_mae.config import PretrainConfig
from plsc_mae.data.classify import evaluation_transform
from plsc_mae.data.decode import SourceImage
from plsc_mae.data.evaluation import EvaluationDataset
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import Sample, Transform
from plsc_mae.loading import pixel_settings
from plsc_mae.methods.base import Batch, Task
from plsc_mae.parallel.world import World
from plsc_mae.train.log.tags import FIXED_LOSSES
from plsc_mae.train.observers.base import Observation
from plsc_mae.train.precision import autocast, choose_precision
from plsc_mae.train.signals import StopRequest

logger = logging.getLogger(__name__)

MEAN = "mean"
TYPICAL = (
    "nothing in masked pre-training spreads the features: a high feature_cosine is usual, see "
    "docs/reference/training.md"
)
STATISTICS = tuple(name for name in EXTREMES if name != "feature_alignment")  # of one set of features
HEALTH_IMAGES = 4096  # limit, because the cost of pairs and singular values grows faster than the number of images


class ImageEncoder:
    """Extractor of image features: the encoder of a run, applied in all of its processes.

    The feature vector of an image is the mean of its patch tokens after the final norm, computed without a mask.

    Args:
        task: task whose encoder is applied.
        normalize: converts images to the encoder's floats.
        config: options of the run.
        world: processes of the run, which divide the images among them.
        num_workers: loader processes per process.
    """

    def __init__(
        self, task: Task, normalize: Normalize, config: PretrainConfig, world: World, *, num_workers: int
    ) -> None:
        self.task, self.normalize, self.config, self.world, self.num_workers = (
            task,
            normalize,
            config,
            world,
            num_workers,
        )
        self._reported: set[str] = set()  # sets of images whose unreadable files have been named
        self.precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)

    def __call__(
        self, images: ImageList, transform: Transform, stop: StopRequest | None = None, *, seed: int = 0
    ) -> Encoded:
        """Encode the readable images; the main process returns their features [n, D] as the array `MEAN`.

        All processes must call; in the others the result has no arrays.

        Raises:
            DataError: images cannot be read, see --bad_image, or none can.
            Stopped: a stop was requested meanwhile.
        """
        config = self.config
        dataset = EvaluationDataset(
            images,
            transform,
            seed=seed,
            backend=config.image_backend,
            bad_image=config.bad_image,
            pixel_format=pixel_settings.settled_format(config),
        )
        report = images.source not in self._reported
        encoded = encode_dataset(
            self._encode,
            dataset,
            self.world,
            batch_size=config.batch_size,
            num_workers=self.num_workers,
            title=images.root,
            report=report,
            on_batch=None if stop is None else stop.check,
        )
        self._reported.add(images.source)
        return encoded

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features of pixels [B, H, W, C] as {`MEAN`: float32 [B, D]}."""
        encoder = self.task.model.encoder
        with autocast(self.precision):
            tokens = encoder.forward_features(self.normalize(images))
        return {MEAN: select_tokens(tokens.astype("float32"), "mean", encoder.num_prefix_tokens)}


class FeatureObserver(ABC):
    """Observer of the features of a run's encoder; metrics are returned in the main process only."""

    at_start = False

    def __init__(self, encode: ImageEncoder, every: int) -> None:
        self.encode, self.config, self.world, self.every = encode, encode.config, encode.world, every
        self._explained = False

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Encode the images in all processes, and evaluate the features in the main process; all processes must call.

        Raises:
            DataError: images cannot be read, see --bad_image, or a feature is not finite.
            Stopped: a stop was requested meanwhile.
        """
        self.encode.task.eval()
        metrics = self.measure(stop)
        self.world.barrier()  # the evaluation can take longer than the timeout of a reduction
        return Observation(metrics)

    @abstractmethod
    def measure(self, stop: StopRequest | None) -> dict[str, float]:
        """Return the metrics by name in the main process, {} in the others; all processes must call."""

    def explain(self, width: int, names: Sequence[str]) -> None:
        """Log once the meaning of the statistics `names` of features of `width` dimensions."""
        if not self._explained:
            logger.info("%s", "; ".join(f"{name} {EXTREMES[name]}" for name in names))
            logger.info("1/sqrt(width) is %.3g; %s", 1 / math.sqrt(width), TYPICAL)
        self._explained = True


class FeatureWatch(FeatureObserver):
    """Observer that measures the k-NN accuracy on validation images and the statistics of their features.

    Each validation image is classified by its nearest training images. With --feature_freq, `RepresentationWatch`
    measures the statistics instead.

    Args:
        encode: computes features.
        bank: training images.
        queries: at least two validation images, of the same classes as `bank`.
    """

    def __init__(self, encode: ImageEncoder, bank: ImageList, queries: ImageList) -> None:
        super().__init__(encode, encode.config.knn_freq)
        self.bank, self.queries = bank, queries
        self.k = encode.config.knn_k or default_ks((TRAINING_K,), len(bank))[0]

    def measure(self, stop: StopRequest | None) -> dict[str, float]:
        """Return the k-NN accuracy in percent and, without --feature_freq, the statistics of the queries.

        All processes must call; only the main process returns metrics.
        """
        view = evaluation_transform(self.config.image_size)
        bank, queries = self.encode(self.bank, view, stop), self.encode(self.queries, view, stop)
        return self._scores(bank, queries) if self.world.is_main else {}

    def _scores(self, bank: Encoded, queries: Encoded) -> dict[str, float]:
        known, asked = bank.arrays[MEAN], queries.arrays[MEAN]
        labels = self.bank.labels[bank.kept], self.queries.labels[queries.kept]
        (accuracy,) = knn_accuracy(known, labels[0], asked, labels[1], [min(self.k, len(known))])
        if self.config.feature_freq:
            return {"knn_acc1": accuracy.top1}
        self.explain(asked.shape[1], STATISTICS)
        count = min(len(asked), HEALTH_IMAGES)
        spaced = asked[np.arange(count) * len(asked) // count]
        return {"knn_acc1": accuracy.top1, **feature_health(spaced)}


class OnlyImage:
    """Transform that returns only the image of another transform's samples."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Return {"image": pixels [H, W, C]}."""
        return {"image": self.transform(image, rng)["image"]}


class RepresentationWatch(FeatureObserver):
    """Observer that needs no labels: it measures the features of fixed images, and the loss on some of them.

    Rank, spread and uniformity are measured on the images under the evaluation transform. Alignment compares two views
    of each image from the training augmentation; these views are the same at every call. The loss is that of fixed
    crops and masks without dropout; `fixed_loss_to_trivial` is this loss divided by the loss of the best trivial
    predictor on the same crops and masks.

    Args:
        encode: computes features.
        images: at least two images.
        transform: augmentation of the training.
        batch: fixed training samples in the processes of data-parallel rank 0, which compute their loss together; None
            in the others, and for a task without `reference_loss`.
    """

    def __init__(self, encode: ImageEncoder, images: ImageList, transform: Transform, batch: Batch | None) -> None:
        super().__init__(encode, encode.config.feature_freq)
        self.images, self.view, self.batch = images, OnlyImage(transform), batch
        self._trivial = 0.0  # loss of the best trivial predictor; 0 before the first call

    def measure(self, stop: StopRequest | None) -> dict[str, float]:
        """Return the statistics of the features and the losses, see `FeatureObserver.measure`."""
        seed = self.config.seed
        whole = self.encode(self.images, evaluation_transform(self.config.image_size), stop)
        first, second = (self.encode(self.images, self.view, stop, seed=number) for number in (seed, seed + 1))
        losses = {} if self.batch is None else self._losses(self.batch)
        if not self.world.is_main:
            return {}
        health = feature_health(whole.arrays[MEAN])
        aligned = alignment(first.arrays[MEAN], second.arrays[MEAN])
        self.explain(first.arrays[MEAN].shape[1], tuple(EXTREMES))
        return {**health, "feature_alignment": aligned, **losses}

    @paddle.no_grad()
    def _losses(self, batch: Batch) -> dict[str, float]:
        """Return the losses of the fixed samples by name; the second is absent if a trivial predictor has loss 0."""
        task = self.encode.task
        prepared = task.prepare(batch)
        with autocast(self.encode.precision):
            loss = float(task(prepared).logs[task.reference_loss])
        if not self._trivial:
            self._trivial = min(task.trivial_losses([prepared]).values())
        values = (loss, loss / self._trivial) if self._trivial else (loss,)  # 0 for images of a single color
        return dict(zip(FIXED_LOSSES, values, strict=False))
