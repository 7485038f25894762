"""BUPT-PRIV/MAE-priv: pre-training with a class token by choice, classifiers with one where it is classified."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import INCEPTION_MEAN, INCEPTION_STD, random_resized_crop_box
from plsc_mae.errors import ConfigError
from plsc_mae.methods.base import ClassifierRecipe
from plsc_mae.methods.mae import BeitStyleMAE
from plsc_mae.weights.dialects import autoencoder


class MAEPriv(BeitStyleMAE):
    """Its pre-training (tools/run_pretraining.py): one mask for a batch by default, bilinear crops."""

    foreign = MappingProxyType({"mae_priv": autoencoder.infer_arguments})
    dialect = "mae_priv"

    def switches(self, config: Any) -> dict[str, Any]:
        """The class token."""
        return {"class_token": config.class_token}

    def shared_mask(self, config: Any) -> bool:
        """One for the batch unless it is told otherwise."""
        return bool(config.batched_shuffle)

    def hflip(self, config: Any) -> float:
        """Probability of a horizontal flip."""
        return float(config.hflip)

    def normalize(self, config: Any) -> Normalize:
        """ImageNet's statistics, or 0.5 and 0.5."""
        return Normalize(INCEPTION_MEAN, INCEPTION_STD) if config.imagenet_inception_mean_and_std else Normalize()


def _classifier_arguments(config: Any) -> dict[str, Any]:
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
            f"--linear_type {config.probe}: MAE-priv probes by a batch norm in the place of the final norm only; leave "
            "it out, or take --method cae or mae"
        )
    return arguments | {"probe": "raw"}


METHOD = MAEPriv()
CLASSIFIER = ClassifierRecipe(_classifier_arguments, probe_crop=random_resized_crop_box)
