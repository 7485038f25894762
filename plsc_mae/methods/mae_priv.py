"""BUPT-PRIV/MAE-priv: pre-training with an optional class token, and classifiers of class token or pooled patches."""

from __future__ import annotations

from typing import Any

from plsc_mae.config.mae_priv import MAEPrivConfig, MAEPrivFinetuneConfig, MAEPrivLinprobeConfig
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import INCEPTION_MEAN, INCEPTION_STD, random_resized_crop_box
from plsc_mae.errors import ConfigError
from plsc_mae.methods.contract import ClassifierRecipe, Sizes
from plsc_mae.methods.mae import BeitStyleMAE


class MAEPriv(BeitStyleMAE[MAEPrivConfig]):
    """Pre-training as in tools/run_pretraining.py: by default one mask per batch, bilinear crops."""

    config_class = MAEPrivConfig
    dialects = frozenset({"mae_priv"})
    dialect = "mae_priv"
    bridge_bias = True

    def switches(self, config: MAEPrivConfig) -> dict[str, Any]:
        """Return the network argument "class_token": True if the encoder has a class token."""
        return {"class_token": config.class_token}

    def shared_mask(self, config: MAEPrivConfig) -> bool:
        """Return whether all images of a batch have the same mask."""
        return config.batched_shuffle

    def hflip(self, config: MAEPrivConfig) -> float:
        """Return the probability of a horizontal flip."""
        return config.hflip

    def normalize(self, config: MAEPrivConfig) -> Normalize:
        """Return the layer that normalizes by --mean and --std.

        Without them, mean and std are 0.5 with --imagenet_inception_mean_and_std, else ImageNet's.
        """
        if config.mean is None and config.imagenet_inception_mean_and_std:
            return Normalize.for_channels(config.channels, INCEPTION_MEAN, INCEPTION_STD)
        return super().normalize(config)


def _classifier_arguments(config: MAEPrivFinetuneConfig | MAEPrivLinprobeConfig) -> dict[str, Any]:
    arguments = {
        "global_pool": config.global_pool,
        "class_token": not config.global_pool,
        "positions": "row first",
        "init_scale": config.init_scale,
        "drop_rate": config.drop,
        "attn_drop_rate": config.attn_drop_rate,
    }
    if config.probe == "none":
        return arguments | {"fc_norm": True}
    if config.probe != "standard":
        raise ConfigError(
            f"--linear_type {config.probe}: MAE-priv has one kind of probe, with a batch norm instead of the final "
            "norm; leave --linear_type out, or use --method cae or mae"
        )
    return arguments | {"probe": "raw"}


def _classifier_flags(encoder: Sizes) -> str:
    return " --use_cls_token" if encoder["class_token"] else " --global_pool"


METHOD = MAEPriv()
CLASSIFIER = ClassifierRecipe(
    _classifier_arguments,
    models="vit_*_224",
    base_model="vit_base_patch16_224",
    flags=_classifier_flags,
    probe_crop=random_resized_crop_box,
)
