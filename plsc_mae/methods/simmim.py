"""SimMIM pre-training with a ViT (Xie et al. 2022; microsoft/SimMIM main_simmim.py, data/data_simmim.py)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor, nn

from plsc_mae.analysis.trivial import fill_hidden, mean_over_batches
from plsc_mae.config.simmim import SimMIMConfig, SimMIMFinetuneConfig, SimMIMLinprobeConfig
from plsc_mae.data.normalize import Normalize
from plsc_mae.data.transforms import RandomCropFlip, ResizeCenterCrop
from plsc_mae.errors import ConfigError, flag, remedies
from plsc_mae.losses import channels_first
from plsc_mae.methods import contract
from plsc_mae.methods.base import MASKED, Batch, Drawn, PatchStats, StepOutput, Task
from plsc_mae.methods.contract import DEFAULT_SIZE, ClassifierRecipe, Description, Method, Reconstruction
from plsc_mae.methods.masks import WithMask
from plsc_mae.methods.memory_outline import FLOAT32, MemoryOutline, Stack
from plsc_mae.models import registry
from plsc_mae.models.layers import patchify, unpatchify
from plsc_mae.models.registry import ENCODER_OPTIONS, arguments_of, create_model, find_variant, require_network
from plsc_mae.models.simmim import SimMIM, encoder_arguments, masked_l1
from plsc_mae.models.vit import VisionTransformer, pair, patch_grid
from plsc_mae.optim import ParamGroup, Schedule, weight_decay_groups
from plsc_mae.optim.timm_schedule import timm_cosine, timm_multistep
from plsc_mae.weights.dialects import find_dialect
from plsc_mae.weights.dialects.base import tensor_of_rank
from plsc_mae.weights.dialects.encoder import infer_encoder

if TYPE_CHECKING:
    from plsc_mae.config import TrainingConfig
    from plsc_mae.weights import Checkpoint

NETWORK_OPTIONS = (*ENCODER_OPTIONS, "layer_scale_init_value")


@dataclass(frozen=True)
class CellMaskGenerator:
    """A generator of masks that hide square cells of patches: per image the share `ratio` of the cells, rounded up."""

    grid: tuple[int, int]  # (rows, columns) of patches of an image
    patches_per_cell: int  # side of a cell in patches; it divides both sides of the grid
    ratio: float  # fraction of hidden cells

    @property
    def cells(self) -> tuple[int, int]:
        """The grid of cells, (rows, columns)."""
        return self.grid[0] // self.patches_per_cell, self.grid[1] // self.patches_per_cell

    @property
    def num_hidden(self) -> int:
        """The number of hidden cells of an image, computed in double precision."""
        return math.ceil(math.prod(self.cells) * self.ratio)

    def __call__(self, rng: np.random.Generator | np.random.RandomState) -> npt.NDArray[np.bool_]:
        """Draw a mask [rows, columns] of patches, True = hidden, by one permutation of the cells as in the original."""
        hidden = np.zeros(math.prod(self.cells), np.bool_)
        hidden[rng.permutation(hidden.size)[: self.num_hidden]] = True
        side = self.patches_per_cell
        return hidden.reshape(self.cells).repeat(side, axis=0).repeat(side, axis=1)


class SimMIMTask(Task):
    """The task of predicting the pixels of hidden patches.

    Args:
        model: the network.
        normalize: converts images to the network's floats, which are the targets too.
        masks: generator of the masks in the samples.
    """

    model: SimMIM
    reference_loss = "loss"

    def __init__(self, model: SimMIM, normalize: Normalize, masks: CellMaskGenerator) -> None:
        super().__init__()
        self.model, self.normalize, self.masks = model, normalize, masks

    @property
    def num_masked(self) -> int:
        """The number of hidden patches of an image."""
        return self.masks.num_hidden * self.masks.patches_per_cell**2

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the loss of a batch {"image": pixels [B, H, W, C], "mask": bool [B, L]}."""
        images, mask = self.normalize(batch["image"]), batch["mask"]
        pred, latent = self.model(images, mask)
        loss = masked_l1(pred, self.model.target(images), mask, self.model.in_chans)
        features = None
        if self.gives_features:
            visible = 1.0 - mask.astype("float32").unsqueeze(-1)
            features = (latent[:, 1:].detach().astype("float32") * visible).sum(axis=1) / visible.sum(axis=1)
        return StepOutput(loss, {"loss": loss.detach()}, features)

    @paddle.no_grad()
    def trivial_losses(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the losses of trivial fills of the hidden patches, see `analysis.trivial.fill_hidden`."""
        return mean_over_batches([self._trivial_losses(batch) for batch in batches])

    def _trivial_losses(self, batch: Batch) -> dict[str, float]:
        model, mask = self.model, batch["mask"]
        images = self.normalize(batch["image"])
        patches, target = patchify(images, model.patch_size), model.target(images)
        fills = fill_hidden(patches.numpy(), mask.numpy(), model.encoder.grid, model.patch_size)
        preds = {name: channels_first(paddle.to_tensor(fill), model.in_chans) for name, fill in fills.items()}
        return {name: float(masked_l1(pred, target, mask, model.in_chans)) for name, pred in preds.items()}

    def param_groups(self, weight_decay: float) -> list[ParamGroup]:
        """Group the parameters; as in the original the mask token has weight decay and the class token has none."""
        return weight_decay_groups(self.model.named_parameters(), weight_decay, ("encoder.cls_token",))

    def schedule(self, config: TrainingConfig, lr: float, updates_per_epoch: int) -> Schedule:
        """Return timm's multistep or cosine schedule, as `lr_scheduler` says."""
        config = cast(SimMIMConfig, config)
        if config.lr_scheduler == "cosine":
            return _cosine(config, lr, updates_per_epoch)
        return timm_multistep(
            lr=lr,
            warmup_lr=config.warmup_lr,
            warmup_updates=int(config.warmup_epochs * updates_per_epoch),
            milestones=[epoch * updates_per_epoch for epoch in config.drop_epochs],
            factor=config.lr_gamma,
            weight_decay=config.weight_decay,
        )

    def memory_outline(self, batch_size: int, *, gpu: bool) -> MemoryOutline:
        """Return the outline: an encoder of all patches whose attention has a bias, and tensors of pixels."""
        encoder, (width, values) = self.model.encoder, self.model.decoder.weight.shape
        tokens, pixels = 1 + encoder.num_patches, encoder.num_patches * values
        return MemoryOutline(
            stacks=(Stack(encoder.blocks, tokens, tokens, biased=True),),
            batch=batch_size * pixels,  # uint8 images
            # inputs of the patch embedding, of the final norm and of the head; errors
            kept=FLOAT32 * batch_size * (2 * pixels + 2 * tokens * width),
            # normalized images, targets, predictions, absolute errors and their gradients
            working=FLOAT32 * batch_size * 5 * pixels,
        )

    @paddle.no_grad()
    def draw(self, batch: Batch, patch_stats: PatchStats | None = None) -> Drawn:
        """Return four pictures: original, masked, reconstruction, and reconstruction with the original visible patches.

        Raises:
            ConfigError: `patch_stats` is set.
        """
        if patch_stats is not None:
            raise ConfigError("--patch_stats is for models that predict normalized pixels; SimMIM predicts pixels")
        model, images = self.model, self.normalize(batch["image"])
        training = model.training
        model.eval()
        redrawn = model.draw(model(images, batch["mask"]).pred.astype("float32"))
        if training:
            model.train()
        hidden = batch["mask"].astype("float32").unsqueeze(-1).expand_as(patchify(images, model.patch_size))
        hidden = unpatchify(hidden, model.encoder.grid, model.patch_size)
        drawn = {
            "original": images,
            MASKED: images * (1 - hidden),
            "reconstruction": redrawn,
            "reconstruction + visible": images * (1 - hidden) + redrawn * hidden,
        }
        return {label: self.normalize.denormalize(x) for label, x in drawn.items()}

    def hidden_patches(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Return the mask of `draw`, bool [B, rows, columns], True = hidden."""
        return cast(npt.NDArray[np.bool_], batch["mask"].numpy().reshape(-1, *self.model.encoder.grid))


class Pixels(nn.Layer):
    """Network for inference that predicts the pixels of all patches."""

    def __init__(self, model: SimMIM) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor) -> list[Tensor]:
        """Return predictions [B, L, C*P*P] for images [B, C, H, W] and a mask, bool [B, L]."""
        return [self.model(images, mask).pred]


class SimMIMMethod(Method[SimMIMConfig]):
    """Pre-training by SimMIM with a ViT."""

    config_class = SimMIMConfig
    network = "simmim"
    network_tensors = ("encoder.mask_token", "decoder.weight")
    dialects = frozenset({"simmim"})
    parity = "simmim"

    def build_task(self, config: SimMIMConfig) -> SimMIMTask:
        """Build the Task of the options: the network that they name, with their overrides."""
        require_network(config.model, registry.SIMMIM)
        masks = self._masks(config)
        overrides = {name: getattr(config, name) for name in NETWORK_OPTIONS}
        model = create_model(config.model, img_size=config.image_size, **overrides)
        return SimMIMTask(cast(SimMIM, model), self.normalize(config), masks)

    def build_encoder(self, config: SimMIMConfig) -> VisionTransformer:
        """Build the encoder of the network that the options name, without its mask token."""
        sizes = arguments_of(config.model, **{name: getattr(config, name) for name in NETWORK_OPTIONS})
        return VisionTransformer(config.image_size, **encoder_arguments(**sizes))

    def train_transform(self, config: SimMIMConfig) -> WithMask:
        """Return the transform to a random resized crop, flipped with probability 0.5, and a mask."""
        crop = RandomCropFlip(config.image_size, config.crop_scale, config.crop_ratio, 0.5, "bilinear")
        return WithMask(crop, self._masks(config))

    def view_transform(self, config: SimMIMConfig) -> WithMask:
        """Return the transform to the largest center crop, and a mask."""
        center = ResizeCenterCrop(config.image_size, max(config.image_size), "bilinear")
        return WithMask(center, self._masks(config))

    def forward_macs(self, config: SimMIMConfig, task: Task) -> int:
        """Count the multiply-accumulates of one image's forward pass: encoder and head over all patches."""
        return cast(SimMIMTask, task).model.forward_macs()

    def training_macs(self, config: SimMIMConfig, task: Task) -> int:
        """Count the multiply-accumulates of one image: three times `forward_macs`, for forward and backward pass."""
        return 3 * self.forward_macs(config, task)

    def infer_arguments(self, stored: Checkpoint) -> dict[str, Any]:
        """Return the arguments of `VisionTransformer` and `SimMIM` that fit the tensors of a file."""
        encoder = infer_encoder(stored.model, find_dialect(stored.dialect), str(stored.path))
        return {**encoder, "layer_scale_init_value": encoder["layer_scale"]}

    def config_of(self, arguments: dict[str, Any]) -> SimMIMConfig:
        """Return the options that describe a `SimMIM` with these arguments, see `Method.config_of`.

        A mask cell has its published size, the default of `mask_patch_size`, if that fits the patches and the image;
        otherwise a cell is one patch.
        """
        known = {field.name for field in dataclasses.fields(SimMIMConfig)}
        given = {name: value for name, value in arguments.items() if name in known and value is not None}
        size, patch_size = pair(arguments["img_size"] or DEFAULT_SIZE), arguments["patch_size"]
        published = SimMIMConfig.mask_patch_size
        fits = not (published % patch_size or any(side % published for side in size)) and min(size) > published
        return SimMIMConfig(**given, input_size=size, mask_patch_size=published if fits else patch_size)

    def reconstruction(self, config: SimMIMConfig, network: nn.Layer) -> Reconstruction:
        """Return the network as a layer that predicts all patches; a mask may hide any number of them."""
        masks = self._masks(config)
        hidden = masks.num_hidden * masks.patches_per_cell**2
        outputs = {"pred": "[B, L, C*P*P] normalized pixels of all patches in raster order, channel slowest"}
        return Reconstruction(Pixels(cast(SimMIM, network)), "mask", hidden, outputs)

    def describe(self, stored: Checkpoint, config: SimMIMConfig | None) -> Description:
        """Return the description: the head's number of outputs, and the target."""
        name = find_dialect(stored.dialect).foreign_name("decoder.bias")
        bias = tensor_of_rank(stored.model, name, 1, str(stored.path))
        return Description(
            "SimMIM: encoder with mask token, and a linear head",
            {"decoder": {"outputs": None if bias is None else len(bias)}},
            "pixels of hidden patches",
        )

    def _masks(self, config: SimMIMConfig) -> CellMaskGenerator:
        """Return the generator of masks; refuse cells that do not fit image and patches, or would all be hidden."""
        patch_size = config.patch_size or int(find_variant(config.model).arguments["patch_size"])
        cell, (rows, columns) = config.mask_patch_size, patch_grid(config.image_size, patch_size)
        if cell % patch_size or config.image_size[0] % cell or config.image_size[1] % cell:
            raise ConfigError(
                f"{flag('mask_patch_size')} {cell} must be a multiple of the patch side {patch_size} and divide the "
                "image of "
                f"{config.image_size[0]} x {config.image_size[1]} pixels; {patch_size} hides single patches"
            )
        masks = CellMaskGenerator((rows, columns), cell // patch_size, config.mask_ratio)
        if masks.num_hidden == math.prod(masks.cells):
            raise ConfigError(
                f"{flag('mask_ratio')} {config.mask_ratio:g} hides all {masks.num_hidden} cells of an image; give a "
                "smaller "
                f"ratio, {remedies('a smaller --mask_patch_size', 'a larger --input_size')}"
            )
        return masks


def _cosine(config: SimMIMConfig | SimMIMFinetuneConfig, lr: float, updates_per_epoch: int) -> Schedule:
    return timm_cosine(
        lr=lr,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        updates=config.epochs * updates_per_epoch,
        warmup_updates=int(config.warmup_epochs * updates_per_epoch),
        weight_decay=config.weight_decay,
    )


def _classifier_arguments(config: SimMIMFinetuneConfig | SimMIMLinprobeConfig) -> dict[str, Any]:
    return {"global_pool": config.global_pool, "layer_scale": config.layer_scale_init_value}


METHOD = SimMIMMethod()
CLASSIFIER = ClassifierRecipe(
    _classifier_arguments,
    models="simmim_*_224",
    base_model="simmim_base_patch16_224",
    flags=contract.layer_scale_flag,
    finetune_schedule=_cosine,
)
