"""`plsc-mae demo-data` and `random-tokenizer`: write inputs for trials without ImageNet or published weights."""

from __future__ import annotations

import sys
from pathlib import Path

from plsc_mae.config.data_sets import DemoDataConfig, RandomTokenizerConfig
from plsc_mae.data.demo import make_demo_data
from plsc_mae.errors import CheckpointError
from plsc_mae.wording import counted


def run_demo_data(config: DemoDataConfig) -> None:
    """Draw the demo data set unless it exists, and print its size; raise as `make_demo_data` does."""
    summary = make_demo_data(
        config.path,
        image_size=config.image_size,
        train_per_class=config.train_per_class,
        val_per_class=config.val_per_class,
        seed=config.seed,
        masks=config.masks,
        kind=config.kind,
        progress=sys.stderr.isatty(),
    )
    state = "drawn" if summary.created else "already there"
    masks = " with masks" if config.masks else ""
    classes = counted(len(summary.parameters.classes), "class")
    counts = f"{summary.num_train} training and {counted(summary.num_val, 'validation image')}{masks} of {classes}"
    print(f"{summary.root}: {counts}, {state}")


def run_random_tokenizer(config: RandomTokenizerConfig) -> None:
    """Write encoder_weight.pd and decoder_weight.pd of a dVAE with random weights to a folder, in PLSC's format.

    Raises:
        CheckpointError: one of the files exists, or the folder cannot be written.
    """
    import paddle  # here, because demo-data does not need it

    from plsc_mae.models.dalle import DalleDecoder, DalleEncoder, random_init

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
