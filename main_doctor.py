"""Run `plsc-mae doctor` as a file, for paddle.distributed.launch."""

import sys

from plsc_mae.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
