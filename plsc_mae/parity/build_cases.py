"""Builders of the cases of `plsc-mae parity`: networks by name, networks from a checkpoint, and small networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from plsc_mae import weights
from plsc_mae.config import PRETRAIN, PretrainConfig
from plsc_mae.config.parity import ParityConfig
from plsc_mae.config.resolve import from_mapping
from plsc_mae.loading.completeness import BESIDE_A_NETWORK, require_complete
from plsc_mae.loading.training_config import training_config
from plsc_mae.methods import load_method
from plsc_mae.parity.capture import randomize
from plsc_mae.parity.cases import AnyCase
from plsc_mae.parity.networks import case_class
from plsc_mae.train.precision import FLOAT32, Precision

_SMALL: dict[str, Any] = {"input_size": (32, 32), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def open_cases(config: ParityConfig, precision: Precision) -> Iterator[AnyCase]:
    """Yield the cases that `config` requests; a network is built only when its case is reached.

    Raises:
        CheckpointError: the checkpoint cannot be read, or does not fit the network.
        ConfigError: a network is unknown, is not a pre-training network, or has no oracle; or an option is invalid, or
            missing in the checkpoint, such as a number of heads.
    """
    if config.checkpoint:
        yield _from_checkpoint(config, precision)
        return
    for name in config.model:
        dialect = {"method": config.dialect} if config.dialect else {}
        trained = from_mapping({"model": name, **dialect}, PRETRAIN, "--model")
        yield random_case(trained, config.batch_size, config.random or 0, precision)


def random_case(trained: PretrainConfig, batch_size: int, seed: int, precision: Precision = FLOAT32) -> AnyCase:
    """Return a case with random weights and a random batch, both determined by `seed`.

    Raises:
        ConfigError: the method has no oracle, or the options do not fit together.
    """
    case = _case(trained, batch_size, seed, precision)
    randomize(case.model, seed)
    return case


def small_case(trained: PretrainConfig, seed: int) -> AnyCase:
    """Return a case with the options of `trained` and random weights, small enough to run the oracle many times.

    The encoder has two blocks of width 32 on 4 x 4 patches; `Case.small` gives the sizes of the other parts.
    """
    sizes = {**_SMALL, **case_class(trained).small(trained)}
    return random_case(dataclasses.replace(trained, **sizes), 2, seed)


def _from_checkpoint(config: ParityConfig, precision: Precision) -> AnyCase:
    stored = weights.read_network(config.checkpoint, config.model_key, config.model_prefix)
    heads = {"num_heads": config.num_heads, "decoder_num_heads": config.decoder_num_heads}
    trained = training_config(stored, heads)
    trained = case_class(trained).of_weights(trained, stored)
    case = _case(trained, config.batch_size, config.random or 0, precision)
    report = weights.load(case.model, stored)
    require_complete(case.model, report, config.checkpoint, idle=BESIDE_A_NETWORK, by_options=False)
    return case


def _case(trained: PretrainConfig, batch_size: int, seed: int, precision: Precision) -> AnyCase:
    kind = case_class(trained)
    plain = kind.without_files(trained)
    case = kind(plain, load_method(plain.method).build_task(plain), batch_size, seed, precision)
    case.remark = kind.replaced_options(trained)
    return case
