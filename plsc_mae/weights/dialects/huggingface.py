"""Hugging Face transformers: ViTMAEForPreTraining, ViTMAEModel and ViTForImageClassification.

The base naming is facebookresearch/mae's. Query, key and value are apart; files of the Hub and of transformers 4 have
the names written here, and those of the modules of transformers 5 are read too. Their layer norms have an eps of 1e-12
unless the config says otherwise, the original's 1e-6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from plsc_mae.weights.dialects.base import Array, NumHeads, Tensors, renamed
from plsc_mae.weights.dialects.facebook import FACEBOOK, holds, lacks

_PARTS = ("query", "key", "value")
# Names of a block and of the network, theirs -> the base naming's; the first that matches a name's beginning.
_NETWORK = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
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
}
# Other ages: the modules of transformers 5, what it saves of them, and a ViTMAEModel saved alone.
_AGES = (
    (re.compile(r"^(embeddings|encoder|layers|layernorm)\."), r"vit.\1."),
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
    return "vit.embeddings.cls_token" in map(_of_today, tensors)


def _of_today(name: str) -> str:
    for pattern, replacement in _AGES:
        name = pattern.sub(replacement, name)
    return name


def _decode(tensors: Tensors, _heads: NumHeads) -> dict[str, Array]:
    """Rename, and put query, key and value on top of each other."""
    decoded: dict[str, Array] = {}
    parts: dict[str, dict[str, Array]] = {}
    for name, value in tensors.items():
        name = renamed(_of_today(name), _NETWORK, _BLOCK)
        if match := _SPLIT.match(name):
            parts.setdefault(f"{match['qkv']}.{match['kind']}", {})[match["part"]] = value
        else:
            decoded[name] = value
    for name, found in parts.items():
        if len(found) == len(_PARTS):
            decoded[name] = np.concatenate([found[part] for part in _PARTS])
        else:  # the report is to name what is there
            stem, _, kind = name.rpartition(".")
            decoded |= {f"{stem}.{part}.{kind}": value for part, value in found.items()}
    return decoded


def _encode(arrays: Tensors, _heads: NumHeads) -> dict[str, Array]:
    """Take them apart and rename."""
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
    recognizes=_recognizes,
    holds=lambda names: holds(names) and lacks(names, "fc_norm.", "head.0.", "head.1."),
    key="",
    decode=_decode,
    encode=_encode,
)


def config_of(sizes: Mapping[str, Any], has_decoder: bool) -> dict[str, Any]:
    """What config.json tells of an autoencoder, or of an encoder: its sizes and the eps of its layer norms."""
    architecture = "ViTMAEForPreTraining" if has_decoder else "ViTMAEModel"
    fixed = {"model_type": "vit_mae", "hidden_act": "gelu", "qkv_bias": True}
    return {"architectures": [architecture], **fixed, **sizes}
