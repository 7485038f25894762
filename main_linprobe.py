"""Run `plsc-mae linprobe` as a file, for paddle.distributed.launch and the commands of the original code bases."""

import sys

from plsc_mae.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["linprobe", *sys.argv[1:]]))
