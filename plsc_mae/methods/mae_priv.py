"""BUPT-PRIV/MAE-priv: classifiers on fixed positions, with a class token where one is classified."""

from __future__ import annotations

from typing import Any

from plsc_mae.data.transforms import random_resized_crop_box
from plsc_mae.errors import ConfigError
from plsc_mae.methods.base import ClassifierRecipe


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


CLASSIFIER = ClassifierRecipe(_classifier_arguments, probe_crop=random_resized_crop_box)
