"""Time one MAE ViT-B/16 pre-training step of Hugging Face's ViTMAEForPreTraining on PyTorch, on the CPU, in fp32.

python scripts/bench/vitmae_pytorch.py --batch_size 16 --steps 6

This is the PyTorch side of compare_pytorch.sh. It needs torch and transformers, but not this package. The last printed
line is one JSON object with the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import torch
import transformers
from transformers import ViTMAEConfig, ViTMAEForPreTraining


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0 is one per usable core")
    parser.add_argument("--attention", choices=["eager", "sdpa"], help="implementation [chosen by the library]")
    parser.add_argument("--adamw", choices=["fused", "loop"], default="fused", help="PyTorch's implementation of AdamW")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps {args.steps}: at least one step must be timed")
    return args


def build_model(attention: str | None) -> ViTMAEForPreTraining:
    """Build MAE ViT-B/16 with random weights, the paper's masking ratio and normalized pixel targets."""
    config = ViTMAEConfig(mask_ratio=0.75, norm_pix_loss=True, attn_implementation=attention)
    return ViTMAEForPreTraining(config).train()


def build_optimizer(model: ViTMAEForPreTraining, fused: bool) -> torch.optim.AdamW:
    # On the CPU torch.optim loops over the parameters unless fused=True, and the loop is several times slower.
    # transformers.Trainer sets fused=True, so this is the speed that its users see.
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=fused)


def time_steps(
    model: ViTMAEForPreTraining, optimizer: torch.optim.Optimizer, images: torch.Tensor, warmup: int, steps: int
) -> list[float]:
    """Return the seconds of each timed step (zero_grad, forward, backward, optimizer). Every step draws new masks."""
    seconds = []
    for step in range(warmup + steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(images).loss
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        print(f"step {step - warmup + 1:3d}  {seconds[-1]:.3f} s  loss {loss.item():.4f}", flush=True)
    return seconds[warmup:]


def main() -> None:
    args = parse_args()
    # Always set the number: OMP_NUM_THREADS or MKL_NUM_THREADS may have lowered the default.
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = build_model(args.attention)
    name = f"PyTorch ViTMAEForPreTraining ({model.config._attn_implementation} attention, {args.adamw} AdamW)"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    images = torch.randn(args.batch_size, 3, 224, 224)
    optimizer = build_optimizer(model, fused=args.adamw == "fused")
    seconds = time_steps(model, optimizer, images, args.warmup, args.steps)
    images_per_second = args.batch_size / statistics.median(seconds)
    print(f"{images_per_second:.2f} images/s (median step), {torch.get_num_threads()} threads")
    result = {
        "name": name,
        "images_per_second": images_per_second,
        "seconds_per_step": seconds,
        "batch_size": args.batch_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
