"""A run asked to stop, by SIGTERM or Ctrl-C, comes to the next point where it can save, in all its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import paddle

from plsc_mae.errors import Stopped
from plsc_mae.parallel.world import World

REPEATS = 1.0  # seconds; paddle.distributed.launch sends SIGTERM three times within half a second


class StopRequest:
    """Notes the signals that ask this process to stop, and agrees with the other processes.

    Args:
        world: the processes of the run.

    Attributes:
        signal: number of the first signal noted, 0 without one.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.signal = 0
        self._noted = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note SIGTERM and the first Ctrl-C instead of ending; a second Ctrl-C ends the process at once.

        Signals that are ignored stay so, as Ctrl-C in the background of a shell. Python lets only the main thread
        listen; in others this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self._note)
            signal.siginterrupt(number, False)  # Paddle's store takes a system call that was interrupted for an error
        try:
            yield
        finally:
            if self.signal == signal.SIGTERM:
                time.sleep(max(0.0, self._noted + REPEATS - time.monotonic()))
            for number in heard:
                signal.signal(number, before[number] or signal.SIG_DFL)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.signal:
            self.signal, self._noted = number, time.monotonic()
            told = f"plsc-mae: {signal.Signals(number).name}: the run will save and stop\n"
            with contextlib.suppress(OSError):
                os.write(2, told.encode())  # print could be interrupted by itself

    def agreed(self) -> int:
        """The signal that any process was stopped by, 0 without one; all processes must call."""
        return int(self.world.largest([float(self.signal)])[0])

    def heard(self) -> bool:
        """Whether to leave off what is under way here.

        Processes that share the network cannot do it one by one: they all must call, and hear what any of them hears.
        """
        if self.world.tensor.size * self.world.pipeline.size == 1:
            return self.signal > 0
        heard = paddle.to_tensor(float(self.signal > 0))
        return bool(self.world.pipeline.sum(self.world.tensor.sum(heard)) > 0)

    def check(self) -> None:
        """End what is under way in all processes if any of them was asked to stop; all must call.

        Raises:
            Stopped: one was.
        """
        if number := self.agreed():
            raise Stopped(number)
