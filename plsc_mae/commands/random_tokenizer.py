"""`plsc-mae random-tokenizer`: writes a dVAE with random weights, to try pre-training without the published dVAE."""

from __future__ import annotations

from pathlib import Path

import paddle

from plsc_mae.config.tools import RandomTokenizerConfig
from plsc_mae.errors import CheckpointError
from plsc_mae.models.dalle import DalleDecoder, DalleEncoder, random_init


def run(config: RandomTokenizerConfig) -> None:
    """Write encoder_weight.pd and decoder_weight.pd in PLSC's format to a folder.

    Raises:
        CheckpointError: one of the files exists, or the folder cannot be written.
    """
    folder = Path(config.path)
    networks = {
        folder / "encoder_weight.pd": DalleEncoder(config.n_hid, config.vocab_size),
        folder / "decoder_weight.pd": DalleDecoder(config.n_hid // 2, config.n_hid, config.vocab_size),
    }
    for path in networks:
        if path.exists():
            raise CheckpointError(f"{path} exists and is not overwritten; remove it or name another folder")
    for path, network in networks.items():
        random_init(network, config.seed)
        try:
            paddle.save(network.state_dict(), str(path))
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}; choose a writable folder") from None
        print(path)
    print(
        f"RANDOM TOKENIZER, seed {config.seed}: its tokens have no meaning, so results of training on them have none. "
        "Use it for trials only"
    )
