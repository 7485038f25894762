"""Masked autoencoder pre-training (He et al. 2022; facebookresearch/mae main_pretrain.py, engine_pretrain.py)."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Collection, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor, nn

from plsc_mae.analysis.trivial import ZERO, fill_hidden, mean_over_batches
from plsc_mae.config.mae import AutoencoderConfig, MAEConfig, MAEFinetuneConfig, MAELinprobeConfig
from plsc_mae.config.mae_pytorch import BeitStylePretrainConfig
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import RandomCropFlip, ResizeCenterCrop
from plsc_mae.errors import ConfigError, flag, remedies
from plsc_mae.masking import Mask, num_visible
from plsc_mae.methods.base import Batch, Drawn, PatchStats, StepOutput, Task, visible_mean
from plsc_mae.methods.contract import (
    DEFAULT_SIZE,
    ClassifierRecipe,
    Description,
    Method,
    PublishedSpeed,
    Reconstruction,
)
from plsc_mae.methods.mae_pictures import redraw
from plsc_mae.methods.masks import WithNoise
from plsc_mae.methods.memory_outline import FLOAT32, MemoryOutline, Stack
from plsc_mae.models import registry
from plsc_mae.models.layers import gather_tokens
from plsc_mae.models.mae import MaskedAutoencoder, hidden_patch_loss
from plsc_mae.models.registry import (
    ENCODER_OPTIONS,
    VARIANTS,
    arguments_of,
    create_model,
    find_variant,
    require_network,
)
from plsc_mae.models.vit import VisionTransformer, pair, patch_grid
from plsc_mae.optim import ParamGroup, weight_decay_groups
from plsc_mae.weights.dialects import autoencoder, find_dialect
from plsc_mae.weights.dialects.base import count_blocks, tensor_of_rank
from plsc_mae.weights.dialects.mae_priv import HEAD_DIM
from plsc_mae.wording import in_millions

if TYPE_CHECKING:
    from plsc_mae.data.decode import Interpolation
    from plsc_mae.weights import Checkpoint

logger = logging.getLogger(__name__)

DECODER_OPTIONS = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
NETWORK_OPTIONS = (*ENCODER_OPTIONS, *DECODER_OPTIONS, "norm_pix_loss")
NO_KEY_BIAS = "encoder.blocks.0.attn.q_bias"  # only networks whose keys have no bias have this parameter
AutoencoderT = TypeVar("AutoencoderT", bound=AutoencoderConfig)
SuccessorT = TypeVar("SuccessorT", bound=BeitStylePretrainConfig)


class MAETask(Task):
    """The task of predicting the pixels of hidden patches; masks are derived from noise in the samples.

    Args:
        model: the autoencoder.
        mask_ratio: share of hidden patches.
        normalize: converts images to the network's floats; None normalizes by ImageNet's statistics.
        shared_mask: whether the noise of the first image determines the mask of the whole batch.
        no_decay: names of parameters without weight decay, in addition to vectors and biases.
    """

    model: MaskedAutoencoder
    reference_loss = "loss"

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

    @property
    def num_masked(self) -> int:
        """The number of hidden patches of an image, M."""
        return self.model.encoder.num_patches - self.model.num_visible(self.mask_ratio)

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the loss of a batch {"image": pixels [B, H, W, C], "noise": float32 [B, L]}."""
        images = self.normalize(batch["image"])
        hidden = self.model.predict_hidden(images, self._masks(batch))
        loss = hidden_patch_loss(hidden.pred, hidden.target)
        first = self.model.encoder.num_prefix_tokens
        features = visible_mean(hidden.latent[:, first:]) if self.gives_features else None
        return StepOutput(loss, {"loss": loss.detach()}, features)

    @paddle.no_grad()
    def trivial_losses(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the losses of trivial fills of the hidden patches, see `analysis.trivial.fill_hidden`.

        With norm_pix_loss, every patch of fills and targets is normalized by its own statistics, and the loss of
        predicting zeros is added as "zero".
        """
        return mean_over_batches([self._trivial_losses(batch) for batch in batches])

    def _trivial_losses(self, batch: Batch) -> dict[str, float]:
        model, masks = self.model, self._masks(batch)
        patches = model.patchify(self.normalize(batch["image"]))
        fills = fill_hidden(patches.numpy(), masks.mask.numpy(), model.encoder.grid, model.patch_size)
        target, *preds = (
            model.target(gather_tokens(x, masks.ids_masked)) for x in (patches, *map(paddle.to_tensor, fills.values()))
        )
        predicted = dict(zip(fills, preds, strict=True))
        if model.norm_pix_loss:
            predicted[ZERO] = paddle.zeros_like(target)
        return {name: float(hidden_patch_loss(pred, target)) for name, pred in predicted.items()}

    def _masks(self, batch: Batch) -> Mask:
        noise = batch["noise"]
        if self.shared_mask:
            noise = noise[:1].expand(noise.shape)
        return self.model.random_masks(noise, self.mask_ratio)

    def param_groups(self, weight_decay: float) -> list[ParamGroup]:
        """Group the parameters; vectors, biases and those in `no_decay` have no weight decay."""
        return weight_decay_groups(self.model.named_parameters(), weight_decay, self.no_decay)

    def draw(self, batch: Batch, patch_stats: PatchStats | None = None) -> Drawn:
        """Return four pictures: original, masked, reconstruction, and reconstruction with the original visible patches.

        Raises:
            ConfigError: `patch_stats` is set, but the network predicts pixels as they are.
        """
        if patch_stats is not None and not self.model.norm_pix_loss:
            raise ConfigError("--patch_stats is for models trained with norm_pix_loss; this one predicts pixels")
        with paddle.no_grad():
            images = self.normalize(batch["image"])
            drawn = redraw(self.model, images, batch["noise"], self.mask_ratio, patch_stats or "original")
            return {label: self.normalize.denormalize(x) for label, x in drawn.items()}

    @paddle.no_grad()
    def hidden_patches(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Return the mask of `draw`, bool [B, rows, columns], True = hidden."""
        mask = self.model.random_masks(batch["noise"], self.mask_ratio).mask.numpy()
        return cast(npt.NDArray[np.bool_], mask.reshape(-1, *self.model.encoder.grid) > 0)

    def memory_outline(self, batch_size: int, *, gpu: bool) -> MemoryOutline:
        """Return the outline: encoder of visible patches, and decoder whose last block computes only hidden patches."""
        encoder, decoder = self.model.encoder, self.model.decoder
        patches, (width, pixels) = encoder.num_patches, decoder.pred.weight.shape
        visible = num_visible(patches, self.mask_ratio, self.model.round_down)
        hidden, decoded = patches - visible, patches + decoder.num_prefix_tokens
        encoded = visible + encoder.num_prefix_tokens
        # inputs of the patch embedding, of both final norms and of the linear layers after them; predictions
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


class HiddenPixels(nn.Layer):
    """Network for inference that hides patches by noise, encodes the others, and predicts the pixels of all.

    It also returns the mask.
    """

    def __init__(self, model: MaskedAutoencoder, mask_ratio: float) -> None:
        super().__init__()
        self.model, self.mask_ratio = model, mask_ratio

    def forward(self, images: Tensor, noise: Tensor) -> list[Tensor]:
        """Return predictions [B, L, P*P*C] and the mask, float32 [B, L], 1 = hidden.

        The images [B, C, H, W] are normalized; the largest values of `noise` [B, L] hide their patches.
        """
        masks = self.model.random_masks(noise, self.mask_ratio)
        return [self.model.predict_all(images, masks)[0], masks.mask.astype("float32")]


class AutoencoderMethod(Method[AutoencoderT]):
    """The common part of methods that train `MaskedAutoencoder`: MAE and its successors.

    Attributes:
        dialect: code base whose network is meant if several code bases share a name, see `registry.Variant`; empty for
            facebookresearch/mae.
        default_model: registered network for files without options; the sizes in the file replace its sizes.
        interpolation: interpolation of crops and resizes.
        no_decay: names of parameters without weight decay, in addition to vectors and biases.
    """

    network = "mae"
    network_tensors = ("decoder.mask_token", "decoder.embed.weight")
    stored_options = MappingProxyType(
        {"norm_pix_loss": ("norm_pix_loss", "normlize_target"), "mask_ratio": ("mask_ratio",)}
    )
    parity = "mae"
    dialect = ""
    default_model = "mae_vit_base_patch16"
    interpolation: Interpolation = "bicubic"
    no_decay: Collection[str] = ()

    # Subclasses override the next three methods for options that only some code bases have.

    def switches(self, config: AutoencoderT) -> dict[str, Any]:
        """Return the network arguments for options that `AutoencoderConfig` lacks."""
        return {}

    def hflip(self, config: AutoencoderT) -> float:
        """Return the probability of a horizontal flip."""
        return 0.5

    def shared_mask(self, config: AutoencoderT) -> bool:
        """Return whether all images of a batch have the same mask."""
        return False

    def build_task(self, config: AutoencoderT) -> MAETask:
        """Build the Task of the options: the network that they name, with their overrides."""
        require_network(config.model, registry.MAE)
        self._check_mask(config)
        overrides = {name: getattr(config, name) for name in NETWORK_OPTIONS} | self.switches(config)
        overrides |= self._target_statistics(config)
        model = create_model(config.model, dialect=self.dialect, img_size=config.image_size, **overrides)
        return MAETask(
            cast(MaskedAutoencoder, model),
            config.mask_ratio,
            self.normalize(config),
            shared_mask=self.shared_mask(config),
            no_decay=self.no_decay,
        )

    def _target_statistics(self, config: AutoencoderT) -> dict[str, Any]:
        """Return the arguments "pixel_mean" and "pixel_std" that fit the normalization of this run's images.

        The result is {} if the registered network's own values fit, or if it has none.
        """
        registered = arguments_of(config.model, self.dialect).get("pixel_mean")
        if registered is None or (config.is_rgb and config.mean is None):
            return {}
        normalize = self.normalize(config)
        pairs = {"pixel_mean": normalize.mean, "pixel_std": normalize.std}
        return {name: tuple(values.flatten().tolist()) for name, values in pairs.items()}

    def log_remarks(self, config: AutoencoderT, task: Task) -> None:
        """Log how to choose a smaller decoder if the decoder has its default size and is larger than the encoder."""
        if config.decoder_embed_dim is not None or config.decoder_depth is not None:
            return
        model = cast(MAETask, task).model
        encoder, decoder = (sum(int(p.size) for p in part.parameters()) for part in (model.encoder, model.decoder))
        if decoder > encoder:
            smaller = f"{config.model}_dec192d4b"
            named = f"--model {smaller}, or " if smaller in VARIANTS else ""
            logger.info(
                "the decoder has %s parameters, the encoder %s; for a smaller one give %s--decoder_embed_dim, "
                "--decoder_depth and --decoder_num_heads",
                *(in_millions(decoder), in_millions(encoder), named),
            )

    def build_encoder(self, config: AutoencoderT) -> VisionTransformer:
        """Build the encoder of the network that the options name."""
        overrides = {name: getattr(config, name) for name in ENCODER_OPTIONS} | self.switches(config)
        arguments = arguments_of(config.model, self.dialect, **overrides)
        if arguments.pop("train_positions", False):
            arguments["positions"] = "learned"
        known = VisionTransformer.__init__.__annotations__
        return VisionTransformer(config.image_size, **{name: arguments[name] for name in arguments if name in known})

    def train_transform(self, config: AutoencoderT) -> WithNoise:
        """Return the transform to a random resized crop, randomly flipped, and the noise of a mask."""
        crop = RandomCropFlip(
            config.image_size, config.crop_scale, config.crop_ratio, self.hflip(config), self.interpolation
        )
        return WithNoise(crop, self._num_patches(config))

    def view_transform(self, config: AutoencoderT) -> WithNoise:
        """Return the transform to the largest center crop, and the noise of a mask."""
        center = ResizeCenterCrop(config.image_size, max(config.image_size), self.interpolation)
        return WithNoise(center, self._num_patches(config))

    def forward_macs(self, config: AutoencoderT, task: Task) -> int:
        """Count the multiply-accumulates of one image's forward pass with this run's number of visible patches.

        The count is of a pass that predicts every patch, see `MaskedAutoencoder.forward_macs`.
        """
        return cast(MAETask, task).model.forward_macs(config.mask_ratio)

    def training_macs(self, config: AutoencoderT, task: Task) -> int:
        """Count the multiply-accumulates of one image: three times `forward_macs`, for forward and backward pass."""
        return 3 * self.forward_macs(config, task)

    def infer_arguments(self, stored: Checkpoint) -> dict[str, Any]:
        """Return the arguments of `MaskedAutoencoder` that fit the tensors; the sizes of a missing decoder are None."""
        return autoencoder.infer_arguments(stored.model, find_dialect(stored.dialect), str(stored.path))

    def config_of(self, arguments: dict[str, Any]) -> AutoencoderT:
        """Return the options that describe a `MaskedAutoencoder` with these arguments, see `Method.config_of`."""
        known = {field.name for field in dataclasses.fields(self.config_class)}
        given = {name: value for name, value in arguments.items() if name in known and value is not None}
        size = pair(arguments["img_size"] or DEFAULT_SIZE)
        return self.config_class(**{"model": self.default_model, **given}, input_size=size)

    def reconstruction(self, config: AutoencoderT, network: nn.Layer) -> Reconstruction:
        """Return the network as a layer that hides the share `mask_ratio` of the patches and predicts all."""
        model = cast(MaskedAutoencoder, network)
        order = "channel slowest" if model.channels_first else "channel fastest"
        kind = "pixels normalized patch by patch" if model.norm_pix_loss else "normalized pixels"
        if model.pixel_mean is not None and not model.norm_pix_loss:
            kind = "pixels from 0 to 1"
        outputs = {
            "pred": f"[B, L, P*P*C] {kind} of all patches in raster order, {order}",
            "mask": "[B, L] 1 for hidden patches, else 0",
        }
        hidden = model.encoder.num_patches - model.num_visible(config.mask_ratio)
        return Reconstruction(HiddenPixels(model, config.mask_ratio), "noise", hidden, outputs)

    def describe(self, stored: Checkpoint, config: AutoencoderT | None) -> Description:
        """Return the description: the decoder, and the normalization of the targets if the options are stored."""
        foreign_name = find_dialect(stored.dialect).foreign_name
        token = tensor_of_rank(stored.model, foreign_name("decoder.mask_token"), 3, str(stored.path))
        decoder = {
            "embed_dim": 0 if token is None else token.shape[-1],
            "depth": count_blocks(stored.model, foreign_name("decoder.blocks.")),
        }
        decoder["num_heads"] = None if config is None else self._decoder_heads(stored, config, decoder["embed_dim"])
        options = stored.meta.get("args")
        names = self.stored_options["norm_pix_loss"]
        found = [options[name] for name in names if name in options] if isinstance(options, dict) else []
        assumed = config is not None and config.norm_pix_loss
        flag = "--no_norm_pix_loss" if assumed else "--norm_pix_loss"
        target, flags = "pixels of hidden patches", ""
        unknown: tuple[str, ...] = ()
        if found:
            target += ", normalized patch by patch" if found[0] else ", as they are"
            flags = f" {flag}" if found[0] != assumed else ""
        else:
            unknown = (
                f"whether these were normalized patch by patch: reconstruct assumes that they were"
                f"{'' if assumed else ' not'}, unless it gets {flag}",
            )
        return Description("masked autoencoder: encoder and decoder", {"decoder": decoder}, target, flags, unknown)

    def huggingface_settings(self, network: nn.Layer) -> dict[str, Any]:
        """Return the decoder's entries of ViTMAEConfig in Hugging Face Transformers."""
        decoder = network.decoder
        return {
            "decoder_hidden_size": decoder.embed.weight.shape[1],
            "decoder_num_hidden_layers": len(decoder.blocks),
            "decoder_num_attention_heads": decoder.blocks[0].attn.num_heads,
            "decoder_intermediate_size": decoder.blocks[0].mlp.fc1.weight.shape[1],
            "norm_pix_loss": network.norm_pix_loss,
        }

    def _decoder_heads(self, stored: Checkpoint, config: AutoencoderT, width: int) -> int | None:
        """Return the number of decoder heads; None if neither the options nor the file states it.

        For checkpoints of plsc_mae whose options do not set it, it follows from the stored name of the network.
        """
        if config.decoder_num_heads is not None or not stored.meta.get("phase"):
            options = stored.meta.get("args")  # those of a Hugging Face folder have it
            return config.decoder_num_heads or (options.get("decoder_num_heads") if isinstance(options, dict) else None)
        default = inspect.signature(MaskedAutoencoder).parameters["decoder_num_heads"].default
        heads = arguments_of(config.model, self.dialect).get("decoder_num_heads", default)
        return cast(int, heads or max(width // HEAD_DIM, 1))

    def _check_mask(self, config: AutoencoderT) -> None:
        patches = self._num_patches(config)
        rounding = arguments_of(config.model, self.dialect).get("round_down", "visible")
        visible = num_visible(patches, config.mask_ratio, rounding)
        if not 0 < visible < patches:
            raise ConfigError(
                f"{flag('mask_ratio')} {config.mask_ratio} leaves {visible} of {patches} patches visible; at least one "
                "must be visible and one hidden: give another ratio, "
                f"{remedies('other sizes', 'a larger --input_size', 'a smaller --patch_size')}"
            )

    @staticmethod
    def _num_patches(config: AutoencoderConfig) -> int:
        patch_size = config.patch_size or find_variant(config.model).arguments["patch_size"]
        rows, columns = patch_grid(config.image_size, patch_size)
        return rows * columns


class MAE(AutoencoderMethod[MAEConfig]):
    """Pre-training of the masked autoencoder of facebookresearch/mae, PLSC and LiBai."""

    config_class = MAEConfig
    dialects = frozenset({"facebook", "plsc", "timm"})
    published_speed = PublishedSpeed(
        "configs/mae/pretrain_vit_base_1600e.yaml",
        318.0,
        "A100",
        "PLSC task/ssl/mae README: 1600 epochs of ImageNet-1k in about 56 h on 32 A100",
        options={
            "model": "mae_vit_base_patch16",
            "norm_pix_loss": True,
            "mask_ratio": 0.75,
            "batch_size": 128,
            "epochs": 1600,
            "warmup_epochs": 40,
            "blr": 1.5e-4,
            "weight_decay": 0.05,
        },
        small={
            "input_size": (32,),
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 4,
            "decoder_embed_dim": 16,
            "decoder_depth": 1,
            "decoder_num_heads": 2,
            "batch_size": 4,
        },
    )

    def recognizes(self, stored: Checkpoint) -> bool:
        """Return whether a file may be MAE's.

        Files of MAE-priv and MAE-pytorch are rejected; their attention has no bias in the key projection.
        """
        return super().recognizes(stored) and NO_KEY_BIAS not in stored.model

    def switches(self, config: MAEConfig) -> dict[str, Any]:
        """Return the network arguments "norm_eps" and "train_positions", which differ in LiBai."""
        return {"norm_eps": config.norm_eps, "train_positions": config.train_positions}


class BeitStyleMAE(AutoencoderMethod[SuccessorT]):
    """The common part of MAE-priv and MAE-pytorch: bilinear crops, and a mask token without weight decay."""

    default_model = "pretrain_mae_base_patch16_224"
    interpolation: Interpolation = "bilinear"
    no_decay = ("decoder.mask_token",)
    bridge_bias: bool  # whether the projection from encoder to decoder has a bias

    def recognizes(self, stored: Checkpoint) -> bool:
        """Return whether a file is of this dialect, or has our parameter names and the biases of this network."""
        has_bias = "decoder.embed.bias" in stored.model
        return stored.dialect in self.dialects or (
            super().recognizes(stored) and NO_KEY_BIAS in stored.model and has_bias == self.bridge_bias
        )


def _classifier_arguments(config: MAEFinetuneConfig | MAELinprobeConfig) -> dict[str, Any]:
    return {"global_pool": config.global_pool, "norm_eps": config.norm_eps}


METHOD = MAE()
CLASSIFIER = ClassifierRecipe(
    _classifier_arguments,
    models="vit_*_patch1[46]",
    base_model="vit_base_patch16",
    head_std=2e-5,  # fine-tuning redraws the head close to 0 after loading (facebookresearch/mae main_finetune.py)
)
