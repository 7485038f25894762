"""`plsc-mae weights convert`: write a weight file, or the encoder of it, for another code base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddle import nn

from plsc_mae import weights
from plsc_mae.commands.inspection import ENCODER, base_of, kind_of
from plsc_mae.commands.networks import holding_network, open_network
from plsc_mae.config.weights import WeightsConvertConfig
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.weights.dialects import find_dialect
from plsc_mae.weights.dialects.huggingface import config_of

HEADED = ("libai",)  # dialects whose order of rows depends on the number of heads


def run(config: WeightsConvertConfig) -> None:
    """Read a file, write its network in another dialect and tell what was left out.

    Raises:
        CheckpointError: the file cannot be read, lacks a tensor, or the new one cannot be written.
        ConfigError: the dialect has no place for the network; heads are needed and not known.
    """
    find_dialect(config.dialect)
    stored = weights.read(config.path)
    kind = ENCODER if config.encoder else kind_of(base_of(stored))
    out = Path(config.out)
    with_settings = config.dialect == "huggingface" and not out.suffix
    build = open_network if with_settings or config.dialect in HEADED else holding_network
    network = build(stored, kind, config.num_heads, config.decoder_num_heads)
    out = out / "model.safetensors" if with_settings else out
    weights.save(network, out, config.dialect)
    if with_settings:
        out.with_name("config.json").write_text(json.dumps(_settings(network), indent=2) + "\n")
    report = weights.load(network, stored, prefix="encoder." if kind == ENCODER else "")
    print(f"{out}: {len(report.matched)} tensors of {config.path} ({stored.dialect}) as {config.dialect}")
    beside = sorted({name.partition("/")[0] for name in stored.tensors if "/" in name})
    for what, names in (("of the network", report.unexpected), ("computed by the network", report.missing)):
        if names:
            print(f"{len(names)} tensors {what} are not written from the file: {', '.join(names[:3])} ...")
    if len(beside) > 1:
        print(f"of {', '.join(beside)} the network alone is converted")


def _settings(network: nn.Layer) -> dict[str, Any]:
    """The config.json of a Hugging Face folder."""
    encoder: VisionTransformer = getattr(network, "encoder", network)
    sizes: dict[str, Any] = {
        "image_size": encoder.img_size[0],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.patch_embed.proj.weight.shape[1],
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.blocks[0].attn.num_heads,
        "intermediate_size": encoder.blocks[0].mlp.fc1.weight.shape[1],
    }
    if isinstance(network, MaskedAutoencoder):
        decoder = network.decoder
        sizes |= {
            "decoder_hidden_size": decoder.embed.weight.shape[1],
            "decoder_num_hidden_layers": len(decoder.blocks),
            "decoder_num_attention_heads": decoder.blocks[0].attn.num_heads,
            "decoder_intermediate_size": decoder.blocks[0].mlp.fc1.weight.shape[1],
            "norm_pix_loss": network.norm_pix_loss,
        }
    return config_of(sizes, isinstance(network, MaskedAutoencoder))
