"""Parameter groups with their weight decay and learning rate scale."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

# Names of tokens and position embedding in an encoder, and in a classifier with an encoder. facebookresearch/mae and
# Atten4Vis/CAE, which have no register tokens, do not decay them in fine-tuning.
_TOKENS = ("cls_token", "pos_embed", "register_tokens")
VIT_NO_DECAY = frozenset((*_TOKENS, *(f"encoder.{name}" for name in _TOKENS)))

_EMBEDDING = re.compile(r"(encoder\.)?(cls_token|register_tokens|mask_token|pos_embed|patch_embed\..*)")
_BLOCK = re.compile(r"(encoder\.)?blocks\.(?P<index>\d+)\..*")


class ParamGroup(NamedTuple):
    """Parameters with the same weight decay and learning rate scale."""

    names: list[str]  # names of the parameters
    params: list[Tensor]
    weight_decay: float
    lr_scale: float = 1.0  # factor of the scheduled learning rate


def weight_decay_groups(
    named_params: Iterable[tuple[str, Tensor]], weight_decay: float, no_decay: Collection[str] = ()
) -> list[ParamGroup]:
    """Divide the trainable parameters into one group without and one with decay (timm 0.3.2 `add_weight_decay`).

    The group without decay comes first; an empty group is left out. One-dimensional parameters, biases and parameters
    whose exact names are in `no_decay` are not decayed. Class and mask tokens have three dimensions, so they are
    decayed unless `no_decay` names them; facebookresearch/mae decays them in pre-training.
    """
    groups = (ParamGroup([], [], 0.0), ParamGroup([], [], weight_decay))
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
    """Divide the trainable parameters into groups for layer-wise learning rate decay.

    The learning rate of layer i is multiplied by layer_decay^(num_layers - 1 - i), as in facebookresearch/mae
    util/lr_decay.py and Atten4Vis/CAE furnace/optim_factory.py. The groups are ordered by their first parameter.

    Args:
        named_params: parameters with their names.
        weight_decay: weight decay of all parameters except one-dimensional ones, biases and `no_decay`.
        layer_decay: ratio of a layer's learning rate to that of the next layer; 1.0 makes all rates equal.
        layer_of: returns the layer of a parameter by its name, from 0 at the input to `num_layers` - 1 at the output.
        num_layers: number of layers; depth + 2 for a ViT, see `vit_layer`.
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
    """Return the layer of the parameter `name` in a ViT classifier.

    It is 0 for embeddings, i + 1 for block i, and depth + 1 for all other parameters.
    """
    if _EMBEDDING.fullmatch(name):
        return 0
    block = _BLOCK.fullmatch(name)
    return int(block["index"]) + 1 if block else depth + 1


def _is_decayed(name: str, param: Tensor, no_decay: Collection[str] = ()) -> bool:
    return param.ndim > 1 and not name.endswith(".bias") and name not in no_decay


def paddle_groups(groups: Iterable[ParamGroup]) -> list[dict[str, Any]]:
    """Convert groups to the format of Paddle's optimizers, in which "learning_rate" is a factor."""
    return [
        {"params": group.params, "weight_decay": group.weight_decay, "learning_rate": group.lr_scale}
        for group in groups
    ]


def set_weight_decay(optimizer: paddle.optimizer.Optimizer, groups: Sequence[ParamGroup], weight_decay: float) -> None:
    """Set the weight decay of the optimizer's groups, except for groups that were built with weight decay 0."""
    for group, paddle_group in zip(groups, optimizer._param_groups, strict=True):
        if group.weight_decay > 0:
            paddle_group["weight_decay"] = weight_decay
