#!/usr/bin/env bash
# Lint, types and tests on Paddle 3.3, then the tests marked `compat` and not `once` on Paddle 2.6.
#   bash scripts/test.sh           what CI runs
#   bash scripts/test.sh --slow    also the tests marked slow, and on Paddle 2.6 those marked once
#   bash scripts/test.sh --quick   lint, types and, on Paddle 3.3, the tests that are neither
#                                  slow nor long; tests marked long start processes or take seconds
#   bash scripts/test.sh -k mask   further words go to pytest on Paddle 3.3, and 2.6 is left out
# All steps run, also after one has failed. The last lines give the result of each; the exit code is 1 if any failed.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh SCRIPT`
set +o posix                                      # where sh is bash
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

selection=(-m "not slow")
older="compat and not slow and not once"
both=yes
case "${1:-}" in
    --slow)
        selection=()
        older="compat and not slow"
        shift
        ;;
    --quick)
        selection=(-m "not slow and not long")
        both=no
        shift
        ;;
    ?*) both=no ;;
esac

# A process per core and one more, for tests use one core each and some wait; it takes over tests of another when it has
# none left.
cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
parallel=(-n $(((cores < 4 ? cores : 4) + 1)) --dist worksteal)
# Compiled tests and modules are kept, also where the environment says otherwise: four processes import all of them.
export PYTHONDONTWRITEBYTECODE=

summary=()
failed=0
# step NAME COMMAND...: runs the command and notes its result.
step() {
    local name=$1 start=$SECONDS code
    shift
    printf '== %s\n' "$name"
    set +e # and a subshell: within `if` or `||`, the command itself would not stop at its errors
    (
        set -e
        "$@"
    )
    code=$?
    set -e
    if [ $code = 0 ]; then
        summary+=("passed  $name ($((SECONDS - start)) s)")
    else
        summary+=("FAILED  $name (exit code $code, $((SECONDS - start)) s)")
        failed=1
    fi
}

step "set-up, Paddle 3.3" make_environment .venv -e '.[dev]' paddlepaddle==3.3.1
step "lint" .venv/bin/ruff check .
step "format" .venv/bin/ruff format --check .
# mypy uses one core. In a fresh clone, another compiles the tests, or each of their processes would do it for itself.
[ -d .mypy_cache ] || .venv/bin/python -m pytest --collect-only -qq >/dev/null 2>&1 &
step "types" .venv/bin/mypy
step "tests, Paddle 3.3" .venv/bin/python -m pytest "${parallel[@]}" "${selection[@]}" --durations 5 "$@"
if [ $both = yes ]; then
    step "set-up, Paddle 2.6" \
        make_environment .venv-paddle2.6 -e . paddlepaddle==2.6.2 'numpy<2' pytest==9.2.0 pytest-xdist==3.8.0
    # Files without a test for Paddle 2.6 are not collected.
    mapfile -t unused < <(grep -rL --include='test_*.py' mark.compat tests)
    if [[ $older == *"not once"* ]]; then
        mapfile -t -O "${#unused[@]}" unused < <(grep -rl --include='test_*.py' 'pytestmark = .*mark\.once' tests)
    fi
    step "tests, Paddle 2.6" .venv-paddle2.6/bin/python -m pytest "${parallel[@]}" -m "$older" "${unused[@]/#/--ignore=}"
fi

printf '\n'
printf '%s\n' "${summary[@]}"
exit $failed
