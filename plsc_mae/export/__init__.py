"""Export: networks of weight files for other programs, with files that show their use and a check of the outputs.

`plsc_mae.export(...)` is the function `plsc_mae.api.export`.
"""

from plsc_mae.verbs import make_callable

make_callable(__name__)
