"""Data set of the pipeline stages that read no images."""

from __future__ import annotations

import numpy as np

from plsc_mae.data.seeding import SampleKey
from plsc_mae.data.transforms import Sample


class SizeOnlyDataset:
    """Data set of samples without content, because the later stages need only the size of a batch."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, _key: SampleKey) -> Sample:
        """Return the empty sample {"size": float32 [0], "skipped": 0}."""
        return {"size": np.zeros(0, np.float32), "skipped": np.zeros((), np.int64)}
