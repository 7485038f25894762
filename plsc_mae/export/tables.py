"""Flat tables of tensors that give the same outputs in libraries whose ViT has fewer variants than ours.

Batch norms are folded into the head, position tables get a row for the class token, shared relative positions are
copied into every block, and biases of queries, keys and values are joined or separated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from paddle import nn

from plsc_mae.export.content import Content
from plsc_mae.models.classifier import BatchNorm, ImageClassifier
from plsc_mae.models.vit import VisionTransformer
from plsc_mae.weights import convert
from plsc_mae.weights.dialects import find_dialect
from plsc_mae.weights.dialects.base import Array

TABLE = "relative_position_bias_table"
Table = dict[str, Array]


def flat_table(content: Content, dialect: str) -> Table:
    """Return the tensors of encoder and head in the names of `dialect`, without a mask token.

    A batch norm is folded into the head, see `linear_head`, and shared relative positions are copied to every block.
    """
    network, encoder = content.network, content.encoder
    prefix = "encoder." if network is encoder else ""
    table = convert.export(network, dialect, prefix=prefix)
    table.pop("mask_token", None)
    if encoder.pos_embed is not None:
        table["pos_embed"] = encoder.pos_embed.numpy()  # some methods' computed tables are not in the state
    if (shared := table.pop(f"rel_pos_bias.{TABLE}", None)) is not None:
        table |= {f"blocks.{i}.attn.{TABLE}": shared for i in range(len(encoder.blocks))}
    if (classifier := content.classifier) is not None and has_batch_norm(classifier):
        folded = ("head.", "fc_norm.") if isinstance(classifier.fc_norm, BatchNorm) else ("head.",)
        table = {name: value for name, value in table.items() if not name.startswith(folded)}
        weight, bias = linear_head(classifier)
        transposed = find_dialect(dialect).transposes_linear
        table |= {"head.weight": weight.T.copy() if transposed else weight, "head.bias": bias}
    return table


def has_batch_norm(classifier: ImageClassifier) -> bool:
    """Return whether a batch norm of a probe precedes the linear layer."""
    return isinstance(classifier.head, nn.Sequential) or isinstance(classifier.fc_norm, BatchNorm)


def linear_head(classifier: ImageClassifier) -> tuple[Array, Array]:
    """Return weight [D, K] and bias [K] of the linear layer that equals a probe's batch norm and head in evaluation."""
    head = classifier.head
    norm, layer = (head[0], head[1]) if isinstance(head, nn.Sequential) else (classifier.fc_norm, head)
    assert isinstance(norm, BatchNorm)
    weight, bias = layer.weight.numpy().astype("float64"), layer.bias.numpy().astype("float64")
    scale = 1 / np.sqrt(norm.running_var.numpy().astype("float64") + norm.epsilon)
    shift = -norm.running_mean.numpy().astype("float64") * scale
    return (scale[:, None] * weight).astype("float32"), (shift @ weight + bias).astype("float32")


def with_class_row(encoder: VisionTransformer) -> Array:
    """Return the position table [1, 1 + L, D] with a row for the class token; rows that the encoder lacks are zero."""
    shape = (1, 1 + encoder.num_patches, encoder.embed_dim)
    if encoder.pos_embed is None:
        return np.zeros(shape, "float32")
    table = encoder.pos_embed.numpy()
    return np.concatenate([np.zeros([1, shape[1] - table.shape[1], shape[2]], "float32"), table], axis=1)


def separate_biases(table: Table) -> Table:
    """Return a table with biases of q and v in place of `qkv.bias`; the bias of k has no effect on the outputs."""
    separated: Table = {}
    for name, value in table.items():
        if name.endswith(".qkv.bias"):
            stem, (q_bias, _, v_bias) = name.removesuffix(".qkv.bias"), np.split(value, 3)
            separated |= {f"{stem}.q_bias": q_bias, f"{stem}.v_bias": v_bias}
        else:
            separated[name] = value
    return separated


def join_biases(table: Table) -> Table:
    """Return a table with one `qkv.bias` in place of the biases of q and v; its elements for k are zero."""
    joined = {}
    for name, value in table.items():
        if name.endswith(".q_bias"):
            v_bias = table[name.replace(".q_bias", ".v_bias")]
            joined[name.replace(".q_bias", ".qkv.bias")] = np.concatenate([value, np.zeros_like(value), v_bias])
        elif not name.endswith(".v_bias"):
            joined[name] = value
    return joined


def missing_feature(content: Content, *, eps: float | None = None) -> str:
    """Return the reason why a ViT with a class token and a linear head cannot represent the network; "" if it can.

    Args:
        content: the network.
        eps: the epsilon that the library fixes for a layer norm; None if it fixes none.
    """
    encoder, classifier = content.encoder, content.classifier
    if encoder.cls_token is None:
        return "it has no class token"
    if encoder.register_tokens is not None:
        return "it has register tokens"
    if encoder.blocks[0].attn.q_norm is not None:
        return "it normalizes queries and keys"
    if classifier is not None and classifier.probe.startswith("attentive"):
        return "its probe pools the tokens by attention"
    if eps is not None and norm_eps(encoder) != eps:
        return f"the eps of its layer norms is {norm_eps(encoder):g}, not {eps:g}"
    return ""


def other_final_eps(content: Content) -> str:
    """Return the reason why a library with one epsilon for all norms cannot represent the network; "" if it can."""
    norm = final_norm(content)
    if norm is None or float(norm._epsilon) == norm_eps(content.encoder):
        return ""
    return f"the eps of its final norm is {norm._epsilon:g}, that of its blocks {norm_eps(content.encoder):g}"


def norm_eps(encoder: VisionTransformer) -> float:
    """Return the epsilon of the layer norms of the blocks."""
    return float(encoder.blocks[0].norm1._epsilon)


def final_norm(content: Content) -> nn.LayerNorm | None:
    """Return the layer norm behind the blocks, before or after the pooling; None if it is missing or a batch norm."""
    classifier = content.classifier
    norm = content.encoder.norm if classifier is None or classifier.fc_norm is None else classifier.fc_norm
    return norm if isinstance(norm, nn.LayerNorm) else None


def has_plain_blocks(encoder: VisionTransformer) -> bool:
    """Return whether the blocks have a bias of keys, no layer scale and no relative positions."""
    block = encoder.blocks[0]
    return block.attn.q_bias is None and block.gamma_1 is None and not has_relative_positions(encoder)


def has_relative_positions(encoder: VisionTransformer) -> bool:
    """Return whether attention has a relative position bias."""
    return encoder.rel_pos_bias is not None or encoder.blocks[0].attn.rel_pos_bias is not None


def initial_scale(encoder: VisionTransformer) -> float | None:
    """Return the initial layer scale that libraries want in their configuration; None without layer scale.

    Weight files do not store the initial value. Any value would do, because loading overwrites the layer scale.
    """
    return None if encoder.blocks[0].gamma_1 is None else 0.1


def mlp_ratio(encoder: VisionTransformer) -> float:
    """Return the ratio of the MLPs' hidden width to the encoder's width."""
    return float(encoder.blocks[0].mlp.hidden_dim / encoder.embed_dim)


def common_arguments(encoder: VisionTransformer) -> dict[str, Any]:
    """Return the constructor arguments that PaddleClas, PaddleDetection and PaddleSeg name alike."""
    return {
        "patch_size": encoder.patch_size,
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": encoder.blocks[0].attn.num_heads,
        "mlp_ratio": mlp_ratio(encoder),
        "qkv_bias": True,
    }
