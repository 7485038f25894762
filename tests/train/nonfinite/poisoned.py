"""The command line of a run that goes wrong for some images: python poisoned.py WHAT INDEX,INDEX COMMAND ...

WHAT is the dotted name of a layer whose output becomes NaN, "gradient", or a factor on the loss. An image is seen once
an epoch, and with several processes by one of them, so seed and index decide which update is hit, and where.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection

from plsc_mae.__main__ import main
from plsc_mae.data.transfer import INDEX
from plsc_mae.methods.base import StepOutput
from plsc_mae.methods.mae import MAETask


def poisoned(forward: Callable, what: str, indices: Collection[int]) -> Callable:
    """A Task's forward pass that goes wrong for batches with one of the images."""

    def with_poison(task, batch):
        if not set(indices) & set(batch[INDEX].tolist()):
            return forward(task, batch)
        if what == "gradient":
            out = forward(task, batch)
            out.loss.register_hook(lambda grad: grad * float("inf"))
            return out
        if what.isdigit():
            out = forward(task, batch)
            return StepOutput(out.loss * int(what), out.logs, out.features)
        layer = dict(task.named_sublayers())[what]
        whole = layer.forward
        layer.forward = lambda *inputs: whole(*inputs) * float("nan")
        try:
            return forward(task, batch)
        finally:
            layer.forward = whole

    return with_poison


if __name__ == "__main__":
    MAETask.forward = poisoned(MAETask.forward, sys.argv[1], [int(index) for index in sys.argv[2].split(",")])
    sys.exit(main(sys.argv[3:]))
