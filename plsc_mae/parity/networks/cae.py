"""Comparison of context autoencoders with the oracle and Atten4Vis/CAE."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from paddle import Tensor

from plsc_mae.config.cae import CAEConfig
from plsc_mae.errors import flag
from plsc_mae.losses import alignment_loss
from plsc_mae.methods.cae import CAETask
from plsc_mae.models.registry import arguments_of, find_variant
from plsc_mae.parity.cases import Case, NumPy, Objective
from plsc_mae.parity.oracle import cae as cae_oracle
from plsc_mae.parity.oracle.layers import Array
from plsc_mae.parity.originals import Original
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import recognize

# Values that Atten4Vis/CAE hard-codes (models/modeling_cae.py).
CAE_FIXED = {"img_size": (224, 224), "decoder_num_heads": 12, "decoder_num_classes": 8192}


class CAECase(Case[CAEConfig]):
    """Context autoencoder that predicts classes.

    The target classes are random: the images are noise, so a dVAE's tokens would carry no more meaning. Regressor and
    decoder of the small network have two blocks each. With a bridge their width is 24, without one it is the encoder's.
    """

    task: CAETask

    @classmethod
    def without_files(cls, trained: CAEConfig) -> CAEConfig:
        """Return options with `target_mode` "random", whose target classes need no dVAE file.

        The network stays the same. The alignment loss is always the mean squared error, the only one that the oracle
        has. If masks consist of blocks and no option sets the number of hidden patches, a random half is hidden.
        """
        changes: dict[str, Any] = {"target_mode": "random", "discrete_vae_type": "to_tensor", "target_path": None}
        if trained.mask_generator == "block" and trained.num_mask_patches is None:
            changes |= {"mask_generator": "random", "ratio_mask_patches": 0.5}
        return dataclasses.replace(trained, **changes, dual_loss_type="mse", vis_freq=0)

    @classmethod
    def replaced_options(cls, trained: CAEConfig) -> str:
        """Return a clause about the alignment loss if it is not the mean squared error, else ""."""
        if trained.dual_loss_type == "mse":
            return ""
        return (
            "the alignment loss compared here is the mean squared error, not that of "
            f"{flag('dual_loss_type')} {trained.dual_loss_type}, which the oracle lacks"
        )

    @classmethod
    def of_weights(cls, trained: CAEConfig, stored: Checkpoint) -> CAEConfig:
        """Return `trained` with the checkpoint's number of classes, which is the length of the head's bias.

        If the checkpoint has no such bias, `trained` is returned unchanged.

        Raises:
            CheckpointError: no dialect recognizes the tensors.
        """
        bias = recognize(stored.model, str(stored.path)).foreign_name("decoder.head.bias")
        if bias not in stored.model:
            return trained
        return dataclasses.replace(trained, decoder_num_classes=len(stored.model[bias]))

    @classmethod
    def small(cls, trained: CAEConfig) -> dict[str, Any]:
        """Return the sizes of the small regressor and decoder, and options that hide 7 patches."""
        width = arguments_of(trained.model, embed_dim=trained.embed_dim)["embed_dim"]
        return {
            "decoder_embed_dim": 32 if trained.decoder_embed_dim == width else 24,
            "decoder_num_heads": 4,
            "decoder_num_classes": 32,
            "regressor_depth": 2,
            "num_decoder_self_attention": 2,
            "mask_generator": "block",
            "ratio_mask_patches": None,
            "num_mask_patches": 7,
            "min_mask_patches_per_block": 2,
            "max_mask_patches_per_block": None,
            "second_input_size": None,
        }

    def outputs(self) -> dict[str, Tensor]:
        """Run the network and return its outputs, both losses and their sum."""
        images, mask, labels = self.tensors()
        out = self.model(images, mask)
        main, align = self._losses(out, labels)
        tokens = {"encoder.norm": out.encoded, "latent": out.latent, "logits": out.logits}
        tokens["alignment.target"] = out.latent_target
        return {**tokens, "loss_main": main, "loss_align": align, "loss": main + align}

    def loss(self) -> Tensor:
        """Return the sum of both losses."""
        images, mask, labels = self.tensors()
        main, align = self._losses(self.model(images, mask), labels)
        return main + align

    def oracle(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """Return the outputs of `oracle.cae.forward`."""
        images, mask, labels = self.arrays()
        return cae_oracle.forward(parameters, images, mask, labels, self.options())

    def objective(self) -> Objective:
        """Return the oracle's loss as a function of the parameters, with a constant alignment target."""
        images, mask, labels = self.arrays()
        options = self.options()
        target = self.oracle(self.parameters())["alignment.target"]
        forward = cae_oracle.forward
        return lambda parameters: float(forward(parameters, images, mask, labels, options, target)["loss"])

    def options(self) -> cae_oracle.CAEOptions:
        """Return the oracle's options for this network."""
        return cae_oracle.CAEOptions(
            num_heads=self.model.encoder.blocks[0].attn.num_heads,
            decoder_num_heads=self.model.regressor.blocks[0].cross_attn.num_heads,
            align_loss_weight=self.config.dual_loss_weight,
            positions="given" if self.config.abs_pos_emb else "row first",
        )

    def _losses(self, out: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        main, _ = self.task.target.loss(out.logits, labels)
        return main, self.config.dual_loss_weight * alignment_loss(out.latent, out.latent_target)

    def _draw_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, NumPy]:
        patches, classes = self.model.encoder.num_patches, self.model.decoder.head.weight.shape[1]
        hidden = np.arange(patches) < self.task.num_masked
        mask = np.stack([rng.permutation(hidden) for _ in range(batch_size)])
        labels = rng.integers(0, classes, batch_size * self.task.num_masked)
        return {"images": self._draw_images(batch_size, rng), "mask": mask, "labels": labels}


def _cae_settings(case: CAECase) -> dict[str, Any]:
    config, model = case.config, case.model
    args = {
        "model_type": "cae",
        "regressor_depth": len(model.regressor.blocks),
        "decoder_depth": len(model.decoder.blocks),
        "decoder_embed_dim": model.mask_token.shape[-1],
    }
    return {
        "name": config.model,
        "args": args,
        "init_values": config.layer_scale_init_value,
        "align_loss_weight": config.dual_loss_weight,
    }


def _unsupported_reason(case: CAECase) -> str:
    """Return "cannot be built by ..." with the reason if Atten4Vis/CAE cannot build the network, else "".

    That code builds the published encoders only, with fixed numbers of decoder heads and classes.
    """
    published = find_variant(case.config.model).arguments
    model, encoder = case.model, case.model.encoder
    found = {
        "patch_size": model.patch_size,
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": encoder.blocks[0].attn.num_heads,
        "img_size": tuple(encoder.img_size),
        "decoder_num_heads": model.regressor.blocks[0].cross_attn.num_heads,
        "decoder_num_classes": model.decoder.head.weight.shape[1],
    }
    for name, value in {**CAE_FIXED, **published}.items():
        if found[name] != value:
            return f"cannot be built by the code of Atten4Vis/CAE: {name} is {found[name]}, expected {value}"
    if model.dual_path_ema > 0 or case.config.abs_pos_emb:
        lacks = f"no {flag('dual_path_ema')} and no {flag('abs_pos_emb')}"
        return f"cannot be built by the code of Atten4Vis/CAE, which has {lacks}"
    return ""


CASE = CAECase
ORIGINALS = (
    Original(
        title="Atten4Vis/CAE",
        program="cae",
        dialect="cae",
        marker="models/modeling_cae.py",
        case=CAECase,
        settings=_cae_settings,
        unsupported_reason=_unsupported_reason,
    ),
)
