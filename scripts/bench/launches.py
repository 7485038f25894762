"""Kernel launches, waits and transfers of one training update, counted on CPU with the code paths of a GPU.

    python scripts/bench/launches.py pretrain --model mae_vit_base_patch16 --embed_dim 48 --decoder_embed_dim 32 ...

The words after the script are those of a `plsc-mae` training command on a single process; use the real depth and small
widths, because only the number of operations counts. Launches are read from Paddle's own log (GLOG) of update 4. Views
are not counted, copies that make a tensor contiguous are. Waits and transfers are counted over updates 4 to 6, see
`Calls`. Several processes have the same ones; tests/train/test_waits.py counts those of two.
"""

from __future__ import annotations

import collections
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODULES = "data_transform=3,api=6,dygraph_api=6,backward_api=6,fused_api=6,backward_api_base=6,backward_fused_api=6"
MARK = "@@"
FIRST, LAST = 4, 6
# Methods of Tensor that copy data to the host or wait for the device.
WAITS = ("numpy", "__array__", "item", "tolist", "__float__", "__bool__", "__int__", "__index__", "cpu")


def main() -> int:
    """Run the command in a traced process and print its counts."""
    if os.environ.get("PLSC_MAE_TRACED") == "1":
        return trace(sys.argv[1:])
    environment = dict(os.environ, PLSC_MAE_TRACED="1", PLSC_MAE_CPU_SETTINGS="off", GLOG_vmodule=MODULES)
    with tempfile.NamedTemporaryFile() as log:
        done = subprocess.run([sys.executable, *sys.argv], env=environment, stderr=log, stdout=sys.stdout, check=False)
        text = Path(log.name).read_text(errors="replace")
    if done.returncode:
        sys.stderr.write(text[-4000:])
        return done.returncode
    launches, notes = count(text)
    total = 0
    for phase, operations in launches.items():
        number = sum(operations.values())
        total += number
        most = ", ".join(f"{name} {times}" for name, times in operations.most_common(8))
        print(f"{phase:<12}{number:>6}   {most}")
    print(f"{'total':<12}{total:>6}")
    print("\n".join(notes))
    return 0


def count(log: str) -> tuple[dict[str, collections.Counter[str]], list[str]]:
    """Return the launches by phase and operation, and the notes of the traced process."""
    launches: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    notes, phase, operation = [], "", ""
    for line in log.splitlines():
        if line.startswith(MARK):
            phase = line.removeprefix(MARK)
            if phase.startswith("note "):
                notes.append(phase.removeprefix("note "))
                phase = ""
        elif not phase:
            continue
        elif found := re.search(r"\] (\w+) API kernel key: \[", line):
            operation = found[1]
            launches[phase][operation] += 1
        elif "STRIDED" in line and operation:  # the kernel only makes a view; the line may follow in a few lines
            launches[phase][operation] -= 1
            operation = ""
        elif "Trans2Contiguous" in line:
            launches[phase]["copy"] += 1
    return {name: +operations for name, operations in launches.items()}, notes


