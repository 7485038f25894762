"""`plsc-mae bench step` as a file, for `python -m paddle.distributed.launch`."""

import sys

from plsc_mae.cli import main

sys.exit(main(["bench", "step", *sys.argv[1:]]))
