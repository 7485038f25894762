"""A training run, one process of which hangs: python hanging_program.py PROCESS PHASE DEED COMMAND ...

When that process enters the phase after the third update, it stops itself ("stop": SIGSTOP), or sleeps ("sleep").
"""

from __future__ import annotations

import os
import signal
import sys
import time

from plsc_mae.__main__ import main
from plsc_mae.parallel import activity

process, phase, deed, *words = sys.argv[1:]
enter = activity.enter
done = False


def hang(entered: str) -> None:
    """Enter a phase, and hang once in the given one."""
    global done
    enter(entered)
    if not done and entered == phase and activity.current.update >= 3 and os.environ["PADDLE_TRAINER_ID"] == process:
        done = True
        if deed == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            time.sleep(100)


activity.enter = hang
sys.exit(main(words))