def trace(words: list[str]) -> int:
    """Run a command of plsc_mae whose log marks the phases of an update."""
    import paddle

    from plsc_mae import cli
    from plsc_mae.methods import base, classify, load_methods, sweep
    from plsc_mae.models import dalle, gelu, layers, norm
    from plsc_mae.train import step, trainer
    from plsc_mae.train.checkpoint.state import RunState
    from plsc_mae.train.nonfinite.policy import NonFinitePolicy

    for module in (dalle, gelu, layers, norm):
        module.on_cpu = lambda _: False
    step.squared_norm = step.squared_norm_of_pieces
    phases, waits, transfers = Phases(), Calls(paddle.Tensor, WAITS), Calls(paddle, ("to_tensor",))
    phases.follow(step.Stepper, "forward_backward", "backward")
    phases.follow(step.Stepper, "_gradient_norm", "norm")
    phases.follow(step.Stepper, "_step_optimizer", "clip")
    phases.follow(NonFinitePolicy, "exchange_and_decide", "decide")
    phases.follow(RunState, "add_metrics", "meters")
    phases.follow(trainer.Trainer, "_set_rates", "rates")
    for optimizer in (paddle.optimizer.AdamW, paddle.optimizer.Momentum):
        phases.follow(optimizer, "step", "optimizer")
    list(load_methods())
    for task in {base.Task, classify.ClassifyTask, sweep.SweepTask, *subclasses(base.Task)}:
        for method, name in (("prepare", "prepare"), ("forward", "forward"), ("after_step", "average")):
            if method in vars(task):
                phases.follow(task, method, name)
    iterate = trainer.Trainer.iterate
    done = 0

    def traced(self: Any, batch: Any) -> None:
        nonlocal done
        done += 1
        phases.enabled = done == FIRST
        waits.enabled = transfers.enabled = FIRST <= done <= LAST
        phases.mark()
        iterate(self, batch)
        phases.enabled = waits.enabled = transfers.enabled = False
        phases.mark()
        if done == LAST:
            arrays = [name for name, value in batch.items() if isinstance(value, paddle.Tensor)]
            write(f"note {len(self.stepper.params)} parameters, Paddle {paddle.__version__}")
            write(f"note waits per update: {waits.summary(LAST - FIRST + 1)}")
            write(f"note transfers per batch: {', '.join(arrays)}; then {transfers.summary(LAST - FIRST + 1)}")

    trainer.Trainer.iterate = traced
    code = cli.main(words)
    sys.stdout.flush()
    os._exit(code)  # Paddle 3.3 hangs at the exit of a traced process


def subclasses(cls: type) -> set[type]:
    """Return all classes derived from a class."""
    return {*cls.__subclasses__(), *(below for child in cls.__subclasses__() for below in subclasses(child))}


def write(text: str) -> None:
    """Write a line to the log, unbuffered."""
    os.write(2, f"\n{MARK}{text}\n".encode())


class Phases:
    """The stack of phases of an update; marks in the log say which phase the following launches belong to."""

    def __init__(self) -> None:
        self.stack, self.enabled = ["loop"], False

    def mark(self) -> None:
        """Write the current phase to the log; no phase outside the traced update."""
        write(self.stack[-1] if self.enabled else "")

    def follow(self, owner: type, method: str, phase: str) -> None:
        """Replace a method by one that is a phase."""
        original: Callable[..., Any] = getattr(owner, method)

        def followed(*args: Any, **options: Any) -> Any:
            self.stack.append(phase)
            self.mark()
            try:
                return original(*args, **options)
            finally:
                self.stack.pop()
                self.mark()

        setattr(owner, method, followed)


class Calls:
    """Counter of the calls of some functions by calling line of plsc_mae; calls within calls are not counted."""

    def __init__(self, owner: Any, names: Sequence[str]) -> None:
        self.enabled, self.places, self.depth = False, collections.Counter[str](), 0
        for name in names:
            if hasattr(owner, name):
                self._follow(owner, name)

    def summary(self, updates: int) -> str:
        """Return the number of calls per update, and their places."""
        places = ", ".join(f"{place} x {times / updates:g}" for place, times in self.places.most_common())
        return f"{sum(self.places.values()) / updates:g} ({places})"

    def _follow(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            if self.enabled and not self.depth:
                self.places[f"{name} in {caller()}"] += 1
            self.depth += 1
            try:
                return original(*args, **options)
            finally:
                self.depth -= 1

        setattr(owner, name, counted)


def caller() -> str:
    """Return the innermost line of plsc_mae that is being run."""
    frame = sys._getframe(2)
    while frame.f_back and "plsc_mae/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.split('plsc_mae/')[-1]}:{frame.f_lineno}"


if __name__ == "__main__":
    sys.exit(main())
