"""Training engine: loop, step, checkpoints, logs. It depends on the Task contract and on no particular method.

`plsc_mae.train(...)` is the function `plsc_mae.api.train`.
"""

from plsc_mae.verbs import make_callable

make_callable(__name__)
