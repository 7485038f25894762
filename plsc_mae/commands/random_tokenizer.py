"""`plsc-mae random-tokenizer`: write a dVAE of random weights, to try pre-training out without the published one."""

from __future__ import annotations

from pathlib import Path

import paddle

from plsc_mae.config.tools import RandomTokenizerConfig
from plsc_mae.errors import CheckpointError
from plsc_mae.models.dalle import DalleDecoder, DalleEncoder, random_init


def run(config: RandomTokenizerConfig) -> None:
    """Write encoder_weight.pd and decoder_weight.pd, in PLSC's format, into a folder.

    Raises:
        CheckpointError: one of them is already there, or the folder cannot be written.
    """
    folder = Path(config.path)
    networks = {
        folder / "encoder_weight.pd": DalleEncoder(config.n_hid, config.vocab_size),
        folder / "decoder_weight.pd": DalleDecoder(config.n_hid // 2, config.n_hid, config.vocab_size),
    }
    for path in networks:
        if path.exists():
            raise CheckpointError(f"{path} is already there and is not overwritten; remove it or name another folder")
    for path, network in networks.items():
        random_init(network, config.seed)
        try:
            paddle.save(network.state_dict(), str(path))
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}; choose a writable folder") from None
        print(path)
    print(
        f"RANDOM TOKENIZER, seed {config.seed}: its tokens mean nothing, and neither do results of training on them. "
        "It is for trying things out"
    )
