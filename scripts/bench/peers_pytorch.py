"""Time plain PyTorch steps of a ViT-B classifier or of CAE-base on the CPU, the other side of peers.py.

python scripts/bench/peers_pytorch.py {finetune,evaluate,cae} --batch_size 16 --steps 6

The networks are written after the papers (Dosovitskiy et al. 2021, Chen et al. 2022), for this measurement only: fused
projections, torch's scaled_dot_product_attention, fused AdamW. The last printed line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, PATCHES, PIXELS = 768, 12, 12, 196, 768
CLASSES, TOKENS, HIDDEN, DROP_PATH = 1000, 8192, 98, 0.1
WARMUP = 2


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention of projected tokens [B, N, D]; returns [B, M, D]."""
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero the branch of random samples in training."""
    if rate == 0 or not training:
        return x
    return x * (torch.rand(len(x), 1, 1) < 1 - rate) / (1 - rate)


class Block(nn.Module):
    """A pre-norm block, of self-attention or of cross-attention, with or without layer scale."""

    def __init__(self, rate: float, *, scale: bool = False, cross: bool = False) -> None:
        super().__init__()
        self.rate, self.cross = rate, cross
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        if cross:
            self.norm_k, self.norm_v = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=i != 1) for i in range(3))
        else:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.gammas = nn.ParameterList(torch.full((WIDTH,), 0.1) for _ in range(2)) if scale else [1.0, 1.0]

    def forward(self, x: Tensor, positions: Tensor | None = None, context: tuple[Tensor, Tensor] | None = None):
        """Return the tokens after both branches."""
        if self.cross:
            keys, values = torch.cat([context[0], x + positions], 1), torch.cat([context[1], x], 1)
            projected = self.q(self.norm1(x + positions)), self.k(self.norm_k(keys)), self.v(self.norm_v(values))
        else:
            projected = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + drop_path(self.proj(attend(*projected)) * self.gammas[0], self.rate, self.training)
        if self.cross:
            x = self.norm2(x)
            return x + drop_path(self.mlp(x) * self.gammas[1], self.rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)) * self.gammas[1], self.rate, self.training)


class Encoder(nn.Module):
    """A ViT-B without head."""

    def __init__(self, *, scale: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(PIXELS, WIDTH)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.register_buffer("positions", torch.randn(1, 1 + PATCHES, WIDTH))
        self.blocks = nn.ModuleList(Block(DROP_PATH * i / (DEPTH - 1), scale=scale) for i in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, patches: Tensor, ids: Tensor) -> Tensor:
        """Encode the patches [B, L, 768] at `ids` [B, K]; returns [B, 1 + K, D]."""
        x = self.embed(rows(patches, ids)) + rows(self.positions[:, 1:].expand(len(ids), -1, -1), ids)
        x = torch.cat([(self.cls + self.positions[:, :1]).expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def rows(x: Tensor, ids: Tensor) -> Tensor:
    """Gather rows [B, K, D] of x [B, N, D]."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def patchify(images: Tensor) -> Tensor:
    """Cut images [B, 3, 224, 224] into patches [B, 196, 768]."""
    return images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).reshape(len(images), PATCHES, PIXELS)


class Classifier(nn.Module):
    """A ViT-B classifier of the mean of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(WIDTH, CLASSES)
        self.encoder.norm = nn.Identity()
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 1000]."""
        ids = torch.arange(PATCHES).expand(len(images), -1)
        return self.head(self.norm(self.encoder(patchify(images), ids)[:, 1:].mean(1)))


class CAE(nn.Module):
    """CAE-base: 12 encoder blocks, 4 of the regressor, 4 of the decoder."""

    def __init__(self) -> None:
        super().__init__()
        rates = [DROP_PATH * i / 3 for i in range(4)]
        self.encoder = Encoder(scale=True)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.regressor = nn.ModuleList(Block(rate, scale=True, cross=True) for rate in rates)
        self.decoder = nn.ModuleList(Block(rate, scale=True) for rate in rates)
        self.norm_r, self.norm_d = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return the loss for random masks and tokens [B * 98] of the hidden patches."""
        patches = patchify(images)
        order = torch.rand(len(images), PATCHES).argsort(1)
        hidden, visible = order[:, :HIDDEN].sort(1).values, order[:, HIDDEN:].sort(1).values
        table = self.encoder.positions[:, 1:].expand(len(images), -1, -1)
        seen, positions = self.encoder(patches, visible)[:, 1:], rows(table, hidden)
        context = (seen + rows(table, visible), seen)
        x = self.mask_token.expand(len(images), HIDDEN, -1)
        for block in self.regressor:
            x = block(x, positions, context)
        latent = self.norm_r(x)
        x = latent + positions
        for block in self.decoder:
            x = block(x)
        with torch.no_grad():
            target = self.encoder(patches, hidden)[:, 1:]
        logits = self.head(self.norm_d(x)).flatten(0, 1)
        return F.cross_entropy(logits, tokens) + 2 * F.mse_loss(latent, target)


def build(kind: str, batch: int) -> Callable[[], None]:
    """Return one step of a kind."""
    images = torch.randn(batch, 3, 224, 224)
    labels, tokens = torch.randint(CLASSES, (batch,)), torch.randint(TOKENS, (batch * HIDDEN,))
    if kind == "evaluate":
        model = Classifier().eval()

        def evaluate() -> None:
            with torch.no_grad():
                model(images).topk(5)

        return evaluate
    network = CAE() if kind == "cae" else Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True)

    def train() -> None:
        optimizer.zero_grad()
        if kind == "cae":
            loss = network(images, tokens)
        else:
            loss = F.cross_entropy(network(images), labels, label_smoothing=0.1)
        loss.backward()
        if kind == "cae":
            nn.utils.clip_grad_norm_(network.parameters(), 3.0)
        optimizer.step()

    return train


def main() -> None:
    """Time the steps and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["finetune", "evaluate", "cae"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="timed steps")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    step, seconds = build(args.kind, args.batch_size), []
    for _ in range(WARMUP + args.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    rate = args.batch_size / statistics.median(seconds[WARMUP:])
    print(json.dumps({"name": "PyTorch", "images_per_second": rate, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
