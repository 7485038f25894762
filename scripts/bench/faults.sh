#!/usr/bin/env bash
# Kills runs at random moments, injects faults into disks, data, numbers and processes, and prints tables of the outcomes.
# The exit code is not 0 if any outcome differs from the expected one.
#   bash scripts/bench/faults.sh            everything
#   bash scripts/bench/faults.sh -k mae     further words go to pytest
#
# PYTHON          interpreter with Paddle and pytest [.venv, made on the first run]
# CAMPAIGN_SEED   another campaign of kills [0]
# RESULTS         folder for pytest's results [a temporary one]; results of earlier calls in it count too
#
# The tests of full disks need root; without root they are reported as skipped.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh SCRIPT`
set +o posix                                      # where sh is bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. scripts/environment.sh

if [ -z "${PYTHON:-}" ]; then
    make_environment .venv -e '.[dev]' paddlepaddle==3.3.1
    PYTHON=.venv/bin/python
fi
results="${RESULTS:-$(mktemp -d)}"
mkdir -p "$results"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mapfile -t tests < <("$PYTHON" scripts/bench/faults_report.py --tests)
failed=0
"$PYTHON" -m pytest -n 2 --junitxml "$results/$(date +%s).xml" "$@" "${tests[@]}" || failed=$?
"$PYTHON" scripts/bench/faults_report.py "$results"/*.xml || failed=$?
[ -n "${RESULTS:-}" ] || rm -r "$results"
exit "$failed"
