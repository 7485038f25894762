"""Masked autoencoder pre-training (He et al. 2022; facebookresearch/mae main_pretrain.py, engine_pretrain.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import paddle

from plsc_mae.analysis.reconstruct import PatchStats, redraw
from plsc_mae.config import MAEConfig
from plsc_mae.data.decode import SourceImage
from plsc_mae.data.device import Normalize
from plsc_mae.data.transforms import RandomCropFlip, ResizeCentreCrop, Sample
from plsc_mae.errors import ConfigError
from plsc_mae.masking import num_visible
from plsc_mae.methods.base import Batch, ClassifierRecipe, Method, Pictures, StepOutput, Task, visible_mean
from plsc_mae.models import registry
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.registry import arguments_of, create_model, find_variant, require_network
from plsc_mae.models.vit import VisionTransformer, patch_grid
from plsc_mae.weights.dialects import facebook

ENCODER_OPTIONS = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path")
NETWORK_OPTIONS = (
    *ENCODER_OPTIONS,
    "decoder_embed_dim",
    "decoder_depth",
    "decoder_num_heads",
    "norm_pix_loss",
)


class MAETask(Task):
    """Redraw hidden patches; the mask comes with the sample as noise.

    Args:
        model: the autoencoder.
        mask_ratio: share of hidden patches.
    """

    def __init__(self, model: MaskedAutoencoder, mask_ratio: float) -> None:
        super().__init__()
        self.model = model
        self.normalize = Normalize()
        self.mask_ratio = mask_ratio

    def forward(self, batch: Batch) -> StepOutput:
        """Loss of a batch of {"image": uint8 [B, H, W, 3], "noise": float32 [B, L]}."""
        images = self.normalize(batch["image"])
        out = self.model(images, batch["noise"], self.mask_ratio, loss_only=True)
        features = visible_mean(out.latent) if self.gives_features else None
        return StepOutput(out.loss, {"loss": out.loss.detach()}, features)

    def pictures(self, batch: Batch, patch_stats: PatchStats | None = None) -> Pictures:
        """Original, masked, reconstruction, and reconstruction with the visible patches put back."""
        if patch_stats is not None and not self.model.norm_pix_loss:
            raise ConfigError("--patch_stats is for models trained with norm_pix_loss; this one predicts pixels")
        with paddle.no_grad():
            images = self.normalize(batch["image"])
            drawn = redraw(self.model, images, batch["noise"], self.mask_ratio, patch_stats or "original")
            return {
                label: (self.normalize.denormalize(x).clip(0, 1) * 255)
                .round()
                .astype("uint8")
                .numpy()
                .transpose(0, 2, 3, 1)
                for label, x in drawn.items()
            }


class WithNoise:
    """A transform that adds the noise [L] behind the sample's mask to what another transform makes."""

    def __init__(self, transform: Callable[[SourceImage, np.random.Generator], Sample], num_patches: int) -> None:
        self.transform = transform
        self.num_patches = num_patches

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Draw crop and flip first, then the noise."""
        sample = self.transform(image, rng)
        return {**sample, "noise": rng.random(self.num_patches, dtype=np.float32)}


class MAE(Method):
    """The masked autoencoder."""

    foreign = MappingProxyType(dict.fromkeys(("facebook", "plsc"), facebook.infer_arguments))

    def build_task(self, config: MAEConfig) -> MAETask:
        """Build the network that the config names, with its overrides."""
        require_network(config.model, registry.MAE)
        self._check_mask(config)
        overrides = {name: getattr(config, name) for name in NETWORK_OPTIONS}
        model = create_model(config.model, img_size=config.image_size, **overrides)
        return MAETask(model, config.mask_ratio)

    def build_encoder(self, config: MAEConfig) -> VisionTransformer:
        """Build the encoder of the network that the config names."""
        sizes = arguments_of(config.model, **{name: getattr(config, name) for name in ENCODER_OPTIONS})
        return VisionTransformer(config.image_size, **sizes)

    def train_transform(self, config: MAEConfig) -> WithNoise:
        """Random resized crop, bicubic, flipped half the time."""
        return WithNoise(RandomCropFlip(config.image_size, scale=config.crop_scale), self._num_patches(config))

    def view_transform(self, config: MAEConfig) -> WithNoise:
        """Shorter side to the input size, then the centre."""
        return WithNoise(ResizeCentreCrop(config.image_size, max(config.image_size)), self._num_patches(config))

    def config_of(self, arguments: dict[str, Any]) -> MAEConfig:
        """Make a config from `MaskedAutoencoder` arguments."""
        side = arguments["img_size"]
        sizes = {name: value for name, value in arguments.items() if name in NETWORK_OPTIONS and value is not None}
        return MAEConfig(model="mae_vit_base_patch16", input_size=(side, side), **sizes)

    def training_macs(self, config: MAEConfig, task: Task) -> int:
        """Count for the visible share that this run encodes."""
        return 3 * task.model.forward_macs(config.mask_ratio)

    def _check_mask(self, config: MAEConfig) -> None:
        patches = self._num_patches(config)
        visible = num_visible(patches, config.mask_ratio)
        if not 0 < visible < patches:
            raise ConfigError(
                f"mask_ratio {config.mask_ratio} leaves {visible} of {patches} patches visible; at least one must be "
                "visible and one hidden"
            )

    @staticmethod
    def _num_patches(config: MAEConfig) -> int:
        patch_size = config.patch_size or find_variant(config.model).arguments["patch_size"]
        rows, columns = patch_grid(config.image_size, patch_size)
        return rows * columns


METHOD = MAE()
# Fine-tuning draws the head's weights close to 0 after loading (facebookresearch/mae main_finetune.py).
CLASSIFIER = ClassifierRecipe(lambda config: {"global_pool": config.global_pool}, head_std=2e-5)
