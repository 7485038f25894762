"""Weight files damaged at random, by a seed: whatever happens to them, only a CheckpointError may escape."""

from __future__ import annotations

import random

import paddle
import pytest

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.reader import read_file

pytestmark = pytest.mark.compat

MUTATED = ["dtypes.pth", "views_legacy_nonzip.pth", "malicious_exec_zip.pth", "malicious_system_legacy_nonzip.pth"]


@pytest.mark.parametrize("name", [*MUTATED, "fb_full.safetensors", "fb_training_intstep.npz", "paddle"])
def test_damage_of_any_kind_raises_only_checkpoint_errors(checkpoints, tmp_path, monkeypatch, saved, name):
    marker = tmp_path / "marker"
    monkeypatch.setenv("PWNED", str(marker))
    if name == "paddle":
        paddle.save({"model": paddle.nn.Linear(3, 4).state_dict(), "epoch": 1}, str(tmp_path / "p.pd"))
    original = (tmp_path / "p.pd" if name == "paddle" else checkpoints / name).read_bytes()
    rng = random.Random(name)
    refused = 0
    for _ in range(60):
        path = saved(without_checksums(mutated(original, rng)))
        try:
            read_file(path)
        except CheckpointError:
            refused += 1
    assert refused >= 20  # so the mutants did reach the decoders' checks
    assert not marker.exists()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Overwrite, delete, insert, repeat or cut, mostly near the start, where the structure is."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        start = rng.randrange(min(len(damaged), rng.choice([2000, len(damaged)])))
        length = rng.choice([1, 4, 16])
        match rng.randrange(5):
            case 0:
                damaged[start] = rng.randrange(256)
            case 1:
                del damaged[start : start + length]
            case 2:
                damaged[start:start] = rng.randbytes(length)
            case 3:
                source = rng.randrange(len(damaged))
                damaged[start : start + length] = damaged[source : source + length]
            case _:
                damaged = damaged[: max(start, 16)]
    return bytes(damaged)


def without_checksums(data: bytes) -> bytes:
    """Zero the checksums of a zip, which would otherwise hide the damage from all that comes after."""
    for signature, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        first, *rest = data.split(signature)
        data = first + b"".join(signature + part[: offset - 4] + bytes(4) + part[offset:] for part in rest)
    return data
