"""Names of tensors outside an encoder."""

from __future__ import annotations

import pytest

from plsc_mae.loading.completeness import BESIDE_THE_ENCODER, belongs_to, left_over
from plsc_mae.weights import LoadReport

pytestmark = [pytest.mark.compat, pytest.mark.once]


def test_whole_names_and_prefixes():
    beside = ("query_token", "mask_token", "decoder.blocks.0.norm1.weight", "decoder_pos_embed", "head.weight")
    assert all(belongs_to(name, BESIDE_THE_ENCODER) for name in beside)
    others = (
        "query_token2",
        "mask_token_norm.weight",
        "mask_tokens",
        "headless.weight",
        "encoder.blocks.0.norm1.weight",
    )
    assert not any(belongs_to(name, BESIDE_THE_ENCODER) for name in others)


def test_tensors_whose_names_only_start_like_a_known_one_are_left_over():
    report = LoadReport("ours", unexpected=["query_token", "query_token2", "encoder.rope.position_ids"])
    assert left_over(report, BESIDE_THE_ENCODER) == ["query_token2"]
