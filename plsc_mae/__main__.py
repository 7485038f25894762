"""Entry point of `python -m plsc_mae`, which is `plsc-mae`."""

import sys

from plsc_mae.cli import main

sys.exit(main())
