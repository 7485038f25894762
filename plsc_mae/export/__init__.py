"""Export of networks from weight files to other programs, with an example of their use and a check of their outputs.

`plsc_mae.export(...)` is the function `plsc_mae.api.export`.
"""

from plsc_mae.verbs import make_callable

make_callable(__name__)
