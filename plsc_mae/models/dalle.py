"""DALL-E's discrete VAE (Ramesh et al. 2021): the frozen tokenizer of CAE, and the decoder from tokens to images.

B batch, V vocabulary, C channels, H x W image in pixels; the token grid is h = H/8 by w = W/8. Parameters have the
names and layouts of openai/DALL-E: kernels `w` are [out, in, k, k].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.models.execution import on_cpu
from plsc_mae.models.layers import only_declared

GROUPS = 4
STRIDE = 8  # side of a token in pixels: the resolution is halved between groups
PIXEL_EPS = 0.1  # keeps pixels off 0 and 1, where the logit-Laplace distribution has no density

ComputeDtype = Literal["auto", "float16", "float32"]
Network = TypeVar("Network", bound="_DalleNetwork")


def map_pixels(pixels: Tensor) -> Tensor:
    """Map pixels from [0, 1] to [0.1, 0.9], the input range of the encoder."""
    return (1 - 2 * PIXEL_EPS) * pixels + PIXEL_EPS


def unmap_pixels(pixels: Tensor) -> Tensor:
    """Undo `map_pixels` and clip to [0, 1]."""
    return paddle.clip((pixels - PIXEL_EPS) / (1 - 2 * PIXEL_EPS), 0, 1)


class Conv2D(nn.Layer):
    """A frozen convolution of stride 1 that keeps the image size; its parameters are zero until they are filled.

    The weights are stored in the dtype of the computation, so a forward pass converts only its input.
    """

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int, dtype: str) -> None:
        super().__init__()
        zero = nn.initializer.Constant(0.0)
        self.dtype = dtype
        shape = [out_chans, in_chans, kernel_size, kernel_size]
        self.w = self.create_parameter(shape, dtype=dtype, default_initializer=zero)
        self.b = self.create_parameter([out_chans], dtype=dtype, is_bias=True)
        self.w.stop_gradient = self.b.stop_gradient = True

    def forward(self, x: Tensor) -> Tensor:
        """Convolve in the layer's dtype: [B, in, H, W] of any float type -> [B, out, H, W]."""
        x, w, b = as_dtype(x, self.dtype), self.w, self.b
        out_chans, in_chans, size, _ = w.shape
        pixels = x.shape[2] * x.shape[3]
        if on_cpu(x) and size > 1 and in_chans > out_chans and pixels > out_chans:
            # Compute the same sum as a transposed convolution. On CPU, a convolution copies size*size shifted inputs;
            # a transposed one adds size*size shifted outputs. These have fewer channels here: up to 3 times faster.
            w = w[:, :, ::-1, ::-1].transpose([1, 0, 2, 3])
            return F.conv2d_transpose(x, w, b, padding=size // 2)
        return F.conv2d(x, w, b, padding=size // 2)


class Block(nn.Layer):
    """A residual block: x plus `gain` times the output of four convolutions, each with a ReLU before it.

    If the block changes the number of channels, a 1x1 convolution adapts x.
    """

    def __init__(self, in_chans: int, out_chans: int, kernels: Sequence[int], gain: float, dtype: str) -> None:
        super().__init__()
        hidden = out_chans // 4
        widths = (in_chans, hidden, hidden, hidden, out_chans)
        self.gain = gain
        self.id_path = Conv2D(in_chans, out_chans, 1, dtype) if in_chans != out_chans else None
        self.res_path = nn.Sequential(
            *((f"conv_{i + 1}", Conv2D(widths[i], widths[i + 1], kernel, dtype)) for i, kernel in enumerate(kernels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: [B, in, H, W] -> [B, out, H, W]."""
        residual = x
        for conv in self.res_path:
            residual = conv(F.relu(residual))
        x = as_dtype(x, residual.dtype) if self.id_path is None else self.id_path(x)
        return x + self.gain * residual


def _make_blocks(
    first: Conv2D, last: Conv2D, widths: Sequence[int], kernels: Sequence[int], blocks_per_group: int, dtype: str
) -> nn.Sequential:
    """Build the layers of an encoder or decoder: a convolution, four groups of residual blocks, a convolution.

    `widths` are the input channels of the first group, then the output channels of each group.
    """
    gain = 1 / (GROUPS * blocks_per_group) ** 2

    def group(before: int, after: int) -> nn.Sequential:
        in_chans = [before] + [after] * (blocks_per_group - 1)
        blocks = (Block(chans, after, kernels, gain, dtype) for chans in in_chans)
        return nn.Sequential(*((f"block_{i}", block) for i, block in enumerate(blocks, start=1)))

    groups = (group(*pair) for pair in itertools.pairwise(widths))
    return nn.Sequential(
        ("input", first),
        *((f"group_{i}", layers) for i, layers in enumerate(groups, start=1)),
        ("output", nn.Sequential(("conv", last))),
    )


class _DalleNetwork(nn.Layer):
    """The common part of encoder and decoder."""

    blocks: nn.Sequential

    @classmethod
    def from_arrays(
        cls: type[Network],
        tensors: Mapping[str, npt.NDArray[Any]],
        sizes: Mapping[str, int],
        *,
        compute_dtype: ComputeDtype = "auto",
        origin: str = "the tensors",
    ) -> Network:
        """Build a network from its weights.

        Args:
            tensors: the parameters by name, such as `blocks.input.w`.
            sizes: the constructor's arguments that fit the shapes of the tensors.
            compute_dtype: see the constructor.
            origin: where the tensors come from, for error messages.

        Raises:
            CheckpointError: a tensor is missing, unknown or of another shape.
            ConfigError: float16 on CPU.
        """
        network = cls(**sizes, compute_dtype=compute_dtype)
        own = network.state_dict()
        for name in sorted(own.keys() | tensors.keys()):
            found = list(tensors[name].shape) if name in tensors else "none"
            wanted = list(own[name].shape) if name in own else "none"
            if found != wanted:
                raise CheckpointError(
                    f"{origin}: '{name}' has shape {found}, but a {cls.__name__} of {dict(sizes)} needs {wanted}; "
                    "the file is incomplete or holds another network"
                )
        for name, parameter in own.items():
            fill(parameter, np.ascontiguousarray(tensors[name], dtype=np.float32))
        return network

    def _groups_and_output(self, x: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply the groups of blocks, with `resize` between them, then the output convolution."""
        for i in range(1, GROUPS + 1):
            x = self.blocks[f"group_{i}"](x)
            if i < GROUPS:
                x = resize(x)
        return self.blocks["output"](F.relu(x))


class DalleEncoder(_DalleNetwork):
    """The encoder from images to logits over the vocabulary, one distribution for every 8x8 pixels.

    Args:
        n_hid: width of the first group; it doubles from group to group.
        vocab_size: number of tokens.
        in_chans: color channels.
        blocks_per_group: residual blocks in each of the four groups.
        compute_dtype: dtype of all convolutions except the last, which is float32. "auto" is float16 on GPU and float32
            on CPU, as in the original.

    Raises:
        ConfigError: float16 on CPU.
    """

    def __init__(
        self,
        n_hid: int = 256,
        vocab_size: int = 8192,
        in_chans: int = 3,
        blocks_per_group: int = 2,
        compute_dtype: ComputeDtype = "auto",
    ) -> None:
        super().__init__()
        dtype = _resolve_dtype(compute_dtype)
        self.blocks = _make_blocks(
            first=Conv2D(in_chans, n_hid, 7, dtype),
            last=Conv2D(8 * n_hid, vocab_size, 1, "float32"),
            widths=[n_hid * factor for factor in (1, 1, 2, 4, 8)],
            kernels=(3, 3, 3, 1),
            blocks_per_group=blocks_per_group,
            dtype=dtype,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of every token.

        Args:
            images: float32 [B, C, H, W] in [0.1, 0.9], see `map_pixels`.

        Returns:
            Logits [B, V, h, w] in float32.
        """
        return self._groups_and_output(self.blocks["input"](images), lambda x: F.max_pool2d(x, 2))

    def working_bytes(self, batch_size: int, grid: tuple[int, int], *, gpu: bool) -> int:
        """Estimate the temporary memory of `tokenize` for images of `grid` tokens, in bytes.

        It is the larger of two: the logits, or the tensors of the first group (input, output and two between them),
        which have the full image size. The estimate is for compute_dtype auto: GPUs compute the whole batch at once in
        16 bits, CPUs one image at a time in 32 bits.
        """
        width, vocabulary = self.blocks["input"].w.shape[0], self.blocks["output"]["conv"].w.shape[0]
        images, number = (batch_size, 2) if gpu else (1, 4)
        tokens = images * grid[0] * grid[1]
        return max(4 * number * tokens * STRIDE**2 * width, 4 * tokens * vocabulary)

    @paddle.no_grad()
    def tokenize(self, images: Tensor) -> Tensor:
        """Return the most likely token of every 8x8 pixels.

        Args:
            images: uint8 [B, H, W, C].

        Returns:
            int64 [B, h*w] in raster order.
        """
        with paddle.amp.auto_cast(enable=False):
            chunks = [self._most_likely(chunk) for chunk in _chunks(images)]
        return paddle.concat(chunks)

    def _most_likely(self, images: Tensor) -> Tensor:
        pixels = images.transpose([0, 3, 1, 2]).astype("float32") / 255
        return self(map_pixels(pixels)).argmax(axis=1).flatten(1)


class DalleDecoder(_DalleNetwork):
    """The decoder from tokens to images.

    Args:
        n_init: output channels of the input convolution.
        n_hid: width of the last group; the first is eight times as wide.
        vocab_size: number of tokens.
        out_chans: color channels.
        blocks_per_group: residual blocks in each of the four groups.
        compute_dtype: see `DalleEncoder`; here the first convolution is the one in float32.

    Raises:
        ConfigError: float16 on CPU.
    """

    def __init__(
        self,
        n_init: int = 128,
        n_hid: int = 256,
        vocab_size: int = 8192,
        out_chans: int = 3,
        blocks_per_group: int = 2,
        compute_dtype: ComputeDtype = "auto",
    ) -> None:
        super().__init__()
        dtype = _resolve_dtype(compute_dtype)
        self.blocks = _make_blocks(
            first=Conv2D(vocab_size, n_init, 1, "float32"),
            last=Conv2D(n_hid, 2 * out_chans, 1, dtype),
            widths=[n_init, *(n_hid * factor for factor in (8, 4, 2, 1))],
            kernels=(1, 3, 3, 3),
            blocks_per_group=blocks_per_group,
            dtype=dtype,
        )
        self.out_chans = out_chans

    def forward(self, probs: Tensor) -> Tensor:
        """Compute the parameters of the logit-Laplace distribution of every pixel.

        Args:
            probs: one-hot tokens or distributions [B, V, h, w].

        Returns:
            float32 [B, 2*C, H, W] before the sigmoid: the location of each channel, then the log scale of each.
        """
        return self._draw(self.blocks["input"](probs))

    @paddle.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Decode tokens, int64 [B, h, w], into pixels [B, C, H, W] in [0, 1]."""
        with paddle.amp.auto_cast(enable=False):
            return paddle.concat([self._pixels(chunk) for chunk in _chunks(tokens)])

    def _pixels(self, tokens: Tensor) -> Tensor:
        first = self.blocks["input"]
        # A 1x1 convolution of a one-hot map picks columns of its kernel.
        x = F.embedding(tokens, first.w.flatten(1).t()) + first.b
        location = self._draw(x.transpose([0, 3, 1, 2]))[:, : self.out_chans]
        return unmap_pixels(F.sigmoid(location))

    def _draw(self, x: Tensor) -> Tensor:
        upsample = nn.Upsample(scale_factor=2, mode="nearest")
        return self._groups_and_output(x, upsample).astype("float32")


def random_init(network: DalleEncoder | DalleDecoder, seed: int) -> None:
    """Fill a network with random weights drawn from `seed`, for trying CAE out without a download.

    Kernels are normal with variance 1 / fan-in, minus the mean of each output channel; biases are zero. Except for
    subtracting the mean, this is the initialization of openai/DALL-E. A network whose parameters have no values yet
    (`paddle.LazyGuard`) stays as it is.
    """
    if only_declared(network):
        return
    rng = np.random.default_rng(seed)
    for name, parameter in network.named_parameters():
        value = np.zeros(parameter.shape, np.float32)
        if name.endswith(".w"):
            value = rng.standard_normal(parameter.shape, np.float32) / np.float32(value[0].size ** 0.5)
            # The outputs of a ReLU have a positive mean, which would favor the same few tokens at every place.
            # Kernels that sum to zero cancel it.
            value -= value.mean(axis=(1, 2, 3), keepdims=True)
        fill(parameter, value)


def fill(parameter: Tensor, value: npt.NDArray[np.float32]) -> None:
    """Set a parameter to float32 values, converted to its dtype."""
    parameter.set_value(as_dtype(paddle.to_tensor(value), parameter.dtype))


def as_dtype(x: Tensor, dtype: str | paddle.dtype) -> Tensor:
    """Convert a tensor to a dtype; unlike `astype`, make no copy of a tensor that has it already."""
    wanted = getattr(paddle, dtype) if isinstance(dtype, str) else dtype
    return x if x.dtype == wanted else x.astype(wanted)


def _resolve_dtype(compute_dtype: ComputeDtype) -> str:
    on_cpu = paddle.get_device() == "cpu"
    if compute_dtype == "auto":
        return "float32" if on_cpu else "float16"
    if compute_dtype == "float16" and on_cpu:
        raise ConfigError("the tokenizer computes in float16 on GPU only; use compute_dtype auto or float32 on CPU")
    return compute_dtype


def _chunks(batch: Tensor) -> list[Tensor]:
    """Split a batch on CPU into single samples, which is faster there; keep it whole on other devices."""
    return batch.split(batch.shape[0]) if on_cpu(batch) else [batch]
