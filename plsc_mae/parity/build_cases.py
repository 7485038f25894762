"""From the options of `plsc-mae parity` to cases: networks of a name or of a checkpoint, and small ones like them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from plsc_mae import weights
from plsc_mae.config import PRETRAIN, CAEConfig, PretrainConfig
from plsc_mae.config.parity import ParityConfig
from plsc_mae.config.resolve import from_mapping
from plsc_mae.loading.classifier_weights import require_weights
from plsc_mae.loading.training_config import training_config
from plsc_mae.methods import load_method
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.registry import arguments_of
from plsc_mae.parity.capture import randomize
from plsc_mae.parity.cases import CAECase, Case, MAECase
from plsc_mae.train.precision import FLOAT32, Precision
from plsc_mae.weights.convert import recognize

_SMALL: dict[str, Any] = {"input_size": (32, 32), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def open_cases(config: ParityConfig, precision: Precision) -> Iterator[Case]:
    """Build the networks that are asked for, one at a time.

    Raises:
        CheckpointError: the checkpoint cannot be read, or lacks a part of the network.
        ConfigError: an unknown network, or one that is not of pre-training.
    """
    if config.checkpoint:
        yield _from_checkpoint(config, precision)
        return
    for name in config.model:
        dialect = {"method": config.dialect} if config.dialect else {}
        trained = from_mapping({"model": name, **dialect}, PRETRAIN, "--model")
        yield random_case(trained, config.batch_size, config.random or 0, precision)


def random_case(trained: PretrainConfig, batch_size: int, seed: int, precision: Precision = FLOAT32) -> Case:
    """A network of random weights."""
    case = _case(_without_data(trained), batch_size, seed, precision)
    randomize(case.model, seed)
    return case


def small_case(trained: PretrainConfig, seed: int) -> Case:
    """A network of random weights that is like one of these options, so small that the oracle can run it often.

    It has two blocks 32 wide on 4 x 4 patches; the decoder of MAE has one 16 wide; regressor and decoder of CAE have
    two, 24 wide behind a bridge where there is one.
    """
    return random_case(dataclasses.replace(trained, **_SMALL, **_small_rest(trained)), 2, seed)


def _small_rest(trained: PretrainConfig) -> dict[str, Any]:
    if not isinstance(trained, CAEConfig):
        return {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    width = arguments_of(trained.model, embed_dim=trained.embed_dim)["embed_dim"]
    return {
        "decoder_embed_dim": 32 if trained.decoder_embed_dim == width else 24,
        "decoder_num_heads": 4,
        "decoder_num_classes": 32,
        "regressor_depth": 2,
        "num_decoder_self_attention": 2,
        "mask_generator": "block",
        "ratio_mask_patches": None,
        "num_mask_patches": 7,
        "min_mask_patches_per_block": 2,
        "max_mask_patches_per_block": None,
        "second_input_size": None,
    }


def _from_checkpoint(config: ParityConfig, precision: Precision) -> Case:
    stored = weights.read(config.checkpoint)
    heads = {"num_heads": config.num_heads, "decoder_num_heads": config.decoder_num_heads}
    trained = training_config(stored, heads)
    if isinstance(trained, CAEConfig):
        bias = recognize(stored.model, config.checkpoint).foreign_name("decoder.head.bias")
        if bias in stored.model:
            trained = dataclasses.replace(trained, decoder_num_classes=len(stored.model[bias]))
    case = _case(_without_data(trained), config.batch_size, config.random or 0, precision)
    report = weights.load(case.model, stored)
    require_weights(case.model, report, config.checkpoint)
    return case


def _case(trained: PretrainConfig, batch_size: int, seed: int, precision: Precision) -> Case:
    task = load_method(trained.method).build_task(trained)
    kind = CAECase if isinstance(task.model, ContextAutoencoder) else MAECase
    return kind(trained, task, batch_size, seed, precision)


def _without_data(trained: PretrainConfig) -> PretrainConfig:
    """CAE that needs no dVAE: random vectors make classes, and network and loss are the same.

    Half of the patches are hidden where a file does not tell how many.
    """
    if not isinstance(trained, CAEConfig):
        return trained
    changes: dict[str, Any] = {"target_mode": "random", "discrete_vae_type": "to_tensor", "target_path": None}
    if trained.mask_generator == "block" and trained.num_mask_patches is None:
        changes |= {"mask_generator": "random", "ratio_mask_patches": 0.5}
    return dataclasses.replace(trained, **changes, dual_loss_type="mse", vis_freq=0)
