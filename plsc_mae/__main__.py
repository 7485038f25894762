"""Entry point of `plsc-mae` and `python -m plsc_mae`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, as `plsc_mae.cli.main` does; a Ctrl-C while that module loads is no traceback either."""
    try:
        from plsc_mae.cli import main as run

        return run(argv)
    except KeyboardInterrupt:
        print("\n" * sys.stderr.isatty() + "plsc-mae: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
