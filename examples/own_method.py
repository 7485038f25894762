"""Pre-train by an objective of your own, here a denoising autoencoder: a `Task` is a network and its loss.

Run `python own_method.py` in an empty folder. Loop, schedule, checkpoints, resuming and logs are those of
`plsc-mae pretrain`, and `embed` reads the result, because the network keeps a VisionTransformer in `encoder`.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

import plsc_mae
from plsc_mae.data.normalize import Normalize
from plsc_mae.methods.base import StepOutput, Task
from plsc_mae.models.layers import patchify
from plsc_mae.models.vit import VisionTransformer

SIZE, PATCH = 32, 8


class Denoiser(nn.Layer):
    """A ViT that predicts the clean pixels of every patch from a noisy image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = VisionTransformer(img_size=SIZE, patch_size=PATCH, embed_dim=48, depth=2, num_heads=3)
        self.head = nn.Linear(48, PATCH * PATCH * 3)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Map normalized images [B, 3, H, W] to patches [B, L, P*P*3]."""
        return self.head(self.encoder.forward_features(images)[:, 1:])  # without the class token


class Denoising(Task):
    """Mean squared error between the predicted and the clean patches."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.model, self.noise, self.normalize = Denoiser(), noise, Normalize()

    def forward(self, batch: dict) -> StepOutput:
        """Return the loss of a batch {"image": uint8 [B, H, W, 3]}."""
        clean = self.normalize(batch["image"])
        noisy = clean + self.noise * paddle.randn(clean.shape)  # Paddle is seeded for every iteration: resumes exactly
        loss = ((self.model(noisy) - patchify(clean, PATCH)) ** 2).mean()
        return StepOutput(loss, {"loss": loss.detach()})


pixels = np.random.default_rng(0).integers(0, 256, (48, 4, 4, 3), np.uint8)
images = pixels.repeat(10, axis=1).repeat(10, axis=2)  # 48 mosaics of 40 x 40 pixels
paddle.seed(0)  # the weights of the task are drawn before the call
options = {"input_size": SIZE, "batch_size": 12, "epochs": 4, "lr": 1e-3, "num_workers": 0, "quiet": True}
run = plsc_mae.train(images, "own_method", task=Denoising(noise=0.5), **options)
print(f"loss {run.metrics['train_loss']:.3f} after {run.metrics['step']} updates: {run.checkpoint}")
