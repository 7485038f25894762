"""Watches the representation between epochs: k-NN accuracy of the encoder's features, and their health.

n images, D width.
"""

from __future__ import annotations

import numpy as np
from paddle import Tensor

from plsc_mae.analysis.features import Arrays, encode_images, select_tokens
from plsc_mae.analysis.health import feature_health
from plsc_mae.analysis.knn import Features, knn_accuracy
from plsc_mae.config import PretrainConfig
from plsc_mae.data.classify import evaluation_transform
from plsc_mae.data.imagefolder import ImageList
from plsc_mae.data.normalize import Normalize
from plsc_mae.methods.base import Task
from plsc_mae.parallel.world import World
from plsc_mae.train.observers.base import Observation
from plsc_mae.train.signals import StopRequest
from plsc_mae.train.step import autocast, choose_precision

MEAN = "mean"
HEALTH_IMAGES = 4096  # pairs and singular values cost more than their number


class FeatureWatch:
    """Encodes two labeled sets, classifies the second by its neighbors in the first, and measures its shape.

    Features are the means of an image's patch tokens behind the final norm, of the whole image without a mask.

    Args:
        task: whose encoder.
        normalize: turns uint8 images into its floats.
        bank: training images.
        queries: validation images of the same classes, at least two.
        config: how often, how many neighbors, how images are read.
        world: the processes of the run; they share the images.
        num_workers: processes that decode, per process.
    """

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
        self.every = config.knn_freq
        self.precision = choose_precision(config.amp, config.amp_dtype, world.is_gpu, config.amp_level)

    def __call__(self, stop: StopRequest | None = None) -> Observation:
        """Encode in all processes, compare in the main one."""
        self.task.eval()
        bank, queries = self._features(self.bank, stop), self._features(self.queries, stop)
        metrics: dict[str, float] = {}
        if self.world.is_main:
            metrics = self._measured(bank[MEAN], queries[MEAN])
        self.world.barrier()  # the search may take longer than the others would wait in a reduction
        return Observation(metrics)

    def _features(self, images: ImageList, stop: StopRequest | None) -> Arrays:
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
            on_batch=None if stop is None else stop.check,
        )

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        """Encode uint8 images [B, H, W, 3] to float32 [B, D]."""
        encoder = self.task.model.encoder
        with autocast(self.precision):
            tokens = encoder.forward_features(self.normalize(images))
        return {MEAN: select_tokens(tokens.astype("float32"), "mean", encoder.num_prefix_tokens)}

    def _measured(self, bank: Features, queries: Features) -> dict[str, float]:
        (accuracy,) = knn_accuracy(bank, self.bank.labels, queries, self.queries.labels, [self.config.knn_k])
        count = min(len(queries), HEALTH_IMAGES)
        spaced = queries[np.arange(count) * len(queries) // count]
        return {"knn_acc1": accuracy.top1, **feature_health(spaced)}
