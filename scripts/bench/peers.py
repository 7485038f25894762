"""Compare plsc_mae with PyTorch on this machine's CPU cores, in turns, and print a table of ratios.

    python scripts/bench/peers.py --torch_python PYTHON [--rounds 3] [--steps 4] [--rows mae16 mae64 ...]

Rows: MAE ViT-B/16 pre-training (Hugging Face's ViTMAE) with batches of 16 and 64, CAE-base with 98 hidden patches and
batch 8, fine-tuning and evaluation of ViT-B with batch 16 (written in PyTorch for this script). In every round PyTorch,
plsc_mae as one process, and plsc_mae as one process per core (the recommended form) run one after the other. CAE's
tokenizer is tiny and its time is left out. A contestant that fails is reported with its output, the others are still
measured, and the exit code is 1. This script runs in the interpreter with Paddle; Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LONGEST_OUTPUT = 2000  # characters of a failed program's output that are shown
STEP = "step.py --model"
CAE = "cae_base_patch16_224_8k_vocab --drop_path 0.1 --clip_grad 3 --discrete_vae_type random_init"
# name: batch, our program without batch size, PyTorch's program
ROWS = {
    "mae16": (16, f"{STEP} mae_vit_base_patch16 --norm_pix_loss", "vitmae_pytorch.py"),
    "mae64": (64, f"{STEP} mae_vit_base_patch16 --norm_pix_loss", "vitmae_pytorch.py"),
    "cae": (8, f"{STEP} {CAE} --discrete_vae_hidden 8 --num_mask_patches 98", "peers_pytorch.py cae"),
    "finetune": (16, "classify_step.py finetune", "peers_pytorch.py finetune"),
    "evaluate": (16, "classify_step.py evaluate", "peers_pytorch.py evaluate"),
}


class Failed(Exception):
    """A program ended without a result; the message is its last output."""


def measure(command: list[str]) -> tuple[float, str]:
    """Run a program; return its images per second, without the time of preparing targets, and its versions.

    Raises:
        Failed: the program failed or printed no result.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "CUDA_"))}
    environment["PYTHONPATH"] = str(HERE.parents[1])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
    if done.returncode or not lines:
        output = f"{done.stdout}{done.stderr}"[-LONGEST_OUTPUT:]
        raise Failed(f"{' '.join(command)} failed with exit code {done.returncode}:\n{output}")
    result = json.loads(lines[-1])
    versions = " ".join(f"{name} {result[name]}" for name in ("torch", "transformers", "paddle") if name in result)
    if "seconds_preparing" not in result:
        return float(result["images_per_second"]), versions
    network = [a - b for a, b in zip(result["seconds_per_step"], result["seconds_preparing"], strict=True)]
    return float(result["batch_size"] / statistics.median(network)), versions


def commands(row: str, steps: int, torch_python: str) -> dict[str, list[str]]:
    """Return the command of each contestant."""
    batch, ours, theirs = ROWS[row]
    option = "--max_train_step" if ours.startswith(STEP) else "--steps"
    processes = len(os.sched_getaffinity(0))
    script, *words = ours.split()
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
    launcher += ["--log_dir", tempfile.mkdtemp()]

    def program(size: int) -> list[str]:
        return [str(HERE / script), *words, "--batch_size", str(size), option, str(steps)]

    script_torch, *words_torch = theirs.split()
    peer = [str(HERE / script_torch), *words_torch, "--batch_size", str(batch), "--steps", str(steps)]
    return {
        "PyTorch": [torch_python, *peer],
        "1 process": [sys.executable, *program(batch)],
        f"{processes} processes": [sys.executable, *launcher, *program(batch // processes)],
    }


def compare(row: str, rounds: int, steps: int, torch_python: str) -> bool:
    """Measure the contestants of a row in turns and print them; return False if one failed.

    A contestant that fails once is left out of the following rounds.
    """
    contestants = commands(row, steps, torch_python)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    versions, failures = {}, {}
    for _ in range(rounds):
        for name, command in contestants.items():
            if name in failures:
                continue
            try:
                rate, versions[name] = measure(command)
            except Failed as failure:
                failures[name] = str(failure)
            else:
                rates[name].append(rate)
    for name, values in rates.items():
        if name in failures:
            print(f"{row:<10}{name:<14}{'failed':>16}{'-':>8}  {failures[name]}", flush=True)
            continue
        median, peer = statistics.median(values), rates["PyTorch"]
        ratio = "-" if "PyTorch" in failures else f"{median / statistics.median(peer):.2f}"
        shown = " ".join(f"{rate:.2f}" for rate in values)
        print(f"{row:<10}{name:<14}{median:>16.2f}{ratio:>8}  {shown}  ({versions[name]})", flush=True)
    return not failures


def main() -> int:
    """Run all rows and print each; return 1 if a contestant failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed steps per turn")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    print(f"{'row':<10}{'contestant':<14}{'median images/s':>16}{'ratio':>8}  all rounds (versions)", flush=True)
    complete = [compare(row, args.rounds, args.steps, args.torch_python) for row in args.rows]
    return int(not all(complete))


if __name__ == "__main__":
    sys.exit(main())
