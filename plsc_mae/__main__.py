"""`python -m plsc_mae` is `plsc-mae`."""

import sys

from plsc_mae.cli import main

sys.exit(main())
