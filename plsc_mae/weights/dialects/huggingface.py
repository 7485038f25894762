"""Hugging Face transformers: ViTMAEForPreTraining, ViTMAEModel, ViTForImageClassification; Dinov2Model read-only.

The base naming is facebookresearch/mae's and timm's. Query, key and value are stored separately. Names are written as
in files of the Hub and of transformers 4; names of transformers 5 can be read too. The eps of the layer norms defaults
to 1e-12 in transformers' config, while the original uses 1e-6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from plsc_mae.weights.dialects.base import Array, NumHeads, Tensors, renamed
from plsc_mae.weights.dialects.facebook import FACEBOOK, holds, lacks, timm_name

_PARTS = ("query", "key", "value")
# Prefixes of the network and of a block, theirs -> base naming; the first match is used.
_NETWORK = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.register_tokens": "reg_token",
    "vit.embeddings.mask_token": "mask_token",
    "vit.pooler": "pooler",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.encoder.layer": "blocks",
    "vit.layernorm": "norm",
    "decoder.decoder_layers": "decoder_blocks",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed": "decoder_embed",
    "decoder.decoder_norm": "decoder_norm",
    "decoder.decoder_pred": "decoder_pred",
    "classifier": "head",
}
_BLOCK = {
    "attention.attention": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
# Names of modules and files of transformers 5, and of a ViTMAEModel saved alone -> names of transformers 4.
_OTHER_VERSIONS = (
    (re.compile(r"^(dinov2|dinov2_with_registers)\."), "vit."),
    (re.compile(r"^(embeddings|encoder|layers|layernorm|pooler)\."), r"vit.\1."),
    (re.compile(r"^vit\.layers\."), "vit.encoder.layer."),
    (re.compile(r"^decoder\.decoder_encoder\.layer\."), "decoder.decoder_layers."),
    (re.compile(r"\.attention\.q_proj\."), ".attention.attention.query."),
    (re.compile(r"\.attention\.k_proj\."), ".attention.attention.key."),
    (re.compile(r"\.attention\.v_proj\."), ".attention.attention.value."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
)
_SPLIT = re.compile(r"^(?P<qkv>.*attn\.qkv)\.(?P<part>query|key|value)\.(?P<kind>weight|bias)$")


def _recognizes(tensors: Tensors) -> bool:
    return "vit.embeddings.cls_token" in map(_transformers4_name, tensors)


def _transformers4_name(name: str) -> str:
    for pattern, replacement in _OTHER_VERSIONS:
        name = pattern.sub(replacement, name)
    return name


def _decode(tensors: Tensors, _heads: NumHeads) -> dict[str, Array]:
    """Return the tensors in the base naming, with query, key and value concatenated."""
    decoded: dict[str, Array] = {}
    parts: dict[str, dict[str, Array]] = {}
    for name, value in tensors.items():
        name = renamed(_transformers4_name(name), _NETWORK, _BLOCK)
        if match := _SPLIT.match(name):
            parts.setdefault(f"{match['qkv']}.{match['kind']}", {})[match["part"]] = value
        else:
            decoded[name] = value
    for name, found in parts.items():
        if len(found) == len(_PARTS):
            decoded[name] = np.concatenate([found[part] for part in _PARTS])
        else:  # keep an incomplete group under its own names, so that the load report lists them
            stem, _, kind = name.rpartition(".")
            decoded |= {f"{stem}.{part}.{kind}": value for part, value in found.items()}
    return decoded


def _encode(arrays: Tensors, _heads: NumHeads) -> dict[str, Array]:
    """Return the tensors in the names of the Hub, with query, key and value split."""
    network, block = ({ours: theirs for theirs, ours in table.items()} for table in (_NETWORK, _BLOCK))
    encoded: dict[str, Array] = {}
    for name, value in arrays.items():
        if ".attn.qkv." in name:
            stem, _, kind = renamed(name, network, block).rpartition(".")
            encoded |= {f"{stem}.{part}.{kind}": x for part, x in zip(_PARTS, np.split(value, 3), strict=True)}
        else:
            encoded[renamed(name, network, block)] = value
    return encoded


HUGGINGFACE = replace(
    FACEBOOK,
    name="huggingface",
    foreign_name=timm_name,
    recognizes=_recognizes,
    holds=lambda names: holds(names) and lacks(names, "fc_norm.", "head.0.", "head.1."),
    key="",
    decode=_decode,
    encode=_encode,
)


def sizes_of(encoder: Any) -> dict[str, Any]:
    """Return the entries of config.json for the sizes and the eps of a `VisionTransformer` for square images."""
    block = encoder.blocks[0]
    return {
        "layer_norm_eps": float(block.norm1._epsilon),
        "image_size": encoder.img_size[0],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.patch_embed.proj.weight.shape[1],
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.hidden_dim,
    }


def config_of(sizes: Mapping[str, Any], has_decoder: bool) -> dict[str, Any]:
    """Return the content of config.json for an autoencoder or an encoder.

    Args:
        sizes: entries of the config for the sizes and the eps of the layer norms.
        has_decoder: True for ViTMAEForPreTraining, False for ViTMAEModel.
    """
    architecture = "ViTMAEForPreTraining" if has_decoder else "ViTMAEModel"
    fixed = {"model_type": "vit_mae", "hidden_act": "gelu", "qkv_bias": True}
    return {"architectures": [architecture], **fixed, **sizes}
