"""pengzhiliang/MAE-pytorch: pre-training and classifiers without class token, with one-dimensional positions."""

from __future__ import annotations

from typing import Any

from plsc_mae.config.mae_pytorch import MAEPytorchConfig, MAEPytorchFinetuneConfig
from plsc_mae.data.transforms import random_resized_crop_box
from plsc_mae.methods.contract import ClassifierRecipe
from plsc_mae.methods.mae import BeitStyleMAE


class MAEPytorch(BeitStyleMAE[MAEPytorchConfig]):
    """Pre-training as in run_mae_pretraining.py: targets normalized by channel, bilinear crops, no flip."""

    config_class = MAEPytorchConfig
    dialects = frozenset({"mae_pytorch"})
    dialect = "mae_pytorch"
    bridge_bias = False

    def hflip(self, config: MAEPytorchConfig) -> float:
        """Return 0: images are not flipped."""
        return 0.0


def _classifier_arguments(config: MAEPytorchFinetuneConfig) -> dict[str, Any]:
    return {
        "global_pool": config.global_pool,
        "init_scale": config.init_scale,
        "drop_rate": config.drop,
        "attn_drop_rate": config.attn_drop_rate,
    }


METHOD = MAEPytorch()
CLASSIFIER = ClassifierRecipe(
    _classifier_arguments, models="vit_*_224", base_model="vit_base_patch16_224", probe_crop=random_resized_crop_box
)
