"""SimMIM beside its oracle. No original is compared: microsoft/SimMIM has not been run for this suite."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from paddle import Tensor

from plsc_mae.config.simmim import SimMIMConfig
from plsc_mae.methods.simmim import SimMIMTask
from plsc_mae.models.simmim import masked_l1
from plsc_mae.parity.cases import Case, NumPy, Objective
from plsc_mae.parity.oracle import simmim as simmim_oracle
from plsc_mae.parity.oracle.layers import Array
from plsc_mae.parity.originals import Original


class SimMIMCase(Case[SimMIMConfig]):
    """A SimMIM network; the small one hides single patches."""

    task: SimMIMTask
    undecayed: ClassVar[Mapping[str, tuple[str, ...]]] = {"simmim": ("encoder.cls_token",)}

    @classmethod
    def small(cls, _trained: SimMIMConfig) -> dict[str, Any]:
        """Return cells of one patch."""
        return {"mask_patch_size": 8}

    def outputs(self) -> dict[str, Tensor]:
        """Run the network."""
        images, mask = self.tensors()
        pred, latent = self.model(images, mask)
        target = self.model.target(images)
        loss = masked_l1(pred, target, mask, self.model.in_chans)
        return {"latent": latent, "pred": pred, "target": target, "mask": mask, "loss": loss}

    def loss(self) -> Tensor:
        """Compute the loss."""
        return self.outputs()["loss"]

    def oracle(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """Run `oracle.simmim.forward`."""
        images, mask = self.arrays()
        options = simmim_oracle.SimMIMOptions(num_heads=self.model.encoder.blocks[0].attn.num_heads)
        return simmim_oracle.forward(parameters, images, mask, options)

    def objective(self) -> Objective:
        """Return the oracle's loss with the signs of all errors held at the network's own.

        The gradient is the same, and the slopes do not cross the kinks of the absolute value.
        """
        own = self.oracle(self.parameters())
        signs, channels = np.sign(own["pred"] - own["target"]), self.model.in_chans

        def signed_loss(parameters: dict[str, Array]) -> float:
            found = self.oracle(parameters)
            errors = signs * (found["pred"] - found["target"])
            return float(simmim_oracle.masked_mean(errors, found["mask"], channels))

        return signed_loss

    def rate(self, update: int, *, updates: int, warmup: int, peak: float) -> float:
        """Return the rate of the multistep schedule."""
        run = dataclasses.replace(self.config, epochs=updates, warmup_epochs=float(warmup))
        return simmim_oracle.multistep_rate(
            update,
            peak=peak,
            warmup=warmup,
            warmup_rate=run.warmup_lr,
            milestones=run.drop_epochs,
            factor=run.lr_gamma,
        )

    def _draw_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, NumPy]:
        mask = np.stack([self.task.masks(rng).reshape(-1) for _ in range(batch_size)])
        return {"images": self._draw_images(batch_size, rng), "mask": mask}


CASE = SimMIMCase
ORIGINALS: tuple[Original, ...] = ()
