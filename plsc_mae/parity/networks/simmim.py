"""Comparison of SimMIM networks with the oracle; there is no comparison with microsoft/SimMIM."""

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
    """SimMIM network; the small network hides single patches."""

    task: SimMIMTask
    undecayed: ClassVar[Mapping[str, tuple[str, ...]]] = {"simmim": ("encoder.cls_token",)}

    @classmethod
    def small(cls, _trained: SimMIMConfig) -> dict[str, Any]:
        """Return the option that makes a mask cell one patch."""
        return {"mask_patch_size": 8}

    def outputs(self) -> dict[str, Tensor]:
        """Run the network and return its outputs and the loss."""
        images, mask = self.tensors()
        pred, latent = self.model(images, mask)
        target = self.model.target(images)
        loss = masked_l1(pred, target, mask, self.model.in_chans)
        return {"latent": latent, "pred": pred, "target": target, "mask": mask, "loss": loss}

    def loss(self) -> Tensor:
        """Return the loss of the batch, see `masked_l1`."""
        return self.outputs()["loss"]

    def oracle(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """Return the outputs of `oracle.simmim.forward`."""
        images, mask = self.arrays()
        options = simmim_oracle.SimMIMOptions(num_heads=self.model.encoder.blocks[0].attn.num_heads)
        return simmim_oracle.forward(parameters, images, mask, options)

    def objective(self) -> Objective:
        """Return the oracle's loss as a function of the parameters, with the signs of the errors held constant.

        The signs are those at the network's weights. The gradient there is the same, and finite differences do not
        cross the kinks of the absolute value.
        """
        own = self.oracle(self.parameters())
        signs, channels = np.sign(own["pred"] - own["target"]), self.model.in_chans

        def signed_loss(parameters: dict[str, Array]) -> float:
            found = self.oracle(parameters)
            errors = signs * (found["pred"] - found["target"])
            return float(simmim_oracle.masked_mean(errors, found["mask"], channels))

        return signed_loss

    def rate(self, update: int, *, updates: int, warmup: int, peak: float) -> float:
        """Return the learning rate of an update by the oracle's multistep schedule, see `Case.rate`."""
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
