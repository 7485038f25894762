"""Request and answer files of the reference programs: arrays by group and name, and settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]  # NumPy arrays by name; old NumPy versions have no type for them


@dataclass
class Message:
    """Request to a reference program, or the program's answer."""

    settings: dict[str, Any]  # values that JSON can represent
    # {group: {name: array}}; the order is kept. A request has the groups "weights" (with the names and layouts of the
    # reference) and "batch". An answer has "layers", "gradients", "losses" and "trained".
    groups: dict[str, Arrays] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the message to an uncompressed .npz file."""
        arrays = {f"{group}/{name}": value for group, found in self.groups.items() for name, value in found.items()}
        np.savez(path, settings=np.array(json.dumps(self.settings)), **arrays)

    @classmethod
    def read(cls, path: Path) -> Message:
        """Read a file written by `write`."""
        with np.load(path, allow_pickle=False) as stored:
            message = cls(json.loads(str(stored["settings"])))
            for key in stored.files:
                group, slash, name = key.partition("/")
                if slash:
                    message.groups.setdefault(group, {})[name] = stored[key]
        return message
