"""Context autoencoder pre-training (Chen et al. 2022; Atten4Vis/CAE tools/run_pretraining.py)."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import paddle
from paddle import Tensor

from plsc_mae.analysis.predictions import DrawTokens, decoder_drawing, mean_patch_drawing, predict_hidden, replace_rows
from plsc_mae.analysis.reconstruct import PatchStats
from plsc_mae.config import CAEConfig, PretrainConfig
from plsc_mae.data.decode import SourceImage
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import INCEPTION_MEAN, INCEPTION_STD, Sample, Transform
from plsc_mae.data.views import TwoViewCenterCrop, TwoViewCropFlip
from plsc_mae.errors import ConfigError
from plsc_mae.losses import alignment_loss
from plsc_mae.masking import BlockMaskGenerator, RandomMaskGenerator, split_mask
from plsc_mae.methods.base import Batch, ClassifierRecipe, Method, Pictures, StepOutput, Task, visible_mean
from plsc_mae.methods.memory_outline import FLOAT32, MemoryOutline, Stack
from plsc_mae.methods.targets import PixelTarget, Target, build_target, load_decoder
from plsc_mae.models import registry
from plsc_mae.models.cae import ContextAutoencoder, cae_encoder
from plsc_mae.models.dalle import STRIDE
from plsc_mae.models.layers import patchify, unpatchify
from plsc_mae.models.registry import arguments_of, create_model, find_variant, require_network
from plsc_mae.models.vit import VisionTransformer, patch_grid
from plsc_mae.weights.dialects import cae

logger = logging.getLogger(__name__)

ENCODER_OPTIONS = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path")
NETWORK_OPTIONS = (
    *ENCODER_OPTIONS,
    "layer_scale_init_value",
    "abs_pos_emb",
    "decoder_embed_dim",
    "regressor_depth",
    "num_decoder_self_attention",
    "decoder_num_heads",
    "decoder_layer_scale_init_value",
    "dual_path_ema",
    "rescale_init",
)
DEFAULT_MASK_PATCHES = 98
MaskDraw = Callable[[np.random.Generator], np.ndarray]


class CAETask(Task):
    """Predict the targets of hidden patches, and their representations.

    Args:
        model: the autoencoder.
        target: makes what is predicted; frozen.
        normalize: turns the network's view to floats.
        num_masked: hidden patches of every image.
        config: loss weight and kind, schedule, where a decoder of tokens may be.
    """

    def __init__(
        self, model: ContextAutoencoder, target: Target, normalize: Normalize, num_masked: int, config: CAEConfig
    ) -> None:
        super().__init__()
        self.model, self.target, self.normalize = model, target, normalize
        self.num_masked, self.config = num_masked, config

    @paddle.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Add "target": what is predicted of hidden patches, [B*M] classes or [B*M, K] vectors."""
        target = self.target(batch)
        _, ids = split_mask(batch["mask"], self.num_masked)
        rows = paddle.stack([paddle.arange(ids.shape[0]).unsqueeze(1).expand_as(ids), ids], axis=-1)
        return {**batch, "target": paddle.gather_nd(target, rows).flatten(0, 1)}

    def forward(self, batch: Batch) -> StepOutput:
        """Loss of a batch of {"image": uint8 [B, H, W, 3], "mask": bool [B, L], "target": see `prepare`}."""
        config = self.config
        out = self.model(self.normalize(batch["image"]), batch["mask"], self.num_masked)
        main, logs = self.target.loss(out.logits, batch["target"])
        align = config.dual_loss_weight * alignment_loss(out.latent, out.latent_target, config.dual_loss_type)
        loss = main + align
        losses = {"loss": loss.detach(), "loss_main": main.detach(), "loss_align": align.detach()}
        features = visible_mean(out.encoded[:, 1:]) if self.gives_features else None
        return StepOutput(loss, {**logs, **losses}, features)

    def after_step(self) -> None:
        """Move the averaged encoder, where there is one."""
        self.model.update_alignment()

    def memory_outline(self, batch_size: int, *, gpu: bool) -> MemoryOutline:
        """Outline encoder, regressor and decoder, and the alignment target, which has no backward pass."""
        model, encoder, hidden = self.model, self.model.encoder, self.num_masked
        patches, visible = encoder.num_patches, encoder.num_patches - hidden
        width, classes = model.decoder.head.weight.shape
        alignment = encoder if model.alignment_encoder is None else model.alignment_encoder
        # inputs of final norms and of the layers after them; the regressor's context; representations and their targets
        kept = 2 * (visible + 1) * encoder.embed_dim + (2 * visible + 4 * hidden) * width
        logits, pixels = hidden * classes, 3 * encoder.img_size[0] * encoder.img_size[1]
        context = (2 * hidden + 3 * visible) * width
        tokenizer = getattr(self.target, "tokenizer", None)
        return MemoryOutline(
            stacks=(
                Stack(encoder.blocks, visible + 1, visible + 1),
                Stack(model.regressor.blocks, hidden, patches),
                Stack(model.decoder.blocks, hidden, hidden),
                Stack(alignment.blocks, hidden + 1, hidden + 1, gradient=False),
            ),
            batch=batch_size * pixels * (2 if tokenizer else 1 + FLOAT32),  # uint8 views, or one and float targets
            prepare=3 * FLOAT32 * batch_size * pixels
            if tokenizer is None
            else tokenizer.working_bytes(batch_size, encoder.grid, gpu=gpu),
            kept=FLOAT32 * batch_size * (kept + logits),
            working=FLOAT32 * batch_size * max(2 * pixels + context, logits),
        )

    @paddle.no_grad()
    def pictures(self, batch: Batch, patch_stats: PatchStats | None = None) -> Pictures:
        """Original, masked, what the tokens of the tokenizer look like, and those with the predicted ones."""
        if patch_stats is not None:
            raise ConfigError("--patch_stats is for models that predict normalized pixels; CAE predicts tokens")
        images, mask = self.normalize(batch["image"]), batch["mask"]
        pixels, grid = self.normalize.denormalize(images), self.model.encoder.grid
        hidden = mask.astype("float32").unsqueeze(-1)
        patches = patchify(pixels, self.model.patch_size)
        masked = unpatchify(patches * (1 - hidden) + 0.5 * hidden, grid, self.model.patch_size)
        pred, rows = predict_hidden(self.model, images, mask)
        target = self.target(batch)
        if isinstance(self.target, PixelTarget):
            pred = replace_rows(target, rows, pred.flatten(0, 1))
            drawn = {"hidden pixels predicted, with their patches' statistics": self.target.draw(pred, images)}
        else:
            draw, how = self._token_drawing(pixels, target)
            tokens = replace_rows(target, rows, pred.argmax(axis=-1).flatten())
            drawn = {f"its tokens, {how}": draw(target), f"hidden tokens predicted, {how}": draw(tokens)}
        drawn = {"original": pixels, "masked": masked, **drawn}
        return {label: _to_uint8(picture) for label, picture in drawn.items()}

    def _token_drawing(self, pixels: Tensor, tokens: Tensor) -> tuple[DrawTokens, str]:
        """How to draw tokens: by the dVAE's decoder if it is at hand, else by mean patches."""
        model, decoder = self.model, load_decoder(self.config, self.target.num_classes)
        if decoder is not None:
            return decoder_drawing(decoder, model.encoder.grid, model.encoder.img_size), "decoded by the dVAE"
        draw = mean_patch_drawing(pixels, tokens, self.target.num_classes, model.encoder.grid, model.patch_size)
        return draw, "each as its mean patch in these images"


