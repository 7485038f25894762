"""List the GPU kernels of an installed Paddle wheel and their dtypes; no GPU is needed.

    python scripts/bench/gpu_kernels.py FILE [KERNEL ...]

Run it with the Python of an environment that has `paddlepaddle-gpu`. The file is JSON with the version of Paddle and,
for each kernel, the dtypes of its GPU implementations. The named KERNELs are added to those that
the file already lists, and all get the dtypes of this wheel; a new file without KERNELs lists all kernels of the wheel.
A kernel that the wheel does not have gets an empty list.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import paddle
from paddle.base import core


def main(words: list[str]) -> int:
    """Write the table of kernels; return 2 without a wheel for GPUs."""
    if not paddle.is_compiled_with_cuda() or not words:
        print("usage: gpu_kernels.py FILE [KERNEL ...], with the Python of an environment that has paddlepaddle-gpu")
        return 2
    file, named = Path(words[0]), set(words[1:])
    registered = gpu_kernels()
    wanted = named | set(json.loads(file.read_text())["kernels"] if file.exists() else ())
    rows = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(registered.get(name, []))}" for name in sorted(wanted or registered)
    )
    file.write_text(f'{{\n"paddle": {json.dumps(paddle.__version__)},\n"kernels": {{\n{rows}\n}}\n}}\n')
    return 0


def gpu_kernels() -> dict[str, list[str]]:
    """Return the dtypes of every kernel with an implementation for GPUs, by name."""
    found = {}
    for name, keys in core._get_registered_phi_kernels("all").items():
        dtypes = {match[1] for key in keys if (match := re.fullmatch(r"\(GPU\w*, .*, (\w+)\)", key))}
        if dtypes:
            found[name] = sorted(dtypes)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
