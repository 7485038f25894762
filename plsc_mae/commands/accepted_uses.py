"""Trial of each command that `plsc-mae weights inspect` prints; if its network refuses the file, the reason is printed.

The networks are built without values, and only names and shapes of tensors are compared, so this takes little memory.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping

import paddle

from plsc_mae.config import PHASES
from plsc_mae.config.resolve import parse
from plsc_mae.errors import UserError
from plsc_mae.loading.channels import stored_channels
from plsc_mae.loading.classifier_weights import load_into_classifier
from plsc_mae.loading.encoder import build_encoder, fill_encoder, newer_parts
from plsc_mae.loading.networks import open_network
from plsc_mae.methods import load_recipe
from plsc_mae.methods.classify import build_classifier
from plsc_mae.weights import Checkpoint

FEATURES, TRAINING = ("knn", "explain", "extract", "segprobe", "export"), ("finetune", "linprobe")


def refusals(
    stored: Checkpoint, base: Checkpoint, kind: str, uses: Mapping[str, str], heads: tuple[int, int]
) -> dict[str, str]:
    """Return {use: reason} for those command lines whose networks refuse the file.

    Only the uses in FEATURES and TRAINING and "reconstruct" are tried; other uses never get a reason.

    Args:
        stored: the file as `weights.read` returns it.
        base: the same file, with the tensors in the base naming of its dialect.
        kind: kind of the file's network, see `contents.kind_of`.
        uses: {use: command line}.
        heads: numbers of heads of encoder and decoder; 1 for an unknown one, because 1 divides every width.
    """
    found = {}
    for use, line in uses.items():
        try:
            with paddle.LazyGuard():
                _try(stored, base, kind, use, line, heads)
        except UserError as error:
            found[use] = str(error)
    return found


def _try(stored: Checkpoint, base: Checkpoint, kind: str, use: str, line: str, heads: tuple[int, int]) -> None:
    """Load the file without values as the command `line` does, if `use` is one to try; raise UserError if refused."""
    if use in FEATURES:
        network, _ = build_encoder(stored, heads[0])
        fill_encoder(network, stored, dry_run=True)
    elif use == "reconstruct":
        open_network(stored, kind, *heads, dry_run=True)
    elif use in TRAINING:
        flags = line.partition(" --finetune ")[0].replace("--num_heads N", f"--num_heads {heads[0]}")
        config = parse(shlex.split(flags)[2:], PHASES[use], prog=f"plsc-mae {use}")
        config = dataclasses.replace(config, in_chans=stored_channels(base))  # as a run on such images has them
        network = build_classifier(config, 1, **newer_parts(base, config.image_size))
        into_norm = load_recipe(config.method).norm_into_fc_norm
        load_into_classifier(network, stored, norm_into_fc_norm=into_norm, dry_run=True)
