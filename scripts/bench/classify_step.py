"""Time fine-tuning steps or evaluation of a ViT-B classifier on random images, our side of peers.py.

python scripts/bench/classify_step.py {finetune,evaluate} --batch_size 16 --steps 6

Paddle's launcher runs it in several processes, --batch_size images each. The last printed line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

import plsc_mae  # noqa: F401  before Paddle, for the CPU settings

import paddle  # isort: skip

from plsc_mae.config.mae import MAEFinetuneConfig
from plsc_mae.methods.classify import ClassifyTask, build_classifier, build_normalize
from plsc_mae.optim import Rates
from plsc_mae.train.setup import build_stepper, training_world

CLASSES, WARMUP = 1000, 2


def main() -> None:
    """Time the steps and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["finetune", "evaluate"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="timed steps")
    args = parser.parse_args()
    config = MAEFinetuneConfig(model="vit_base_patch16", batch_size=args.batch_size, device="cpu")
    world = training_world(config)
    paddle.seed(0)
    task = ClassifyTask(build_classifier(config, CLASSES), build_normalize(config), config, CLASSES)
    rng = np.random.default_rng(world.rank)
    batch = {
        "image": paddle.to_tensor(rng.integers(0, 256, (args.batch_size, 224, 224, 3), np.uint8)),
        "label": paddle.to_tensor(rng.integers(0, CLASSES, args.batch_size)),
    }
    stepper = build_stepper(task, config, world) if args.kind == "finetune" else None
    if stepper is None:
        task.eval()
    else:
        stepper.set_rates(Rates(1e-4, config.weight_decay))
        task.train()
    seconds = []
    for _ in range(WARMUP + args.steps):
        start = time.perf_counter()
        if stepper is None:
            with paddle.no_grad():
                task.scores(batch)["acc5"].numpy()
        else:
            stepper.forward_backward(task.prepare(batch))
            stepper.apply_update()
        seconds.append(time.perf_counter() - start)
    rate = args.batch_size * world.size / statistics.median(seconds[WARMUP:])
    if world.is_main:
        result = {"name": f"plsc_mae, {world}", "images_per_second": rate, "paddle": paddle.__version__}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
