"""The kind of network that a weight file holds, read off the names of its tensors."""

from __future__ import annotations

from plsc_mae.errors import ConfigError
from plsc_mae.weights import Checkpoint
from plsc_mae.weights.convert import decoded
from plsc_mae.weights.dialects import find_dialect

TOKENIZER, CLASSIFIER, MAE, CAE, ENCODER, UNKNOWN = "tokenizer", "classifier", "mae", "cae", "encoder", "unknown"
HEADS = ("head.weight", "head.1.weight")  # of classifiers and of probes, in every base naming


def base_of(stored: Checkpoint, num_heads: int | None = None, decoder_num_heads: int | None = None) -> Checkpoint:
    """Bring a network into the base naming of its dialect; rows may be in another order where heads are not known."""
    try:
        return decoded(stored, num_heads, decoder_num_heads)
    except ConfigError:
        return decoded(stored, num_heads or 1, decoder_num_heads or 1)


def kind_of(base: Checkpoint) -> str:
    """Tell what kind of network a file holds, by its names in the base naming; see `Inspection.kind`."""
    if any(name.endswith("blocks.input.w") for name in base.model):
        return TOKENIZER
    if not base.dialect:
        return UNKNOWN
    foreign_name = find_dialect(base.dialect).foreign_name

    def has(*names: str) -> bool:
        return all(foreign_name(name) in base.model for name in names)

    if any(name in HEADS or name.startswith("head.linears.") for name in base.model):
        return CLASSIFIER
    if has("decoder.mask_token", "decoder.embed.weight"):
        return MAE
    return CAE if has("regressor.norm.weight", "mask_token") else ENCODER
