"""`plsc-mae linprobe` as a file, for the historical commands and for paddle.distributed.launch."""

import sys

from plsc_mae.cli import main

if __name__ == "__main__":
    sys.exit(main(["linprobe", *sys.argv[1:]]))
