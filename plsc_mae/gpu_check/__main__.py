"""The process that runs checks: `python -m plsc_mae.gpu_check FILE cpu|gpu CHECK ...` appends results to FILE."""

from __future__ import annotations

import sys
from pathlib import Path

from plsc_mae.gpu_check.results import append
from plsc_mae.gpu_check.runner import run_checks

if __name__ == "__main__":
    for found in run_checks(sys.argv[3:], gpu=sys.argv[2] == "gpu"):
        append(Path(sys.argv[1]), found)
