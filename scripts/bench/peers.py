"""Compare plsc_mae with PyTorch on this machine's CPU cores, in turns, and print a table of ratios.

    python scripts/bench/peers.py --torch_python PYTHON [--rounds 3] [--steps 4] [--rows mae16 mae64 ...]

Rows: MAE ViT-B/16 pre-training (Hugging Face's ViTMAE) with batches of 16 and 64, CAE-base with 98 hidden patches and
batch 8, fine-tuning and evaluation of ViT-B with batch 16 (written in PyTorch for this script). In every round PyTorch,
plsc_mae as one process, and plsc_mae as one process per core (the recommended form) run one after the other. CAE's
tokenizer is tiny and its time is left out. This script runs in the interpreter with Paddle; Linux only.
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


def measure(command: list[str]) -> float:
    """Run a program and return its images per second, without the time of preparing targets."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "CUDA_"))}
    environment["PYTHONPATH"] = str(HERE.parents[1])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    result = json.loads(lines[-1])
    if "seconds_preparing" not in result:
        return float(result["images_per_second"])
    network = [a - b for a, b in zip(result["seconds_per_step"], result["seconds_preparing"], strict=True)]
    return float(result["batch_size"] / statistics.median(network))


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


def main() -> None:
    """Run all rows and print the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed steps per turn")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    print(f"{'row':<10}{'contestant':<14}{'median images/s':>16}{'ratio':>8}  all rounds", flush=True)
    for row in args.rows:
        rates: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for name, command in commands(row, args.steps, args.torch_python).items():
                rates.setdefault(name, []).append(measure(command))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, values in rates.items():
            ratio = medians[name] / medians["PyTorch"]
            print(f"{row:<10}{name:<14}{medians[name]:>16.2f}{ratio:>8.2f}  {' '.join(f'{x:.2f}' for x in values)}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