class WithMask:
    """A transform that adds a mask, bool [L], to what another transform makes."""

    def __init__(self, transform: Transform, draw_mask: MaskDraw) -> None:
        self.transform, self.draw_mask = transform, draw_mask

    def __call__(self, image: SourceImage, rng: np.random.Generator) -> Sample:
        """Draw what the transform draws first, then the mask."""
        sample = self.transform(image, rng)
        return {**sample, "mask": self.draw_mask(rng).reshape(-1)}


class CAE(Method):
    """The context autoencoder."""

    foreign = MappingProxyType(dict.fromkeys(("cae", "cae_old", "plsc_cae"), cae.infer_arguments))

    def build_task(self, config: CAEConfig) -> CAETask:
        """Build the network that the config names, with its overrides, and its target."""
        require_network(config.model, registry.CAE)
        self._tokenizer_size(config)
        target = build_target(config, self.normalize(config), self._patch_size(config))
        task = self._task(config, target)
        if config.discrete_vae_type == "random_init" and config.target_mode == "clusterID":
            logger.warning(
                "the tokenizer is RANDOM (--discrete_vae_type random_init): good for trying out, its tokens mean "
                "nothing and no published result can be reached with them"
            )
        if config.vis_freq:
            load_decoder(config, target.num_classes)  # what is wrong with it is told now, not when it is to draw
        _warn_of_idle_options(config)
        return task

    def sketch_task(self, config: CAEConfig) -> CAETask:
        """With a tokenizer of the published sizes in place of one that is read."""
        named = dataclasses.replace(
            config, discrete_vae_type="random_init", discrete_vae_dtype="auto", target_path=None
        )
        return self._task(config, build_target(named, self.normalize(config), self._patch_size(config)))

    def _task(self, config: CAEConfig, target: Target) -> CAETask:
        overrides = {name: getattr(config, name) for name in NETWORK_OPTIONS}
        model = create_model(
            config.model, img_size=config.image_size, decoder_num_classes=target.num_classes, **overrides
        )
        _, num_masked = self._masks(config)
        return CAETask(cast(ContextAutoencoder, model), target, self.normalize(config), num_masked, config)

    def normalize(self, config: CAEConfig) -> Normalize:
        """ImageNet's statistics on demand, else 0.5 and 0.5."""
        return Normalize() if config.imagenet_default_mean_and_std else Normalize(INCEPTION_MEAN, INCEPTION_STD)

    def build_encoder(self, config: CAEConfig) -> VisionTransformer:
        """Build the encoder of the network that the config names."""
        sizes = arguments_of(config.model, **{name: getattr(config, name) for name in ENCODER_OPTIONS})
        return cae_encoder(config.image_size, config.layer_scale_init_value, config.abs_pos_emb, **sizes)

    def train_transform(self, config: CAEConfig) -> WithMask:
        """One random crop at two sizes, flipped half the time; then the mask."""
        views = TwoViewCropFlip(
            config.image_size,
            self._tokenizer_size(config),
            scale=(config.crop_min_size, config.crop_max_size),
            color_jitter=config.color_jitter,
            interpolation=config.train_interpolation,
            tokenizer_interpolation=config.second_interpolation,
        )
        return WithMask(views, self._masks(config)[0])

    def view_transform(self, config: CAEConfig) -> WithMask:
        """The largest centered crop at two sizes; then the mask."""
        views = TwoViewCenterCrop(
            config.image_size, self._tokenizer_size(config), tokenizer_interpolation=config.second_interpolation
        )
        return WithMask(views, self._masks(config)[0])

    def config_of(self, arguments: dict[str, Any]) -> CAEConfig:
        """Make a config from `ContextAutoencoder` arguments."""
        sizes = {name: value for name, value in arguments.items() if name in NETWORK_OPTIONS and value is not None}
        # Every published recipe normalizes by ImageNet's statistics, although no default does.
        return CAEConfig(input_size=(arguments["img_size"],), imagenet_default_mean_and_std=True, **sizes)

    def forward_macs(self, config: PretrainConfig, task: Task) -> int:
        """Count student and alignment target."""
        task = cast(CAETask, task)
        return sum(task.model.forward_macs(task.num_masked))

    def training_macs(self, config: PretrainConfig, task: Task) -> int:
        """Forward and backward of the student, forward of the alignment target; the tokenizer is apart."""
        task = cast(CAETask, task)
        student, alignment = task.model.forward_macs(task.num_masked)
        return 3 * student + alignment

    def _masks(self, config: CAEConfig) -> tuple[MaskDraw, int]:
        """How a mask [rows, columns] is drawn and the number of patches it hides."""
        grid = self._grid(config)
        if config.mask_generator == "random":
            share = cast(float, config.ratio_mask_patches)
            return RandomMaskGenerator(grid, share), int(share * grid[0] * grid[1])
        count = config.num_mask_patches or DEFAULT_MASK_PATCHES
        generator = BlockMaskGenerator(
            grid, count, config.min_mask_patches_per_block, config.max_mask_patches_per_block
        )
        # The generator draws as the original does, from Python's random; its state comes from the sample's generator.
        return lambda rng: generator(random.Random(int(rng.integers(2**63)))), count

    def _grid(self, config: CAEConfig) -> tuple[int, int]:
        return patch_grid(config.image_size, self._patch_size(config))

    @staticmethod
    def _patch_size(config: CAEConfig) -> int:
        return config.patch_size or int(find_variant(config.model).arguments["patch_size"])

    def _tokenizer_size(self, config: CAEConfig) -> tuple[int, int]:
        """Height and width of the tokenizer's view, which must give one token per patch."""
        rows, columns = self._grid(config)
        wanted = (rows * STRIDE, columns * STRIDE)
        given = config.second_input_size
        if given is not None and (given[0], given[-1]) != wanted:
            raise ConfigError(
                f"second_input_size {given} does not give one token to each of {rows} x {columns} patches; the dVAE "
                f"makes one of {STRIDE} x {STRIDE} pixels, so it must be {wanted[0]} x {wanted[1]}"
            )
        return wanted


