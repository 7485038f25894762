"""Which parameters are decayed, and which learn more slowly than others."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

# Tokens and learned positions of a classifier (facebookresearch/mae, Atten4Vis/CAE), bare or inside an `encoder`.
VIT_NO_DECAY = frozenset({"cls_token", "pos_embed", "encoder.cls_token", "encoder.pos_embed"})

_EMBEDDING = re.compile(r"(encoder\.)?(cls_token|mask_token|pos_embed|patch_embed\..*)")
_BLOCK = re.compile(r"(encoder\.)?blocks\.(?P<index>\d+)\..*")


class ParamGroup(NamedTuple):
    """Parameters that share their weight decay and learning rate."""

    names: list[str]
    params: list[Tensor]
    weight_decay: float
    lr_scale: float = 1.0  # times the scheduled rate


def weight_decay_groups(
    named_params: Iterable[tuple[str, Tensor]], weight_decay: float, no_decay: Collection[str] = ()
) -> list[ParamGroup]:
    """Split trainable parameters into an undecayed and a decayed group (timm 0.3.2 `add_weight_decay`).

    One-dimensional parameters, biases and `no_decay` are not decayed. Class and mask tokens have three dimensions and
    are, unless they are named: that is the published recipe of facebookresearch/mae.
    """
    groups = ParamGroup([], [], 0.0), ParamGroup([], [], weight_decay)
    for name, param in named_params:
        if not param.stop_gradient:
            group = groups[_is_decayed(name, param) and name not in no_decay]
            group.names.append(name)
            group.params.append(param)
    return [group for group in groups if group.params]


def layer_decay_groups(
    named_params: Iterable[tuple[str, Tensor]],
    weight_decay: float,
    layer_decay: float,
    layer_of: Callable[[str], int],
    num_layers: int,
    no_decay: Collection[str] = VIT_NO_DECAY,
) -> list[ParamGroup]:
    """Group trainable parameters so that every layer learns `layer_decay` times as fast as the one above it.

    The rule of facebookresearch/mae util/lr_decay.py and Atten4Vis/CAE furnace/optim_factory.py: the rate of layer i is
    multiplied by layer_decay^(num_layers - 1 - i). Groups come in the order in which their first parameter does.

    Args:
        named_params: parameters and their names.
        weight_decay: of all parameters but the one-dimensional ones, biases and `no_decay`.
        layer_decay: rate of a layer over the rate of the next; 1.0 for the same rate everywhere.
        layer_of: gives a parameter's layer, from 0 at the input to `num_layers` - 1 at the output.
        num_layers: how many layers there are; a ViT has depth + 2, see `vit_layer`.
        no_decay: exact names of parameters that are not decayed.
    """
    groups: dict[tuple[float, float], ParamGroup] = {}
    for name, param in named_params:
        if param.stop_gradient:
            continue
        decay = weight_decay if _is_decayed(name, param, no_decay) else 0.0
        scale = layer_decay ** (num_layers - 1 - layer_of(name))
        group = groups.setdefault((decay, scale), ParamGroup([], [], decay, scale))
        group.names.append(name)
        group.params.append(param)
    return list(groups.values())


def vit_layer(name: str, depth: int) -> int:
    """Layer of a ViT classifier's parameter: embeddings 0, block i i + 1, what comes after the blocks `depth` + 1."""
    if _EMBEDDING.fullmatch(name):
        return 0
    block = _BLOCK.fullmatch(name)
    return int(block["index"]) + 1 if block else depth + 1


def _is_decayed(name: str, param: Tensor, no_decay: Collection[str] = ()) -> bool:
    return param.ndim > 1 and not name.endswith(".bias") and name not in no_decay


def paddle_groups(groups: Iterable[ParamGroup]) -> list[dict[str, Any]]:
    """Write groups as Paddle's optimizers take them; the "learning_rate" there multiplies the rate that is set."""
    return [
        {"params": group.params, "weight_decay": group.weight_decay, "learning_rate": group.lr_scale}
        for group in groups
    ]


def set_weight_decay(optimizer: paddle.optimizer.Optimizer, groups: Sequence[ParamGroup], weight_decay: float) -> None:
    """Change the weight decay of those of the optimizer's groups that have one."""
    for group, paddle_group in zip(groups, optimizer._param_groups, strict=True):
        if group.weight_decay > 0:
            paddle_group["weight_decay"] = weight_decay
