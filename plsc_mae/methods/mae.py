"""Masked autoencoder pre-training (He et al. 2022; facebookresearch/mae main_pretrain.py, engine_pretrain.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import paddle

from plsc_mae.analysis.reconstruct import PatchStats, redraw
from plsc_mae.config import PRETRAIN, PretrainConfig
from plsc_mae.data.decode import Interpolation, SourceImage
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import RandomCropFlip, ResizeCenterCrop, Sample
from plsc_mae.errors import ConfigError
from plsc_mae.masking import num_visible
from plsc_mae.methods.base import (
    DEFAULT_SIZE,
    Batch,
    ClassifierRecipe,
    Method,
    Pictures,
    StepOutput,
    Task,
    visible_mean,
)
from plsc_mae.methods.memory_outline import FLOAT32, MemoryOutline, Stack
from plsc_mae.models import registry
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.registry import arguments_of, create_model, find_variant, require_network
from plsc_mae.models.vit import VisionTransformer, pair, patch_grid
from plsc_mae.optim import ParamGroup, weight_decay_groups
from plsc_mae.weights.dialects import autoencoder

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
        normalize: what makes the network's floats of images.
        shared_mask: hide the same patches in all images of a batch, by the noise of the first.
        no_decay: names of parameters without weight decay beside the usual ones.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        mask_ratio: float,
        normalize: Normalize | None = None,
        *,
        shared_mask: bool = False,
        no_decay: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize or Normalize()
        self.mask_ratio, self.shared_mask, self.no_decay = mask_ratio, shared_mask, no_decay

    def forward(self, batch: Batch) -> StepOutput:
        """Loss of a batch of {"image": uint8 [B, H, W, 3], "noise": float32 [B, L]}."""
        images, noise = self.normalize(batch["image"]), batch["noise"]
        if self.shared_mask:
            noise = noise[:1].expand(noise.shape)
        out = self.model(images, noise, self.mask_ratio, loss_only=True)
        first = self.model.encoder.num_prefix_tokens
        features = visible_mean(out.latent[:, first:]) if self.gives_features else None
        return StepOutput(out.loss, {"loss": out.loss.detach()}, features)

    def param_groups(self, weight_decay: float) -> list[ParamGroup]:
        """Spare `no_decay` too."""
        return weight_decay_groups(self.model.named_parameters(), weight_decay, self.no_decay)

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

    def memory_outline(self, batch_size: int, *, gpu: bool) -> MemoryOutline:
        """Outline an encoder over visible patches and a decoder whose last block computes hidden patches only."""
        encoder, decoder = self.model.encoder, self.model.decoder
        patches, (width, pixels) = encoder.num_patches, decoder.pred.weight.shape
        visible = num_visible(patches, self.mask_ratio, self.model.round_down)
        hidden, decoded = patches - visible, patches + decoder.num_prefix_tokens
        encoded = visible + encoder.num_prefix_tokens
        # inputs of the patch embedding, of both final norms and of the linear layers after them, and predictions
        kept = visible * pixels + 2 * encoded * encoder.embed_dim + 2 * hidden * width + hidden * pixels
        return MemoryOutline(
            stacks=(
                Stack(encoder.blocks, encoded, encoded),
                Stack(decoder.blocks[:-1], decoded, decoded),
                Stack(decoder.blocks[-1:], hidden, decoded),
            ),
            batch=batch_size * patches * (pixels + FLOAT32),  # uint8 images, and the noise behind the masks
            kept=FLOAT32 * batch_size * kept,
            # normalized images and their patches; targets, differences and their gradients
            working=FLOAT32 * batch_size * (2 * patches + 3 * hidden) * pixels,
        )


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
    """The masked autoencoder. Its successors are subclasses.

    Attributes:
        dialect: whose network is meant by names that several code bases have.
        default_model: that files of this method start from; their sizes replace its.
        interpolation: of crops and resizes.
        no_decay: names of parameters without weight decay beside the usual ones.
    """

    foreign = MappingProxyType(dict.fromkeys(("facebook", "plsc"), autoencoder.infer_arguments))
    dialect = ""
    default_model = "mae_vit_base_patch16"
    interpolation: Interpolation = "bicubic"
    no_decay: Collection[str] = ()

    def build_task(self, config: Any) -> MAETask:
        """Build the network that the config names, with its overrides."""
        require_network(config.model, registry.MAE)
        self._check_mask(config)
        overrides = {name: getattr(config, name) for name in NETWORK_OPTIONS} | self.switches(config)
        model = create_model(config.model, dialect=self.dialect, img_size=config.image_size, **overrides)
        return MAETask(
            cast(MaskedAutoencoder, model),
            config.mask_ratio,
            self.normalize(config),
            shared_mask=self.shared_mask(config),
            no_decay=self.no_decay,
        )

    def build_encoder(self, config: Any) -> VisionTransformer:
        """Build the encoder of the network that the config names."""
        overrides = {name: getattr(config, name) for name in ENCODER_OPTIONS} | self.switches(config)
        arguments = arguments_of(config.model, self.dialect, **overrides)
        if arguments.pop("train_positions", False):
            arguments["positions"] = "learned"
        known = VisionTransformer.__init__.__annotations__
        return VisionTransformer(config.image_size, **{name: arguments[name] for name in arguments if name in known})

    def switches(self, config: Any) -> dict[str, Any]:
        """Arguments of the network by options that only this method has."""
        return {"norm_eps": config.norm_eps, "train_positions": config.train_positions}

    def hflip(self, config: Any) -> float:
        """Probability of a horizontal flip."""
        return 0.5

    def shared_mask(self, config: Any) -> bool:
        """Whether all images of a batch have one mask."""
        return False

    def train_transform(self, config: Any) -> WithNoise:
        """Random resized crop, flipped now and then."""
        crop = RandomCropFlip(config.image_size, config.crop_scale, self.hflip(config), self.interpolation)
        return WithNoise(crop, self._num_patches(config))

    def view_transform(self, config: Any) -> WithNoise:
        """Shorter side to the input size, then the center."""
        center = ResizeCenterCrop(config.image_size, max(config.image_size), self.interpolation)
        return WithNoise(center, self._num_patches(config))

    def config_of(self, arguments: dict[str, Any]) -> PretrainConfig:
        """Make a config from `MaskedAutoencoder` arguments and options that were stored with them."""
        cls = PRETRAIN[self.dialect or "mae"]
        known = {field.name for field in dataclasses.fields(cls)}
        options = {name: value for name, value in arguments.items() if name in known and value is not None}
        return cls(**{"model": self.default_model, **options}, input_size=pair(arguments["img_size"] or DEFAULT_SIZE))

    def forward_macs(self, config: Any, task: Task) -> int:
        """Count for the visible share of patches that this run encodes."""
        return int(task.model.forward_macs(config.mask_ratio))

    def training_macs(self, config: Any, task: Task) -> int:
        """Count the forward pass and, at twice the price, the backward pass."""
        return 3 * self.forward_macs(config, task)

    def _check_mask(self, config: Any) -> None:
        patches = self._num_patches(config)
        rounding = arguments_of(config.model, self.dialect).get("round_down", "visible")
        visible = num_visible(patches, config.mask_ratio, rounding)
        if not 0 < visible < patches:
            raise ConfigError(
                f"mask_ratio {config.mask_ratio} leaves {visible} of {patches} patches visible; at least one must be "
                "visible and one hidden"
            )

    @staticmethod
    def _num_patches(config: Any) -> int:
        patch_size = config.patch_size or find_variant(config.model).arguments["patch_size"]
        rows, columns = patch_grid(config.image_size, patch_size)
        return rows * columns


class BeitStyleMAE(MAE):
    """What pre-training of MAE-priv and of MAE-pytorch share: bilinear crops, a mask token without weight decay."""

    default_model = "pretrain_mae_base_patch16_224"
    interpolation: Interpolation = "bilinear"
    no_decay = ("decoder.mask_token",)


METHOD = MAE()
# Fine-tuning draws the head's weights close to 0 after loading (facebookresearch/mae main_finetune.py).
CLASSIFIER = ClassifierRecipe(
    lambda config: {"global_pool": config.global_pool, "norm_eps": config.norm_eps}, head_std=2e-5
)
