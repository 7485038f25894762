"""Options of small runs of every method and phase."""

from __future__ import annotations

import pytest

from plsc_mae.cli import COMMANDS
from plsc_mae.config.resolve import parse

_SIZES = "--input_size 64 --patch_size 8 --embed_dim 48 --depth 3 --num_heads 4 --batch_size 6 --device cpu"
_DECODER = "--decoder_embed_dim 32 --decoder_depth 2 --decoder_num_heads 4"
_CAE = (
    f"{_SIZES} --model cae_tiny_patch16_224_8k_vocab --regressor_depth 2 --num_decoder_self_attention 2 "
    "--decoder_num_heads 4 --num_mask_patches 30 --discrete_vae_type random_init --discrete_vae_hidden 8 "
    "--decoder_num_classes 64"
)
RUNS = {
    "mae": f"pretrain {_SIZES} {_DECODER} --model mae_vit_tiny_patch16",
    "mae with drop path": f"pretrain {_SIZES} {_DECODER} --model mae_vit_tiny_patch16 --drop_path 0.1 --mask_ratio 0.4",
    "mae of LiBai": f"pretrain {_SIZES} {_DECODER} --model mae_vit_tiny_patch16 --train_positions --norm_pix_loss",
    "mae_priv": f"pretrain {_SIZES} {_DECODER} --method mae_priv --model pretrain_mae_tiny_patch16_224",
    "mae_pytorch": f"pretrain {_SIZES} {_DECODER} --model pretrain_mae_small_patch16_224",
    "cae": f"pretrain {_CAE} --decoder_embed_dim 48 --drop_path 0.1",
    "cae with a bridge": f"pretrain {_CAE} --decoder_embed_dim 32 --dual_path_ema 0.9",
    "cae of pixels": f"pretrain {_CAE} --decoder_embed_dim 48 --target_mode rgb --decoder_num_classes none",
    "finetune": f"finetune {_SIZES} --model vit_base_patch16 --drop_path 0.1 --nb_classes 10",
    "finetune cae": f"finetune {_SIZES} --model cae_tiny_patch16_224 --nb_classes 10",
    "linprobe": f"linprobe {_SIZES} --model vit_base_patch16 --nb_classes 10",
    "sweep": f"linprobe {_SIZES} --model vit_base_patch16 --nb_classes 10 --lr_sweep 0.1 1 10",
    "attentive": f"linprobe {_SIZES} --model cae_tiny_patch16_224 --linear_type attentive --nb_classes 10",
}


def plan_config(line: str):
    """Parse a command line that begins with the phase, as `plsc-mae plan` does."""
    phase, *words = line.split()
    return parse(words, COMMANDS[f"plan {phase}"].configs, prog=f"plan {phase}")


@pytest.fixture(params=RUNS)
def config(request):
    """The config of a small run; every test using it runs once for each."""
    return plan_config(RUNS[request.param])


@pytest.fixture
def config_of():
    """Return the function that parses a command line."""
    return plan_config
