"""Which patches are hidden. In the whole repository `mask[B, L]` is bool and True means hidden from the encoder."""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor


class Mask(NamedTuple):
    """A random mask and the index forms that models need; K visible and M hidden patches, L = K + M."""

    mask: Tensor  # bool [B, L]
    ids_keep: Tensor  # int64 [B, K], in the order of rising noise
    ids_masked: Tensor  # int64 [B, M], in the order of rising noise
    ids_restore: Tensor  # int64 [B, L]: place of each patch in concat(ids_keep, ids_masked)


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Visible patches of L: `int(L * (1 - mask_ratio))`, cut off in double precision (facebookresearch/mae)."""
    return int(num_patches * (1 - mask_ratio))


def random_masking(noise: Tensor, mask_ratio: float) -> Mask:
    """Hide the patches with the largest noise, each image by its own (He et al. 2022, section 3).

    Args:
        noise: uniform draws [B, L]; an argument, so that a mask can be fixed and belongs to its sample.
        mask_ratio: share of hidden patches in [0, 1).
    """
    keep = num_visible(noise.shape[1], mask_ratio)
    ids_shuffle = paddle.argsort(noise, axis=1)
    ids_restore = paddle.argsort(ids_shuffle, axis=1)
    return Mask(ids_restore >= keep, ids_shuffle[:, :keep], ids_shuffle[:, keep:], ids_restore)
