"""Handling of SIGTERM and Ctrl-C: all processes of the run stop at the next point where they can save."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

import paddle

from plsc_mae import console
from plsc_mae.errors import Stopped
from plsc_mae.parallel import activity, failure_detector
from plsc_mae.parallel.world import World

Handler = Callable[[int, FrameType | None], Any]

BEFORE_TRAINING = "training had not started, and nothing was changed; the same command starts again"
REPEAT_SECONDS = 1.0  # paddle.distributed.launch sends SIGTERM three times within half a second


@contextlib.contextmanager
def preparing_run() -> Iterator[None]:
    """Report a Ctrl-C within the context, up to the training, with the message that training had not started.

    A process of the command line prints the message and ends at once; if it has joined other processes, it raises
    KeyboardInterrupt, whose handling informs them. Notebooks and scripts get a KeyboardInterrupt too. The command line
    avoids it because it can abort the process within a call of Paddle (1 of 300 interrupted starts on Paddle 2.6), and
    because Python ignores it in destructors (2 of 400, which trained to the end).
    """
    before = signal.getsignal(signal.SIGINT)
    handler = next((handler for handler, after in _HANDLERS.items() if after is before), None)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_before_training(number: int, frame: FrameType | None) -> NoReturn:
    if failure_detector.current() is not None:
        _raise_before_training(number, frame)
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # the signal can come within a flush
        sys.stdout.flush()
    message = console.after_interrupt(f"{console.PROGRAM}: interrupted: {BEFORE_TRAINING}\n")
    with contextlib.suppress(OSError):
        os.write(2, message.encode())  # print is not reentrant
    os._exit(console.INTERRUPTED)


def _raise_before_training(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(BEFORE_TRAINING)


# Handlers of `preparing_run`, with the handlers that they replace, which are installed again when training ends.
_HANDLERS: Mapping[Handler, Handler] = {
    _end_before_training: console.raise_interrupt,
    _raise_before_training: signal.default_int_handler,
}


class StopRequest:
    """Request to stop a run, which any of its processes may receive as a signal.

    Attributes:
        signal: number of the first signal that this process received; 0 before that.
        exchanged: largest signal number of all processes when the last update exchanged its losses; 0 for none.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.signal = self.exchanged = 0
        self._received_at = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Record SIGTERM and the first Ctrl-C instead of exiting; a second Ctrl-C ends the process at once.

        In an interactive session such as a notebook, the second Ctrl-C raises KeyboardInterrupt instead.
        A signal that was ignored before stays ignored, such as Ctrl-C for background jobs of a shell. Outside the main
        thread this does nothing, because Python allows signal handlers only there. After a SIGTERM, the end of the
        context waits up to REPEAT_SECONDS, because the launcher repeats the signal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        for number in handled:
            signal.signal(number, self._receive)
            signal.siginterrupt(number, False)  # Paddle's store treats an interrupted system call as an error
        try:
            yield
        finally:
            if self.signal == signal.SIGTERM:
                time.sleep(max(0.0, self._received_at + REPEAT_SECONDS - time.monotonic()))
            for number in handled:
                earlier = before[number]
                signal.signal(number, _HANDLERS.get(earlier, earlier) if callable(earlier) else signal.SIG_DFL)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            is_interactive = hasattr(sys, "ps1")
            signal.signal(signal.SIGINT, signal.default_int_handler if is_interactive else signal.SIG_DFL)
        if not self.signal:
            self.signal, self._received_at = number, time.monotonic()
            message = (
                f"plsc-mae: {signal.Signals(number).name}: the run will save and stop after this update or the next\n"
            )
            if number == signal.SIGINT:
                message = console.after_interrupt(message)
            with contextlib.suppress(OSError):
                os.write(2, message.encode())  # print is not reentrant

    def agreed_in_update(self) -> int:
        """Return the signal number that all processes know of after an update, 0 for none, without waiting.

        A single process knows its own signal. Several processes know the signals that came before the update's losses
        were exchanged; later signals are returned after the next update.
        """
        return self.signal if self.world.processes == 1 else self.exchanged

    def agreed(self) -> int:
        """Return the largest signal number that any process received, 0 if none did; all processes must call."""
        activity.tick()  # evaluations call this after every batch
        return int(self.world.largest([float(self.signal)])[0])

    def is_requested(self) -> bool:
        """Return whether this process or one that holds another part of the same network received a signal.

        Processes that hold parts of the same network must leave a loop together, so all of them must call.
        """
        activity.tick()  # evaluations call this before every batch
        if self.world.tensor.size * self.world.pipeline.size == 1:
            return self.signal > 0
        requests = paddle.to_tensor(float(self.signal > 0))
        return bool(self.world.pipeline.sum(self.world.tensor.sum(requests)) > 0)

    def check(self) -> None:
        """Raise Stopped in all processes if any of them received a signal; all processes must call."""
        if number := self.agreed():
            raise Stopped(number)
