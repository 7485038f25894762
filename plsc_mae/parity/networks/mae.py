"""Comparison of masked autoencoders with the oracle, Hugging Face transformers and facebookresearch/mae."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from paddle import Tensor

from plsc_mae.config.mae import AutoencoderConfig, MAEConfig
from plsc_mae.config.mae_priv import MAEPrivConfig
from plsc_mae.config.training import NormOptions
from plsc_mae.models.mae import hidden_patch_loss
from plsc_mae.parity.cases import NORM_EPS, Case, NumPy, Objective
from plsc_mae.parity.oracle import mae as mae_oracle
from plsc_mae.parity.oracle.layers import Array
from plsc_mae.parity.originals import HUGGINGFACE, Original


class MAECase(Case[AutoencoderConfig]):
    """Masked autoencoder of MAE, MAE-priv or MAE-pytorch; the small network has one decoder block of width 16."""

    undecayed = mae_oracle.UNDECAYED

    @classmethod
    def small(cls, _trained: AutoencoderConfig) -> dict[str, Any]:
        """Return the sizes of the small decoder."""
        return {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}

    def outputs(self) -> dict[str, Tensor]:
        """Run the network and return its outputs, with predictions and targets of all patches."""
        model, (images, noise) = self.model, self.tensors()
        out = model(images, noise, self.config.mask_ratio)
        target = model.target(model.patchify(images))
        # As in the originals, the oracle drops a class token before the final norm if it is not decoded.
        decoded = out.latent[:, model.encoder.num_prefix_tokens - model.decoder.num_prefix_tokens :]
        return {"latent": decoded, "pred": out.pred, "target": target, "mask": out.mask, "loss": out.loss}

    def loss(self) -> Tensor:
        """Return the loss; the decoder predicts the hidden patches only, as in training."""
        images, noise = self.tensors()
        hidden = self.model.predict_hidden(images, self.model.random_masks(noise, self.config.mask_ratio))
        return hidden_patch_loss(hidden.pred, hidden.target)

    def oracle(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """Return the outputs of `oracle.mae.forward`."""
        images, noise = self.arrays()
        return mae_oracle.forward(parameters, images, noise, self.options())

    def objective(self) -> Objective:
        """Return the oracle's loss as a function of the parameters; no value needs to stay constant."""
        return lambda parameters: float(self.oracle(parameters)["loss"])

    def options(self) -> mae_oracle.MAEOptions:
        """Return the oracle's options for this implementation.

        Except for the numbers of heads, they are derived from the training options and not from the network, so that
        the comparison reveals a wrong setting of the network.
        """
        config = self.config
        switches = dict(mae_oracle.IMPLEMENTATIONS[config.method])
        if not config.norm_pix_loss:
            switches["pixel_norm"] = "none"
        if isinstance(config, MAEPrivConfig):
            switches["class_token"] = config.class_token
        if isinstance(config, MAEConfig) and config.train_positions:
            switches["positions"] = "given"
        return mae_oracle.MAEOptions(
            num_heads=self.model.encoder.blocks[0].attn.num_heads,
            decoder_num_heads=self.model.decoder.blocks[0].attn.num_heads,
            mask_ratio=config.mask_ratio,
            norm_eps=(isinstance(config, NormOptions) and config.norm_eps) or NORM_EPS,
            **switches,
        )

    def _draw_batch(self, batch_size: int, rng: np.random.Generator) -> dict[str, NumPy]:
        noise = rng.random((batch_size, self.model.encoder.num_patches), np.float32)
        return {"images": self._draw_images(batch_size, rng), "noise": noise}


def _mae_sizes(case: MAECase) -> dict[str, Any]:
    """Return the constructor arguments of `MaskedAutoencoderViT` in facebookresearch/mae."""
    encoder, decoder = case.model.encoder, case.model.decoder
    kernel = encoder.patch_embed.proj.weight
    return {
        "img_size": encoder.img_size[0],
        "patch_size": kernel.shape[-1],
        "in_chans": kernel.shape[1],
        "embed_dim": kernel.shape[0],
        "depth": len(encoder.blocks),
        "num_heads": encoder.blocks[0].attn.num_heads,
        "decoder_embed_dim": decoder.embed.weight.shape[1],
        "decoder_depth": len(decoder.blocks),
        "decoder_num_heads": decoder.blocks[0].attn.num_heads,
        "mlp_ratio": encoder.blocks[0].mlp.fc1.weight.shape[1] / kernel.shape[0],
        "norm_pix_loss": case.model.norm_pix_loss,
    }


def _facebook_settings(case: MAECase) -> dict[str, Any]:
    return {"sizes": _mae_sizes(case), "mask_ratio": case.config.mask_ratio}


def _huggingface_settings(case: MAECase) -> dict[str, Any]:
    sizes = _mae_sizes(case)
    config = {
        "image_size": sizes["img_size"],
        "patch_size": sizes["patch_size"],
        "num_channels": sizes["in_chans"],
        "hidden_size": sizes["embed_dim"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["num_heads"],
        "intermediate_size": round(sizes["embed_dim"] * sizes["mlp_ratio"]),
        "decoder_hidden_size": sizes["decoder_embed_dim"],
        "decoder_num_hidden_layers": sizes["decoder_depth"],
        "decoder_num_attention_heads": sizes["decoder_num_heads"],
        "decoder_intermediate_size": round(sizes["decoder_embed_dim"] * sizes["mlp_ratio"]),
        "mask_ratio": case.config.mask_ratio,
        "norm_pix_loss": sizes["norm_pix_loss"],
        "layer_norm_eps": NORM_EPS,
    }
    return {"config": config}


def _unsupported_reason(case: MAECase, code: str) -> str:
    """Return "cannot be built by ..." with the reason if `code` cannot build the network, else "".

    `code` is the name of facebookresearch/mae or of its port.
    """
    options = case.options()
    official = mae_oracle.MAEOptions(
        num_heads=options.num_heads,
        decoder_num_heads=options.decoder_num_heads,
        mask_ratio=options.mask_ratio,
        pixel_norm="patch" if case.config.norm_pix_loss else "none",
    )
    height, width = case.model.encoder.img_size
    if options != official or height != width:
        return (
            f"cannot be built by the code of {code}: that code supports other sizes, but only MAE's own options and "
            "square images"
        )
    return ""


CASE = MAECase
ORIGINALS = (
    Original(
        title="Hugging Face transformers",
        program=HUGGINGFACE,
        dialect="huggingface",
        marker="",
        case=MAECase,
        settings=_huggingface_settings,
        unsupported_reason=functools.partial(_unsupported_reason, code="Hugging Face transformers"),
    ),
    Original(
        title="facebookresearch/mae",
        program="facebook",
        dialect="facebook",
        marker="models_mae.py",
        case=MAECase,
        settings=_facebook_settings,
        unsupported_reason=functools.partial(_unsupported_reason, code="facebookresearch/mae"),
    ),
)