def _warn_of_idle_options(config: CAEConfig) -> None:
    """Tell of options that were set and have nothing to act on."""
    tokens, is_random = config.target_mode == "clusterID", config.discrete_vae_type == "random_init"
    idle = {
        "discrete_vae_weight_path": not tokens,
        "discrete_vae_hidden": not (tokens and is_random),
        "discrete_vae_seed": not ((tokens and is_random) or config.target_mode == "random"),
        "target_path": config.target_mode != "random",
        "normalized_pixel": tokens,
        "denorm": tokens,
        "min_mask_patches_per_block": config.mask_generator == "random",
        "max_mask_patches_per_block": config.mask_generator == "random",
    }
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if idle.get(field.name) and value != field.default:
            logger.warning(
                "--%s %s has no effect with target_mode %s, discrete_vae_type %s, mask_generator %s",
                *(field.name, value, config.target_mode, config.discrete_vae_type, config.mask_generator),
            )


def _to_uint8(pixels: Tensor) -> np.ndarray:
    """[B, C, H, W] in [0, 1] -> uint8 [B, H, W, C]."""
    return (pixels.clip(0, 1) * 255).round().astype("uint8").numpy().transpose(0, 2, 3, 1)


def _classifier_arguments(config: Any) -> dict[str, Any]:
    fixed = "row first" if config.sin_pos_emb else "none"
    return {
        "global_pool": config.global_pool,
        "positions": "learned" if config.abs_pos_emb else fixed,
        "relative_positions": "per block" if config.rel_pos_bias else "none",
        "layer_scale": config.layer_scale_init_value,
        "init_scale": config.init_scale,
        "drop_rate": config.drop,
        "attn_drop_rate": config.attn_drop_rate,
    }


METHOD = CAE()
CLASSIFIER = ClassifierRecipe(_classifier_arguments, norm_into_fc_norm=True)
