"""Atten4Vis/CAE, its old files, and its ports PLSC and VIMER, which store linear weights in Paddle's layout.

The ports use the names that Atten4Vis/CAE had at the time. The old files have these names too, with `teacher` for the
alignment encoder. Files saved while the names changed have names of both kinds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from plsc_mae.errors import CheckpointError
from plsc_mae.weights.dialects.base import Array, Dialect, NumHeads, Tensors, count_blocks, tensor_of_rank

# Our prefix -> theirs; the first match is used, and "#" is replaced by the number of a block.
_OFFICIAL = {
    "bridge_norm": "encoder_to_regresser_norm",
    "bridge": "encoder_to_regresser",
    "regressor.blocks.#.gamma_1": "regresser.regressor_blocks.#.gamma_1_cross",
    "regressor.blocks.#.gamma_2": "regresser.regressor_blocks.#.gamma_2_cross",
    "regressor.blocks.#.norm_q": "regresser.regressor_blocks.#.norm1_q",
    "regressor.blocks.#.norm_k": "regresser.regressor_blocks.#.norm1_k",
    "regressor.blocks.#.norm_v": "regresser.regressor_blocks.#.norm1_v",
    "regressor.blocks.#.norm2": "regresser.regressor_blocks.#.norm2_cross",
    "regressor.blocks.#.mlp": "regresser.regressor_blocks.#.mlp_cross",
    "regressor.blocks": "regresser.regressor_blocks",
    "regressor": "regresser",
    "decoder.blocks": "decoder.decoder_blocks",
}
_PORTS = {
    "alignment_encoder": "teacher_network",
    "bridge_norm": "encoder_to_decoder_norm",
    "bridge": "encoder_to_decoder",
    "regressor.blocks.#.gamma_1": "regressor_and_decoder.blocks.#.gamma_1_cross",
    "regressor.blocks.#.gamma_2": "regressor_and_decoder.blocks.#.gamma_2_cross",
    "regressor.blocks.#.norm_q": "regressor_and_decoder.blocks.#.norm1_q_cross",
    "regressor.blocks.#.norm_k": "regressor_and_decoder.blocks.#.norm1_k_cross",
    "regressor.blocks.#.norm_v": "regressor_and_decoder.blocks.#.norm1_v_cross",
    "regressor.blocks.#.norm2": "regressor_and_decoder.blocks.#.norm2_cross",
    "regressor.blocks.#.mlp": "regressor_and_decoder.blocks.#.mlp_cross",
    "regressor": "regressor_and_decoder",
    "decoder.blocks": "regressor_and_decoder.self_att_blocks",
    "decoder.norm": "regressor_and_decoder.norm2",
    "decoder": "regressor_and_decoder",
}


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    number = next((part for part in name.split(".") if part.isdigit()), "")
    for ours, theirs in prefixes.items():
        prefix = ours.replace("#", number)
        if name == prefix or name.startswith(prefix + "."):
            return theirs.replace("#", number) + name[len(prefix) :]
    return name


def _has(tensors: Tensors, *names: str, out_first: bool | None = None) -> bool:
    """Return True if the tensors include `names` and an encoder.

    The encoder's linear weights must be [out, in] if `out_first` is True, [in, out] if it is False.
    """
    if not {"encoder.patch_embed.proj.weight", "encoder.blocks.0.mlp.fc1.weight", *names} <= set(tensors):
        return False
    if tensors["encoder.blocks.0.mlp.fc1.weight"].ndim != 2:
        return False
    rows, columns = tensors["encoder.blocks.0.mlp.fc1.weight"].shape
    return out_first is None or out_first == (rows > columns)


_BETWEEN = {
    "teacher": "alignment_encoder",
    "encoder_to_decoder_norm": "encoder_to_regresser_norm",
    "encoder_to_decoder": "encoder_to_regresser",
}


def _is_between(tensors: Tensors) -> bool:
    old = tuple(f"{name}." for name in _BETWEEN)
    return _has(tensors, "regresser.norm.weight") and any(name.startswith(old) for name in tensors)


def _decode(tensors: Tensors, _heads: NumHeads) -> dict[str, Array]:
    return {_renamed(name, _BETWEEN): value for name, value in tensors.items()}


CAE = Dialect(
    "cae",
    foreign_name=lambda name: _renamed(name, _OFFICIAL),
    transposes_linear=True,
    recognizes=lambda tensors: _has(tensors, "regresser.norm.weight"),
    copies={"alignment_encoder.": "encoder."},
)
PLSC_CAE = Dialect(
    "plsc_cae",
    foreign_name=lambda name: _renamed(name, _PORTS),
    transposes_linear=False,
    recognizes=lambda tensors: _has(tensors, "regressor_and_decoder.norm.weight", out_first=False),
)
CAE_OLD = Dialect(
    "cae_old",
    foreign_name=lambda name: _renamed(name, _PORTS | {"alignment_encoder": "teacher"}),
    transposes_linear=True,
    recognizes=lambda tensors: _has(tensors, "regressor_and_decoder.norm.weight", out_first=True),
)
CAE_BETWEEN = replace(CAE, name="cae_between", recognizes=_is_between, decode=_decode)


# {width: heads} of the published networks; shapes do not determine the heads. For regressor and decoder, the width is
# that of their projections: the original's 12 heads turn a width of 1024 into 12 x 85 = 1020 channels.
HEADS = {192: 12, 384: 12, 768: 12, 1024: 16}
_DECODER_HEADS = {768: 12, 1020: 12, 1024: 16}


def infer_arguments(tensors: Tensors, dialect: Dialect, path: str) -> dict[str, Any]:
    """Return the arguments of `ContextAutoencoder` that fit the tensors of a pre-trained CAE.

    Numbers of heads become None for unpublished widths, because shapes do not determine them.

    Raises:
        CheckpointError: the file has no mask token, and therefore no regressor and decoder; it lacks another tensor; or
            a tensor has an unexpected number of dimensions or is empty.
    """
    if "mask_token" not in tensors:
        raise CheckpointError(f"{path} contains a CAE without mask token; expected a checkpoint of pre-training")
    regressor, decoder = (dialect.foreign_name(stack) + "." for stack in ("regressor.blocks", "decoder.blocks"))

    def find(name: str, ndim: int) -> Array:
        value = tensor_of_rank(tensors, name, ndim, path)
        if value is None:
            raise CheckpointError(f"{path} lacks '{name}'; expected a checkpoint of CAE's pre-training")
        return value

    embed_dim, in_chans, patch_size, _ = find("encoder.patch_embed.proj.weight", 4).shape
    inner = len(find(f"{regressor}0.cross_attn.q_bias", 1)) if count_blocks(tensors, regressor) else 0
    table = find("encoder.pos_embed", 3)
    rows = max(table.shape[1] - 1, 0) ** 0.5
    return {
        "img_size": round(rows) * patch_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": count_blocks(tensors, "encoder.blocks."),
        "num_heads": HEADS.get(embed_dim),
        # The sin-cos table has zeros for the class token.
        "abs_pos_emb": bool(table[:, 0].any()),
        "layer_scale_init_value": 0.1 if "encoder.blocks.0.gamma_1" in tensors else 0.0,
        "decoder_embed_dim": find("mask_token", 3).shape[-1],
        "regressor_depth": count_blocks(tensors, regressor),
        "num_decoder_self_attention": count_blocks(tensors, decoder),
        "decoder_num_heads": _DECODER_HEADS.get(inner),
        "decoder_layer_scale_init_value": 0.1 if f"{decoder}0.gamma_1" in tensors else 0.0,
    }
