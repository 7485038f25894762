"""Context autoencoder pre-training (Chen et al. 2022; Atten4Vis/CAE tools/run_pretraining.py)."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor, nn

from plsc_mae.config.cae import CAEConfig, CAEFinetuneConfig, CAELinprobeConfig
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import INCEPTION_MEAN, INCEPTION_STD
from plsc_mae.data.views import TwoViewCenterCrop, TwoViewCropFlip
from plsc_mae.errors import ConfigError, flag
from plsc_mae.losses import alignment_loss
from plsc_mae.masking import BlockMaskGenerator, RandomMaskGenerator, split_mask
from plsc_mae.methods import contract
from plsc_mae.methods.base import MASKED, Batch, Drawn, PatchStats, StepOutput, Task, visible_mean
from plsc_mae.methods.cae_pictures import decoder_drawing, mean_patch_drawing, predict_hidden, replace_tokens
from plsc_mae.methods.contract import ClassifierRecipe, Description, Method, PublishedSpeed, Reconstruction
from plsc_mae.methods.masks import MaskDraw, WithMask
from plsc_mae.methods.memory_outline import FLOAT32, MemoryOutline, Stack
from plsc_mae.methods.targets import PixelTarget, Target, build_target, load_decoder
from plsc_mae.models import registry
from plsc_mae.models.cae import ContextAutoencoder, cae_encoder
from plsc_mae.models.dalle import STRIDE
from plsc_mae.models.layers import patchify, unpatchify
from plsc_mae.models.registry import ENCODER_OPTIONS, arguments_of, create_model, find_variant, require_network
from plsc_mae.models.vit import VisionTransformer, patch_grid
from plsc_mae.weights.dialects import cae, find_dialect
from plsc_mae.weights.dialects.base import count_blocks, tensor_of_rank

if TYPE_CHECKING:
    from plsc_mae.methods.cae_pictures import DrawTokens
    from plsc_mae.weights import Checkpoint

logger = logging.getLogger(__name__)

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
MOST_MASKED = 0.75  # share of hidden patches above which log_remarks warns of the default number


class CAETask(Task):
    """The task of predicting the targets and the representations of hidden patches.

    Args:
        model: the autoencoder.
        target: computes the prediction targets; it has no trained parameters.
        normalize: converts the network's view to normalized floats.
        num_masked: number M of hidden patches of an image.
        config: the options of the run.
    """

    model: ContextAutoencoder
    reference_loss = "loss_main"

    def __init__(
        self, model: ContextAutoencoder, target: Target, normalize: Normalize, num_masked: int, config: CAEConfig
    ) -> None:
        super().__init__()
        self.model, self.target, self.normalize = model, target, normalize
        self.num_masked, self.config = num_masked, config

    @paddle.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with "target", the targets of hidden patches: int64 classes [B*M] or float vectors [B*M, K].

        Their order is that of `CAEOutput.logits`: image by image, in raster order.
        """
        target = self.target(batch)
        _, ids = split_mask(batch["mask"], self.num_masked)
        places = paddle.stack([paddle.arange(ids.shape[0]).unsqueeze(1).expand_as(ids), ids], axis=-1)
        return {**batch, "target": paddle.gather_nd(target, places).flatten(0, 1)}

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the loss of a batch {"image": pixels [B, H, W, C], "mask": bool [B, L], "target": see `prepare`}."""
        config = self.config
        out = self.model(self.normalize(batch["image"]), batch["mask"], self.num_masked)
        main, logs = self.target.loss(out.logits, batch["target"])
        align = config.dual_loss_weight * alignment_loss(out.latent, out.latent_target, config.dual_loss_type)
        loss = main + align
        losses = {"loss": loss.detach(), "loss_main": main.detach(), "loss_align": align.detach()}
        features = visible_mean(out.encoded[:, 1:]) if self.gives_features else None
        return StepOutput(loss, {**logs, **losses}, features)

    def trivial_losses(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the losses of the target's trivial predictors, comparable to the loss without its alignment term."""
        return self.target.trivial_losses(batches)

    def complete_initial_weights(self, missing: Collection[str]) -> None:
        """Copy the encoder to its moving average if the file lacks any tensor of the moving average."""
        if any(name.startswith("alignment_encoder.") for name in missing):
            self.model.start_alignment()

    def after_step(self) -> None:
        """Update the moving average of the encoder, if there is one."""
        self.model.update_alignment()

    def memory_outline(self, batch_size: int, *, gpu: bool) -> MemoryOutline:
        """Return the outline: encoder, regressor, decoder, and the alignment target, which has no backward pass."""
        model, encoder, hidden = self.model, self.model.encoder, self.num_masked
        patches, visible = encoder.num_patches, encoder.num_patches - hidden
        width, classes = model.decoder.head.weight.shape
        alignment = encoder if model.alignment_encoder is None else model.alignment_encoder
        # inputs of the final norms and of the layers after them; the regressor's context; representations and targets
        kept = 2 * (visible + 1) * encoder.embed_dim + (2 * visible + 4 * hidden) * width
        logits, pixels = hidden * classes, encoder.in_chans * encoder.img_size[0] * encoder.img_size[1]
        context = (2 * hidden + 3 * visible) * width
        tokenizer = getattr(self.target, "tokenizer", None)
        return MemoryOutline(
            stacks=(
                Stack(encoder.blocks, visible + 1, visible + 1),
                Stack(model.regressor.blocks, hidden, patches),
                Stack(model.decoder.blocks, hidden, hidden),
                Stack(alignment.blocks, hidden + 1, hidden + 1, gradient=False),
            ),
            batch=batch_size * pixels * (2 if tokenizer else 1 + FLOAT32),  # uint8 views; or one, and float32 targets
            prepare=3 * FLOAT32 * batch_size * pixels
            if tokenizer is None
            else tokenizer.working_bytes(batch_size, encoder.grid, gpu=gpu),
            kept=FLOAT32 * batch_size * (kept + logits),
            working=FLOAT32 * batch_size * max(2 * pixels + context, logits),
        )

    @paddle.no_grad()
    def draw(self, batch: Batch, patch_stats: PatchStats | None = None) -> Drawn:
        """Return the original, the masked image, the targets, and the targets with predictions in hidden patches.

        The picture of the targets is left out if they are pixels.

        Raises:
            ConfigError: `patch_stats` is set.
            CheckpointError: the decoder of the tokenizer cannot be used.
        """
        if patch_stats is not None:
            raise ConfigError("--patch_stats does not apply to CAE, whose pictures need no choice of statistics")
        images, mask = self.normalize(batch["image"]), batch["mask"]
        pixels, grid = self.normalize.denormalize(images), self.model.encoder.grid
        hidden, patches = mask.astype("float32").unsqueeze(-1), patchify(pixels, self.model.patch_size)
        masked = unpatchify(patches * (1 - hidden) + 0.5 * hidden, grid, self.model.patch_size)
        (pred, ids), target = predict_hidden(self.model, images, mask), self.target(batch)
        if isinstance(self.target, PixelTarget):
            pred = replace_tokens(target, ids, pred)
            statistics = "" if self.target.kind == "none" else ", with their patches' statistics"
            drawn = {f"hidden pixels predicted{statistics}": self.target.draw(pred, images)}
        else:
            draw, how = self._token_drawing(pixels, target)
            tokens = replace_tokens(target, ids, pred.argmax(axis=-1))
            drawn = {f"its tokens, {how}": draw(target), f"hidden tokens predicted, {how}": draw(tokens)}
        return {"original": pixels, MASKED: masked, **drawn}

    @property
    def predicts_pixels(self) -> bool:
        """True if the target is pixels, not tokens."""
        return isinstance(self.target, PixelTarget)

    def hidden_patches(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Return the mask of `draw`, bool [B, rows, columns], True = hidden."""
        return cast(npt.NDArray[np.bool_], batch["mask"].numpy().reshape(-1, *self.model.encoder.grid))

    def _token_drawing(self, pixels: Tensor, tokens: Tensor) -> tuple[DrawTokens, str]:
        """Return (function that draws tokens, words for the label): the dVAE's decoder if found, else mean patches."""
        model, decoder = self.model, load_decoder(self.config, self.target.num_classes)
        if decoder is not None:
            return decoder_drawing(decoder, model.encoder.grid, model.encoder.img_size), "decoded by the dVAE"
        draw = mean_patch_drawing(pixels, tokens, self.target.num_classes, model.encoder.grid, model.patch_size)
        return draw, "each as its mean patch in these images"


class HiddenTokens(nn.Layer):
    """Network for inference that predicts the targets and the representations of hidden patches."""

    def __init__(self, model: ContextAutoencoder, num_masked: int) -> None:
        super().__init__()
        self.model, self.num_masked = model, num_masked

    def forward(self, images: Tensor, mask: Tensor) -> list[Tensor]:
        """Return logits [B, M, K] and representations [B, M, D] for images [B, C, H, W] and a mask, bool [B, L]."""
        out = self.model(images, mask, self.num_masked)
        return [out.logits.reshape([-1, self.num_masked, out.logits.shape[-1]]), out.latent]


class CAE(Method[CAEConfig]):
    """Pre-training of the context autoencoder."""

    config_class = CAEConfig
    published_speed = PublishedSpeed(
        "configs/cae/pretrain_base_800e_plsc.yaml",
        154.0,
        "A100",
        "PLSC task/ssl/cae README: 4936 images/s on 32 A100",
        options={
            "model": "cae_base_patch16_224_8k_vocab",
            "num_mask_patches": 75,
            "imagenet_default_mean_and_std": True,
            "batch_size": 64,
            "epochs": 800,
            "warmup_epochs": 10,
            "lr": 1.5e-3,
            "clip_grad": 3.0,
            "discrete_vae_type": "random_init",
        },
        small={
            "input_size": (32,),
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 4,
            "decoder_embed_dim": 24,
            "decoder_num_heads": 4,
            "regressor_depth": 1,
            "num_decoder_self_attention": 1,
            "decoder_num_classes": 32,
            "num_mask_patches": 8,
            "min_mask_patches_per_block": 2,
            "discrete_vae_hidden": 8,
            "batch_size": 4,
        },
    )
    network = "cae"
    network_tensors = ("regressor.norm.weight", "mask_token")
    dialects = frozenset({"cae", "cae_old", "plsc_cae"})
    tokenizer_option = "discrete_vae_weight_path"
    parity = "cae"

    def build_task(self, config: CAEConfig) -> CAETask:
        """Build the Task of the options: the network that they name, with their overrides, and the target."""
        require_network(config.model, registry.CAE)
        if not config.is_rgb and config.target_mode == "clusterID":
            raise ConfigError(
                f"the tokenizer reads 8-bit RGB, but the number of channels is {config.channels}"
                f"{', of chosen bands' if config.bands else ''}; predict pixels with {flag('target_mode')} rgb, or "
                "train MAE or SimMIM"
            )
        self._tokenizer_size(config)
        target = build_target(config, self.normalize(config), self._patch_size(config))
        task = self._task(config, target)
        if config.discrete_vae_type == "random_init" and config.target_mode == "clusterID":
            logger.warning(
                "the tokenizer is RANDOM (%s random_init): use it to try CAE out; its tokens carry no meaning and no "
                "published result can be reached with them",
                flag("discrete_vae_type"),
            )
        if config.picture_epochs:
            load_decoder(config, target.num_classes)  # report a bad file now, not at the first picture
        _warn_of_idle_options(config)
        if config.color_jitter and not config.is_rgb:
            logger.warning("%s is left out: it is defined for 8-bit RGB only", flag("color_jitter"))
        return task

    def sketch_task(self, config: CAEConfig) -> CAETask:
        """Build the Task without reading files; the tokenizer or the vectors of target_mode random are random."""
        require_network(config.model, registry.CAE)
        self._tokenizer_size(config)
        tokenizer = {"discrete_vae_type": "random_init", "discrete_vae_dtype": "auto", "discrete_vae_weight_path": ""}
        named = dataclasses.replace(config, target_path=None, **tokenizer)  # type: ignore[arg-type]
        return self._task(config, build_target(named, self.normalize(config), self._patch_size(config)))

    def _task(self, config: CAEConfig, target: Target) -> CAETask:
        model = self._model(config, target.num_classes)
        return CAETask(model, target, self.normalize(config), self._masks(config)[1], config)

    @staticmethod
    def _model(config: CAEConfig, num_classes: int | None) -> ContextAutoencoder:
        overrides = {name: getattr(config, name) for name in NETWORK_OPTIONS}
        model = create_model(config.model, img_size=config.image_size, decoder_num_classes=num_classes, **overrides)
        return cast(ContextAutoencoder, model)

    def normalize(self, config: CAEConfig) -> Normalize:
        """Return the layer that normalizes by --mean and --std.

        Without them, mean and std are ImageNet's with --imagenet_default_mean_and_std, else 0.5.
        """
        if config.mean is None and not config.imagenet_default_mean_and_std:
            return Normalize.for_channels(config.channels, INCEPTION_MEAN, INCEPTION_STD)
        return super().normalize(config)

    def build_encoder(self, config: CAEConfig) -> VisionTransformer:
        """Build the encoder of the network that the options name."""
        sizes = arguments_of(config.model, **{name: getattr(config, name) for name in ENCODER_OPTIONS})
        return cae_encoder(config.image_size, config.layer_scale_init_value, config.abs_pos_emb, **sizes)

    def train_transform(self, config: CAEConfig) -> WithMask:
        """Return the transform to a random mask and an augmented crop, in two sizes if there is a tokenizer."""
        views = TwoViewCropFlip(
            config.image_size,
            self._tokenizer_view(config),
            scale=(config.crop_min_size, config.crop_max_size),
            ratio=config.crop_ratio,
            color_jitter=config.color_jitter if config.is_rgb else 0.0,
            interpolation=config.train_interpolation,
            tokenizer_interpolation=config.second_interpolation,
        )
        return WithMask(views, self._masks(config)[0])

    def view_transform(self, config: CAEConfig) -> WithMask:
        """Return the transform to a random mask and the largest center crop, in two sizes if there is a tokenizer."""
        views = TwoViewCenterCrop(
            config.image_size, self._tokenizer_view(config), tokenizer_interpolation=config.second_interpolation
        )
        return WithMask(views, self._masks(config)[0])

    def forward_macs(self, config: CAEConfig, task: Task) -> int:
        """Count the multiply-accumulates of one image's forward pass: student plus alignment, without the tokenizer."""
        return sum(self._student_and_alignment(task))

    def training_macs(self, config: CAEConfig, task: Task) -> int:
        """Count the multiply-accumulates of one image: three times the student's forward pass plus the alignment's."""
        student, alignment = self._student_and_alignment(task)
        return 3 * student + alignment

    @staticmethod
    def _student_and_alignment(task: Task) -> tuple[int, int]:
        task = cast(CAETask, task)
        return task.model.forward_macs(task.num_masked)

    def infer_arguments(self, stored: Checkpoint) -> dict[str, Any]:
        """Return the arguments of `ContextAutoencoder` that fit the tensors of a file."""
        return cae.infer_arguments(stored.model, find_dialect(stored.dialect), str(stored.path))

    def config_of(self, arguments: dict[str, Any]) -> CAEConfig:
        """Return the options that describe a `ContextAutoencoder` with these arguments."""
        sizes = {name: value for name, value in arguments.items() if name in NETWORK_OPTIONS and value is not None}
        # All published recipes normalize by ImageNet's statistics, although this is not the default of any code base.
        return CAEConfig(input_size=(arguments["img_size"],), imagenet_default_mean_and_std=True, **sizes)

    def build_network(self, config: CAEConfig, stored: Checkpoint) -> ContextAutoencoder:
        """Build the network without the target, because files of a network hold no tokenizer."""
        return self._model(config, self._num_classes(stored))

    def reconstruction(self, config: CAEConfig, network: nn.Layer) -> Reconstruction:
        """Return the network as a layer that predicts hidden patches; every mask must hide `num_hidden` patches."""
        outputs = {
            "logits": "[B, M, K] scores of the classes of hidden patches, in raster order",
            "latent": "[B, M, D] predicted representations of hidden patches, in raster order",
        }
        hidden = self._masks(config)[1]
        return Reconstruction(HiddenTokens(cast(ContextAutoencoder, network), hidden), "mask", hidden, outputs)

    def describe(self, stored: Checkpoint, config: CAEConfig | None) -> Description:
        """Return the description: regressor and decoder, and the target in the stored options, by default tokens."""
        foreign_name = find_dialect(stored.dialect).foreign_name
        token = tensor_of_rank(stored.model, foreign_name("mask_token"), 3, str(stored.path))
        num_classes = self._num_classes(stored)
        decoder = {
            "embed_dim": 0 if token is None else token.shape[-1],
            "regressor_depth": count_blocks(stored.model, foreign_name("regressor.blocks.")),
            "depth": count_blocks(stored.model, foreign_name("decoder.blocks.")),
            "num_heads": None if config is None else config.decoder_num_heads,
            "outputs": num_classes,
        }
        options = stored.meta.get("args")
        mode = options.get("target_mode", "clusterID") if isinstance(options, dict) else "clusterID"
        target = (
            f"tokens of hidden patches, one of {num_classes}"
            if mode == "clusterID"
            else f"{flag('target_mode')} {mode}"
        )
        # Our checkpoints store the path of their tokenizer.
        flags = "" if stored.meta.get("phase") else f" --{self.tokenizer_option} DIR"
        return Description("context autoencoder: encoder, regressor and decoder", {"decoder": decoder}, target, flags)

    @staticmethod
    def _num_classes(stored: Checkpoint) -> int | None:
        bias = find_dialect(stored.dialect).foreign_name("decoder.head.bias")
        found = tensor_of_rank(stored.model, bias, 1, str(stored.path))
        return None if found is None else len(found)

    def _masks(self, config: CAEConfig) -> tuple[MaskDraw, int]:
        """Return (function that draws a mask [rows, columns], number of patches that it hides)."""
        grid = self._grid(config)
        if config.mask_generator == "random":
            share = cast(float, config.ratio_mask_patches)
            return RandomMaskGenerator(grid, share), int(share * grid[0] * grid[1])
        count, smallest = self._block_sizes(config)
        generator = BlockMaskGenerator(grid, count, smallest, config.max_mask_patches_per_block)
        # As in the original, the mask is drawn from Python's random, here seeded from the sample's generator.
        return lambda rng: generator(random.Random(int(rng.integers(2**63)))), count

    def _block_sizes(self, config: CAEConfig) -> tuple[int, int]:
        """Return (number of patches that a block mask hides, smallest size of a block in patches).

        The default of 98 hidden patches is half of 14 x 14. On a grid of no more than 98 patches, half of the patches
        are hidden instead, and the smallest size, if it has its default value, shrinks in proportion.
        """
        rows, columns = self._grid(config)
        smallest = config.min_mask_patches_per_block
        if config.num_mask_patches is not None or rows * columns > DEFAULT_MASK_PATCHES:
            return config.num_mask_patches or DEFAULT_MASK_PATCHES, smallest
        count = max(rows * columns // 2, 1)
        if smallest == CAEConfig.min_mask_patches_per_block:
            smallest = max(smallest * count // DEFAULT_MASK_PATCHES, 1)
        return count, smallest

    def log_remarks(self, config: CAEConfig, task: Task) -> None:
        """Log that block masks of default size are reduced for a small grid; warn if they hide most of a larger one."""
        if config.mask_generator == "random" or config.num_mask_patches is not None:
            return
        (rows, columns), (count, smallest) = self._grid(config), self._block_sizes(config)
        if count != DEFAULT_MASK_PATCHES:
            logger.info(
                "the default of %d hidden patches does not fit %d x %d patches: hiding %d, in blocks of %d or more; "
                "--num_mask_patches and --min_mask_patches_per_block set them",
                *(DEFAULT_MASK_PATCHES, rows, columns, count, smallest),
            )
        elif count > MOST_MASKED * rows * columns:
            logger.warning(
                "the default of %d hidden patches leaves %d of %d visible; --num_mask_patches %d hides half of them",
                *(count, rows * columns - count, rows * columns, rows * columns // 2),
            )

    def _grid(self, config: CAEConfig) -> tuple[int, int]:
        return patch_grid(config.image_size, self._patch_size(config))

    @staticmethod
    def _patch_size(config: CAEConfig) -> int:
        return config.patch_size or int(find_variant(config.model).arguments["patch_size"])

    def _tokenizer_view(self, config: CAEConfig) -> tuple[int, int] | None:
        """Return the size of the tokenizer's view; None if the targets are made from the network's view."""
        return self._tokenizer_size(config) if config.target_mode == "clusterID" else None

    def _tokenizer_size(self, config: CAEConfig) -> tuple[int, int]:
        """Return (height, width) in pixels of the tokenizer's view; refuse a `second_input_size` other than that."""
        rows, columns = self._grid(config)
        wanted = (rows * STRIDE, columns * STRIDE)
        given = config.second_input_size
        if given is not None and (given[0], given[-1]) != wanted:
            raise ConfigError(
                f"second_input_size {given} does not give one token to each of {rows} x {columns} patches: a token of "
                f"the dVAE covers {STRIDE} x {STRIDE} pixels; give {wanted[0]} x {wanted[1]}, or leave the option out"
            )
        return wanted


def _warn_of_idle_options(config: CAEConfig) -> None:
    """Warn of some options that are set but have no effect in combination with the others."""
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


def _classifier_arguments(config: CAEFinetuneConfig | CAELinprobeConfig) -> dict[str, Any]:
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
CLASSIFIER = ClassifierRecipe(
    _classifier_arguments,
    models="cae_*_224",
    base_model="cae_base_patch16_224",
    flags=contract.layer_scale_flag,
    norm_into_fc_norm=True,
)
