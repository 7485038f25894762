"""Names of networks."""

from __future__ import annotations

import pytest

from plsc_mae.errors import ConfigError
from plsc_mae.models import registry

pytestmark = pytest.mark.compat


def test_a_network_for_another_purpose_is_told():
    registry.require_network("cae_tiny_patch16_224_8k_vocab", registry.CAE)
    with pytest.raises(ConfigError, match="cae_base_patch16_224 is not for pre-training; did you mean cae_base"):
        registry.require_network("cae_base_patch16_224", registry.CAE)
    with pytest.raises(ConfigError, match="mae_vit_base_patch16 belongs to another method: leave --method out"):
        registry.require_network("mae_vit_base_patch16", registry.CAE)
    with pytest.raises(ConfigError, match=r"unknown model 'cae_base_patch16_223'.*; did you mean cae_base_patch16_224"):
        registry.require_network("cae_base_patch16_223", registry.CAE)


def test_arguments_are_the_variants_with_overrides():
    assert registry.arguments_of("mae_vit_base_patch16", depth=2, num_heads=None) == {
        "patch_size": 16,
        "embed_dim": 768,
        "depth": 2,
        "num_heads": 12,
    }


@pytest.mark.parametrize(("name", "width"), [("mae_vit_tiny_patch16", 192), ("mae_vit_small_patch16", 384)])
def test_small_encoders_have_a_small_decoder_under_a_name_of_its_own(name, width):
    sizes = {"patch_size": 16, "embed_dim": width, "depth": 12, "num_heads": width // 64}
    assert registry.arguments_of(name) == sizes  # the decoder of earlier checkpoints stays 512 wide
    decoder = {"decoder_embed_dim": 192, "decoder_depth": 4, "decoder_num_heads": 3}
    assert registry.arguments_of(f"{name}_dec192d4b") == sizes | decoder
