"""Memory that reading a weight file takes, as counted by the system in a separate process.

Mapped pages count as soon as they are touched, so a file that is read and whose tensors are all used once costs about
its size, whether it is mapped or in memory. The published figure is for 1.3 GB (marker slow); 100 MB shows the same.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from plsc_mae.weights.reader import read_file

pytestmark = [pytest.mark.compat, pytest.mark.once]

TENSORS = 10
# Reads each file in a separate fork, and prints its resident memory before, its peak after reading and its peak after
# using all values. The peak is VmHWM and not ru_maxrss, which starts at the peak of the launching process.
MEASURE = """
import os, sys
from plsc_mae.weights.reader import read_file

def kib(field):
    return int(open("/proc/self/status").read().partition(field + ":")[2].split()[0])

for path in sys.stdin:
    if os.fork():
        os.wait()
        continue
    before = kib("VmRSS")
    tensors = read_file(path.strip()).tensors
    read = kib("VmHWM")
    total = sum(float(tensor[::512].sum()) for tensor in tensors.values())
    print(before, read, kib("VmHWM"), total, flush=True)
    os._exit(0)
"""


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def torch_pickle(count: int) -> bytes:
    """Pickle a state dict of `TENSORS` float32 tensors of `count` elements, with torch's calls."""
    number, body = b"J" + struct.pack("<i", count), b""
    for index in range(TENSORS):
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(index)) + text("cpu") + number + b"tQ"
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + number + b"\x85K\x01\x85\x89}tR"
        body += text(f"w{index}") + tensor
    return b"\x80\x02}(" + body + b"u."


def write(kind: str, path, count: int) -> None:
    """Write `TENSORS` arrays of `count` float32, the i-th filled with i, one in memory at a time where possible."""
    arrays = {f"w{index}": np.full(count, index, np.float32) for index in range(TENSORS)}
    match kind:
        case "torch zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", torch_pickle(count))
                for index, array in enumerate(arrays.values()):
                    archive.writestr(f"archive/data/{index}", memoryview(array).cast("B"))
        case "torch stream":
            with path.open("wb") as file:
                for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                    pickle.dump(value, file, 2)
                file.write(torch_pickle(count))
                pickle.dump([str(index) for index in range(TENSORS)], file, 2)
                for array in arrays.values():
                    file.write(struct.pack("<q", count))
                    array.tofile(file)
        case "npz":
            with path.open("wb") as file:
                np.savez(file, **arrays)
        case "safetensors":
            save_file(arrays, path)
        case "paddle":
            paddle.save({name: paddle.to_tensor(array) for name, array in arrays.items()}, str(path))


@pytest.fixture
def measured():
    """Return the peak memory of reading a file, the peak of reading and using it, and a sum of the values."""
    command = [sys.executable, "-c", MEASURE]
    environment = dict(os.environ, PLSC_MAE_CPU_SETTINGS="off")  # freed memory is returned and not used again
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as reader:

        def measure(path) -> tuple[int, int, float]:
            reader.stdin.write(f"{path}\n")
            reader.stdin.flush()
            before, read, used, total = reader.stdout.readline().split()
            return (int(read) - int(before)) << 10, (int(used) - int(before)) << 10, float(total)

        yield measure
        reader.stdin.close()


@pytest.mark.long
@pytest.mark.parametrize("megabytes", [100, pytest.param(1300, marks=pytest.mark.slow)])
def test_reading_and_using_a_file_takes_little_more_than_its_size(tmp_path, measured, megabytes):
    path, count = tmp_path / "weights", megabytes * 1_000_000 // (4 * TENSORS)
    for kind in ("torch zip", "torch stream", "npz", "safetensors", "paddle"):
        write(kind, path, count)
        size = path.stat().st_size
        read, used, total = measured(path)
        path.unlink()
        print(f"{kind}: {size / 1e6:.0f} MB, {read / size:.3f} of that to read, {used / size:.3f} to use")
        assert total == pytest.approx(sum(range(TENSORS)) * len(range(0, count, 512)))
        assert 0.99 * size < used < 1.2 * size, kind
        if kind != "paddle":
            assert read < 16 << 20, kind  # mapped: reading loads no tensor


def test_replaced_and_deleted_files_keep_their_values(tmp_path):
    path, other = tmp_path / "weights", tmp_path / "other"
    save_file({"w": np.arange(1 << 20, dtype=np.float32)}, path)
    save_file({"w": np.zeros(1 << 20, np.float32)}, other)
    old = read_file(path).tensors["w"]
    other.replace(path)
    new = read_file(path).tensors["w"]
    path.unlink()
    np.testing.assert_array_equal(old, np.arange(1 << 20, dtype=np.float32))
    assert not new.any()
