"""Run `plsc-mae finetune` as a file, for paddle.distributed.launch and the commands of the original code bases."""

import sys

from plsc_mae.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
