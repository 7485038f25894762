"""Evaluation of the encoder's features between epochs: k-NN accuracy and health.

n images, D width.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from paddle import Tensor

from plsc_mae.analysis.features import Encoded, encode_images, select_tokens
from plsc_mae.analysis.health import EXTREMES, feature_health
from plsc_mae.analysis.knn import knn_accuracy
from plsc_mae.config import PretrainConfig
from plsc_mae.data.classify import evaluation_transform
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.normalize import Normalize
from plsc_mae.loading import pixel_range
from plsc_mae.methods.base import Task
from plsc_mae.parallel.world import World
from plsc_mae.train.observers.base import Observation
from plsc_mae.train.precision import autocast, choose_precision
from plsc_mae.train.signals import StopRequest

logger = logging.getLogger(__name__)

MEAN = "mean"
TYPICAL = "nothing in masked pre-training spreads the features: a high feature_cosine is usual, see docs/training.md"
HEALTH_IMAGES = 4096  # limit, because the cost of pairs and singular values grows faster than the number of images


class FeatureWatch:
    """Observer that measures the k-NN accuracy on validation images and the health of their features.

    Each validation image is classified by its nearest training images. The feature vector of an image is the mean of
    its patch tokens after the final norm, computed without a mask.

    Args:
        task: task whose encoder is evaluated.
        normalize: converts images to the encoder's floats.
        bank: training images.
        queries: at least two validation images, of the same classes as `bank`.
        config: options of the run: --knn_freq, --knn_k and those for reading images.
        world: processes of the run, which divide the images among them.
        num_workers: loader processes per process.
    """

    at_start = False

    def __init__(
        self,
        task: Task,
        normalize: Normalize,
        bank: ImageList,
        queries: ImageList,
        config: PretrainConfig,
        world: World,
        *,
        num_workers: int,
    ) -> None:
        self.task, self.normalize, self.bank, self.queries = task, normalize, bank, queries
        self.config, self.world, self.num_workers = config, world, num_workers
        self.every, self.explained = config.knn_freq, False
        self._reported = False  # whether unreadable images have been named
        self.precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Encode the images in all processes and evaluate in the main process; all processes must call.

        Only the main process returns metrics.

        Raises:
            DataError: a feature is not finite.
            Stopped: a stop was requested meanwhile.
        """
        self.task.eval()
        bank, queries = self._features(self.bank, stop), self._features(self.queries, stop)
        self._reported = True
        metrics: dict[str, float] = {}
        if self.world.is_main:
            metrics = self._measure(bank, queries)
        self.world.barrier()  # the search can take longer than the timeout of a reduction
        return Observation(metrics)

    def _features(self, images: ImageList, stop: StopRequest | None) -> Encoded:
        config = self.config
        return encode_images(
            self._encode,
            images,
            evaluation_transform(config.image_size),
            self.world,
            batch_size=config.batch_size,
            num_workers=self.num_workers,
            backend=config.image_backend,
            bad_image=config.bad_image,
            pixel_format=pixel_range.settled_format(config),
            report=not self._reported,
            on_batch=None if stop is None else stop.check,
        )

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images [B, H, W, C] to float32 [B, D]."""
        encoder = self.task.model.encoder
        with autocast(self.precision):
            tokens = encoder.forward_features(self.normalize(images))
        return {MEAN: select_tokens(tokens.astype("float32"), "mean", encoder.num_prefix_tokens)}

    def _measure(self, bank: Encoded, queries: Encoded) -> dict[str, float]:
        """Return the k-NN accuracy in percent and the health of the features of the readable images, by name."""
        known, asked = bank.arrays[MEAN], queries.arrays[MEAN]
        labels = self.bank.labels[bank.kept], self.queries.labels[queries.kept]
        (accuracy,) = knn_accuracy(known, labels[0], asked, labels[1], [min(self.config.knn_k, len(known))])
        if not self.explained:
            self.explained = True
            logger.info("%s", "; ".join(f"{name} {meaning}" for name, meaning in EXTREMES.items()))
            logger.info("1/sqrt(width) is %.3g; %s", 1 / math.sqrt(asked.shape[1]), TYPICAL)
        count = min(len(asked), HEALTH_IMAGES)
        spaced = asked[np.arange(count) * len(asked) // count]
        return {"knn_acc1": accuracy.top1, **feature_health(spaced)}
