#!/usr/bin/env bash
# Lint, types and tests on Paddle 3.3, then the tests marked `compat` on Paddle 2.6.
#   bash scripts/test.sh           what CI runs
#   bash scripts/test.sh --slow    also the tests marked slow
#   bash scripts/test.sh -k mask   further words go to pytest on Paddle 3.3, and 2.6 is left out
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

selection=(-m "not slow")
both=yes
if [ "${1:-}" = "--slow" ]; then
    selection=()
    shift
elif [ $# -gt 0 ]; then
    both=no
fi

# A process per core, a file of tests at a time in each: most tests use one core.
parallel=(-n auto --maxprocesses 4 --dist loadfile)

make_environment .venv -e '.[dev]' paddlepaddle==3.3.1
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "${parallel[@]}" "${selection[@]}" --durations 5 "$@"
if [ $both = yes ]; then
    make_environment .venv-paddle2.6 -e . paddlepaddle==2.6.2 'numpy<2' pytest==9.2.0 pytest-xdist==3.8.0
    echo "Paddle 2.6.2:"
    .venv-paddle2.6/bin/python -m pytest "${parallel[@]}" -m "compat and not slow"
fi
