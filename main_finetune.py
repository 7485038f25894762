"""`plsc-mae finetune` as a file, for the historical commands and for paddle.distributed.launch."""

import sys

from plsc_mae.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
