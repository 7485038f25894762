"""Print the logs of compare_pytorch.sh as a table and, with --json, write them as JSON.

Needs the standard library only.

Each log holds one turn: a JSON header line (contestant, round, load average), then the output of the contestant. The
last line that starts with `{"name"` is the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

BASELINE = "pytorch"


def read_turn(log: Path) -> dict[str, Any]:
    """Return the header and the measurement of one turn in one dictionary."""
    header, *output = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # Paddle's launcher may print further lines after the last line of its worker, so search from the end.
    for line in reversed(output):
        if line.startswith('{"name"'):
            return {**json.loads(header), **json.loads(line)}
    sys.exit(f'{log}: no measurement found, expected a line that starts with {{"name"; run the comparison again')


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    # Linux on Arm reports no model name.
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def summarize(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each contestant the images/s of all rounds, their median, and its ratio to the median of PyTorch."""
    rates: dict[str, list[float]] = {}
    for turn in sorted(turns, key=lambda turn: turn["round"]):
        rates.setdefault(turn["contestant"], []).append(turn["images_per_second"])
    baseline = statistics.median(rates[BASELINE])
    return [
        {
            "contestant": name,
            "images_per_second": rates[name],
            "median": statistics.median(rates[name]),
            "ratio_to_pytorch": statistics.median(rates[name]) / baseline,
        }
        for name in sorted(rates, key=lambda name: (name != BASELINE, name))
    ]


def print_report(machine: dict[str, Any], turns: list[dict[str, Any]], summary: list[dict[str, Any]]) -> None:
    print(f"\n{machine['cpu']}, {machine['cores']} cores; {machine['system']}")
    versions = {(key, turn[key]) for turn in turns for key in ("torch", "transformers", "paddle") if key in turn}
    print(", ".join(f"{package} {version}" for package, version in sorted(versions)))
    rounds = len(summary[0]["images_per_second"])
    heads = "".join(f"{f'round {i + 1}':>10}" for i in range(rounds))
    print(f"\n{'images/s':<14}{heads}{'median':>10}{'ratio to PyTorch':>18}")
    for row in summary:
        cells = "".join(f"{rate:10.2f}" for rate in row["images_per_second"])
        print(f"{row['contestant']:<14}{cells}{row['median']:10.2f}{row['ratio_to_pytorch']:18.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, help="JSON file to write, with machine, turns and summary")
    args = parser.parse_args()
    turns = [read_turn(log) for log in args.logs]
    summary = summarize(turns)
    machine = {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()}
    print_report(machine, turns, summary)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "turns": turns, "summary": summary}, indent=2) + "\n")


if __name__ == "__main__":
    main()
