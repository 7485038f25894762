"""The prediction targets of CAE: tokens of a dVAE, indices of random vectors, or pixels.

A target computes one class or one vector per patch, and the loss of predicting it. B batch, L patches, M hidden
patches, P patch size, C channels, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor, nn

from plsc_mae import weights
from plsc_mae.analysis.trivial import ZERO, fill_hidden, mean_over_batches, token_losses
from plsc_mae.config import CAEConfig
from plsc_mae.data.normalize import Normalize
from plsc_mae.errors import CheckpointError, ConfigError, flag, remedies
from plsc_mae.losses import PixelNorm, cross_entropy, denormalize_pixels, normalize_pixels, squared_error
from plsc_mae.methods.base import Batch
from plsc_mae.models.dalle import DalleDecoder, DalleEncoder, random_init
from plsc_mae.models.layers import patchify, unpatchify
from plsc_mae.weights.dalle import has_dalle, infer_sizes, read_dalle
from plsc_mae.weights.finite import require_finite
from plsc_mae.wording import counted

FETCH_AGAIN = "fetch the file again"
VOCABULARY = 8192


class Target(nn.Layer):
    """A prediction target for every patch, with its loss."""

    num_classes: int  # number of values K of a prediction

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Compute the targets of all patches, without gradient: int64 classes [B, L] or float vectors [B, L, K]."""

    @abstractmethod
    def loss(self, pred: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (loss, values to log) of predictions [B*M, K] and targets [B*M] or [B*M, K] of hidden patches."""

    @abstractmethod
    def trivial_losses(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the losses of trivial predictors for batches that `CAETask.prepare` returned."""


class ClassTarget(Target):
    """A target that is one class out of K."""

    def loss(self, pred: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross entropy in float32, and two accuracies between 0 and 1 to log.

        "mlm_acc" is the accuracy of the predictions; "top_token_share" is the accuracy that a constant prediction of
        the batch's most frequent class would have.
        """
        counts = paddle.scatter_nd_add(
            paddle.zeros([self.num_classes]), target.unsqueeze(-1), paddle.ones(target.shape)
        )
        return cross_entropy(pred, target), {
            "mlm_acc": (pred.detach().argmax(axis=-1) == target).astype("float32").mean(),
            "top_token_share": counts.max() / target.shape[0],
        }

    def trivial_losses(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the cross entropies of constant predictions, see `analysis.trivial.token_losses`."""
        return token_losses([batch["target"].numpy() for batch in batches], self.num_classes)


class TokenTarget(ClassTarget):
    """The tokens of a frozen dVAE for the "tokenizer_image" of the batch."""

    def __init__(self, tokenizer: DalleEncoder, num_classes: int) -> None:
        super().__init__()
        self.tokenizer, self.num_classes = tokenizer, num_classes

    def forward(self, batch: Batch) -> Tensor:
        """Return the tokens, int64 [B, L]."""
        return self.tokenizer.tokenize(batch["tokenizer_image"])


class PixelTarget(Target):
    """The pixels of each patch, normalized as `kind` says (target_mode rgb of PLSC).

    Args:
        normalize: converts images to the network's floats.
        patch_size: P.
        kind: normalization within a patch, see `losses.normalize_patches`.
        denorm: whether `normalize` is undone first, so that `kind` applies to pixels in [0, 1].
        in_chans: channels C.
    """

    def __init__(
        self, normalize: Normalize, patch_size: int, kind: PixelNorm, *, denorm: bool, in_chans: int = 3
    ) -> None:
        super().__init__()
        self.normalize, self.patch_size, self.kind, self.denorm = normalize, patch_size, kind, denorm
        self.in_chans, self.num_classes = in_chans, patch_size * patch_size * in_chans

    def forward(self, batch: Batch) -> Tensor:
        """Return pixels [B, L, P*P*C]; the channel changes fastest, but slowest if `kind` is "channel"."""
        return normalize_pixels(self._patches(batch), self.kind, self.in_chans)

    def _patches(self, batch: Batch) -> Tensor:
        images = self.normalize(batch["image"])
        if self.denorm:
            images = self.normalize.denormalize(images)
        return patchify(images, self.patch_size)

    def loss(self, pred: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error in float32, and no values to log."""
        return squared_error(pred, target), {}

    @paddle.no_grad()
    def trivial_losses(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the losses of trivial fills of the hidden patches, see `analysis.trivial.fill_hidden`.

        If targets are normalized within each patch, so are the fills, and the loss of predicting zeros is added as
        "zero".
        """
        return mean_over_batches([self._trivial_losses(batch) for batch in batches])

    def _trivial_losses(self, batch: Batch) -> dict[str, float]:
        patches, hidden, target = self._patches(batch), batch["mask"].numpy(), batch["target"]
        height, width = batch["image"].shape[1:3]
        grid = (height // self.patch_size, width // self.patch_size)
        preds = {
            name: normalize_pixels(paddle.to_tensor(fill[hidden]), self.kind, self.in_chans)
            for name, fill in fill_hidden(patches.numpy(), hidden, grid, self.patch_size).items()
        }
        if self.kind != "none":
            preds[ZERO] = paddle.zeros_like(target)
        return {name: float(squared_error(pred, target)) for name, pred in preds.items()}

    def draw(self, pred: Tensor, images: Tensor) -> Tensor:
        """Return the images that predictions of all patches represent.

        Args:
            pred: predictions [B, L, K].
            images: normalized images [B, C, H, W], whose patches have the statistics that `forward` divided out.

        Returns:
            Images [B, C, H, W] on the scale from 0 to 1; values outside are not clipped.
        """
        source = self.normalize.denormalize(images) if self.denorm else images
        pixels = denormalize_pixels(pred, patchify(source, self.patch_size), self.kind, self.in_chans)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        drawn = unpatchify(pixels, grid, self.patch_size)
        return drawn if self.denorm else self.normalize.denormalize(drawn)


class VectorTarget(ClassTarget):
    """The index of the fixed vector with the largest dot product with a patch (target_mode random of VIMER).

    Args:
        pixels: computes the patches [B, L, P*P*C].
        vectors: [P*P*C, K], one vector per column.
    """

    def __init__(self, pixels: PixelTarget, vectors: np.ndarray) -> None:
        super().__init__()
        self.pixels = pixels
        self.register_buffer("vectors", paddle.to_tensor(vectors.astype(np.float32)), persistable=False)
        self.num_classes = vectors.shape[1]

    def forward(self, batch: Batch) -> Tensor:
        """Return the index of the vector for every patch, int64 [B, L]."""
        return paddle.matmul(self.pixels(batch), self.vectors).argmax(axis=-1)


def build_target(config: CAEConfig, normalize: Normalize, patch_size: int) -> Target:
    """Build the target that the options name.

    Raises:
        ConfigError: an option of the target is missing, or does not fit the others or the device.
        CheckpointError: the file of the tokenizer or of the vectors cannot be used.
    """
    if config.target_mode == "clusterID":
        target: Target = _token_target(config)
    else:
        target = pixels = PixelTarget(
            normalize, patch_size, config.normalized_pixel, denorm=config.denorm, in_chans=config.channels
        )
        if config.target_mode == "random":
            target = VectorTarget(pixels, _random_vectors(config, pixels.num_classes))
    if config.decoder_num_classes not in (None, target.num_classes):
        raise ConfigError(
            f"{flag('decoder_num_classes')} {config.decoder_num_classes}: the target ({config.target_mode}) has "
            f"{target.num_classes} classes; leave the option out"
        )
    return target


def load_decoder(config: CAEConfig, vocabulary: int) -> DalleDecoder | None:
    """Load the dVAE's decoder from the tokenizer's folder, for pictures.

    The result is None if the targets are not tokens of a tokenizer from a file, or if the file of the decoder is
    missing or ambiguous (`has_dalle`).

    Raises:
        CheckpointError: the file cannot be used, or has another vocabulary.
        ConfigError: --discrete_vae_dtype is float16 on CPU.
    """
    folder = config.discrete_vae_weight_path
    if config.target_mode != "clusterID" or config.discrete_vae_type != "dall-e":
        return None
    if not folder or not has_dalle(folder, "decoder"):
        return None
    tensors = read_dalle(folder, "decoder")
    require_finite(tensors, folder, FETCH_AGAIN)
    sizes = infer_sizes(tensors)
    if sizes["vocab_size"] != vocabulary:
        raise CheckpointError(
            f"the decoder in {folder} has {sizes['vocab_size']} tokens, but the encoder has {vocabulary}; take both "
            "from one source, or remove the decoder, which only pictures need"
        )
    return DalleDecoder.from_arrays(tensors, sizes, compute_dtype=config.discrete_vae_dtype, origin=folder)


def _token_target(config: CAEConfig) -> TokenTarget:
    if config.discrete_vae_type == "random_init":
        classes = config.decoder_num_classes or VOCABULARY
        tokenizer = DalleEncoder(config.discrete_vae_hidden, classes, compute_dtype=config.discrete_vae_dtype)
        random_init(tokenizer, config.discrete_vae_seed)
        return TokenTarget(tokenizer, classes)
    path = config.discrete_vae_weight_path
    if not path:
        trial = remedies("; to try CAE out without one, give --discrete_vae_type random_init")
        raise ConfigError(
            f"{flag('discrete_vae_weight_path')} is required: the folder with DALL-E's encoder.pkl or PLSC's "
            f"encoder_weight.pd (see docs/reference/cae.md for downloads){trial}"
        )
    tensors = read_dalle(path, "encoder")
    require_finite(tensors, path, FETCH_AGAIN)
    sizes = infer_sizes(tensors)
    tokenizer = DalleEncoder.from_arrays(tensors, sizes, compute_dtype=config.discrete_vae_dtype, origin=path)
    return TokenTarget(tokenizer, sizes["vocab_size"])


def _random_vectors(config: CAEConfig, length: int) -> np.ndarray:
    if config.target_path is None:
        shape = (length, config.decoder_num_classes or VOCABULARY)
        return np.random.default_rng(config.discrete_vae_seed).standard_normal(shape, np.float32)
    arrays = list(weights.read(config.target_path).tensors.values())
    if len(arrays) != 1 or arrays[0].ndim != 2 or arrays[0].shape[0] != length:
        found = ", ".join(str(list(array.shape)) for array in arrays[:3])
        raise CheckpointError(
            f"{flag('target_path')} {config.target_path} holds {counted(len(arrays), 'array')} ({found}); expected one "
            f"of shape [{length}, classes], one vector per class"
        )
    require_finite({"its array": arrays[0]}, f"{flag('target_path')} {config.target_path}", FETCH_AGAIN)
    return arrays[0]
