"""Features that were computed before, as a data set: what a probe on cached features trains on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.transforms import Sample


class FeatureRows:
    """Samples {"features": [D], "label", "index", "skipped"}; every epoch has the same ones.

    Args:
        features: float32 [n, D].
        labels: class numbers [n].
    """

    def __init__(self, features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: SampleKey) -> Sample:
        numbers = {"label": self.labels[key.index], "index": key.index, "skipped": 0}
        row = {"features": self.features[key.index]}
        return row | {name: np.asarray(number, np.int64) for name, number in numbers.items()}
