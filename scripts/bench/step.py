"""Run `plsc-mae bench step` from a file, as `python -m paddle.distributed.launch` requires."""

import sys

from plsc_mae.cli import main

sys.exit(main(["bench", "step", *sys.argv[1:]]))
