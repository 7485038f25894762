"""The files that go to a reference and come back: arrays by group and name, and plain settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]  # NumPy arrays; older NumPy has no better name


@dataclass
class Message:
    """A request or an answer.

    Attributes:
        settings: plain values.
        groups: arrays by the name of their group and their own, in order. A request has "weights", of the reference's
            names and layouts, and "batch"; an answer "layers", "gradients", "losses" and "trained".
    """

    settings: dict[str, Any]
    groups: dict[str, Arrays] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it as an uncompressed .npz."""
        arrays = {f"{group}/{name}": value for group, found in self.groups.items() for name, value in found.items()}
        np.savez(path, settings=np.array(json.dumps(self.settings)), **arrays)

    @classmethod
    def read(cls, path: Path) -> Message:
        """Read what `write` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            message = cls(json.loads(str(stored["settings"])))
            for key in stored.files:
                group, slash, name = key.partition("/")
                if slash:
                    message.groups.setdefault(group, {})[name] = stored[key]
        return message
