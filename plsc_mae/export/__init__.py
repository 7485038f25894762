"""Export of networks from weight files to other programs, with an example of their use and a check of their outputs.

`plsc_mae.export(...)` is the function `plsc_mae.api.export`.
"""

import os

from plsc_mae.verbs import make_callable

# Paddle reads it when it is imported: 2 leaves its errors, and hides its warning of tracing.
os.environ.setdefault("GLOG_minloglevel", "2")

make_callable(__name__)
