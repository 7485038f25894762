"""Recorder of the blocks' outputs in a forward pass, and random weights that reveal parameters without effect."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from paddle import Tensor, nn

NOISE_STD = 0.02
_BLOCK = re.compile(r"(encoder|alignment_encoder|regressor|decoder)\.blocks\.\d+")
_EMBEDDED = ("encoder", "alignment", "decoder")  # the input of these stacks' first block is recorded too


@contextlib.contextmanager
def recorded_blocks(model: nn.Layer) -> Iterator[dict[str, Tensor]]:
    """Record the output of every block, and the input of every stack but the regressor, while the context is open.

    Yields:
        A dictionary that the forward pass fills with tokens by name, such as "encoder.embed" for the input of a stack
        and "encoder.blocks.0" for the output of a block. Tokens of a second pass through the encoder, or of the
        alignment encoder, have names like "alignment.embed".
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, tokens: Tensor) -> None:
        """Store tokens, under the alignment encoder's name if the name is taken already."""
        second_pass = name.replace("encoder.", "alignment.")
        found[second_pass if name in found else name] = tokens

    def hooks(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return hooks before and after a block: the first stores a stack's input, the second the block's output."""
        stack = name.partition(".")[0]
        embed = f"{stack}.embed" if stack in _EMBEDDED and name.endswith(".blocks.0") else ""

        def before(_layer: nn.Layer, inputs: tuple[Tensor, ...]) -> None:
            if embed:
                keep(embed, inputs[0])

        def after(_layer: nn.Layer, _inputs: Any, output: Tensor) -> None:
            keep(name, output)

        return before, after

    handles = []
    for name, layer in model.named_sublayers():
        if _BLOCK.fullmatch(name):
            before, after = hooks(name.replace("alignment_encoder", "alignment"))
            handles += [layer.register_forward_pre_hook(before), layer.register_forward_post_hook(after)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def randomize(model: nn.Layer, seed: int) -> None:
    """Set every parameter to random values that `seed` and its name determine; fixed position tables stay.

    Parameters of two or four dimensions are normally distributed with the variance of Xavier-uniform initialization. Of
    the others, constant ones (biases, scales of norms, layer scales) keep their constant and get normal noise with
    standard deviation `NOISE_STD` on top, and varying ones (tokens, trained position tables) are replaced by such
    noise. No parameter stays at 0 or 1, so a network that ignores one is detected.
    """
    for name, param in model.named_parameters():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        noise = rng.standard_normal(param.shape, np.float32)
        if param.ndim in (2, 4):
            fans = param.shape[0] + int(np.prod(param.shape[1:]))
            param.set_value(noise * np.float32(np.sqrt(2.0 / fans)))
        else:
            start = param.numpy()
            constant = start.flat[0] if np.ptp(start) == 0 else np.float32(0)
            param.set_value(constant + np.float32(NOISE_STD) * noise)
