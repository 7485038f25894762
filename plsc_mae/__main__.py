"""Entry point of `plsc-mae` and `python -m plsc_mae`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, as `plsc_mae.cli.main` does; a Ctrl-C while that module loads causes no traceback either.

    A process that has joined others does not return: it ends here with the exit code.
    """
    try:
        if "_ARGCOMPLETE" in os.environ:  # the shell requests completions
            from plsc_mae.cli import complete

            complete()
            return 0
        from plsc_mae import console

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, console.end_at_interrupt)
        from plsc_mae.cli import main as run
        from plsc_mae.parallel import failure_detector

        code = run(argv)
        failure_detector.leave_group(code)
        return code
    except KeyboardInterrupt:
        print("\n" * sys.stderr.isatty() + "plsc-mae: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
