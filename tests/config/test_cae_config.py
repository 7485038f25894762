"""CAE's vocabulary: every flag of Atten4Vis/CAE and PLSC, their defaults, PLSC's published command."""

from __future__ import annotations

import dataclasses
import logging
import shlex

import pytest

from plsc_mae.config import PRETRAIN, CAEConfig, MAEConfig
from plsc_mae.config.resolve import from_mapping, parse
from plsc_mae.config.schema import options, plain_values
from plsc_mae.errors import ConfigError

# Flag, a value other than the default, what the option is then, the default. "=": the value as it is written.
LIVE = """
batch_size                      32          =            64
epochs                          800         =            300
save_ckpt_freq                  20          =            50
discrete_vae_weight_path        dalle       =            None
discrete_vae_type               random_init =            dall-e
model                           cae_large_patch16_224_8k_vocab = cae_base_patch16_224_8k_vocab
abs_pos_emb                     -           True         False
sincos_pos_emb                  -           True         True
layer_scale_init_value          1e-5        =            0.1
num_mask_patches                75          =            None
max_mask_patches_per_block      40          =            None
min_mask_patches_per_block      8           =            16
input_size                      192         (192,)       (224,)
second_input_size               96          (96,)        None
drop_path                       0.1         =            0.0
opt                             adamw       =            adamw
opt_eps                         1e-6        =            1e-8
opt_betas                       0.9,0.98    (0.9,0.98)   (0.9,0.999)
clip_grad                       3.0         =            None
weight_decay                    0.1         =            0.05
weight_decay_end                0.2         =            None
lr                              1.5e-3      =            5e-4
min_lr                          1e-6        =            1e-5
warmup_epochs                   10          =            5
warmup_steps                    100         =            -1
train_interpolation             random      =            bicubic
second_interpolation            bicubic     =            lanczos
data_path                       imagenet    =            ''
imagenet_default_mean_and_std   -           True         False
output_dir                      out         =            ./output_dir
log_dir                         vdl         =            None
device                          cuda        =            auto
seed                            1           =            0
resume                          a.pd        =            ''
auto_resume                     -           True         True
start_epoch                     3           =            0
num_workers                     10          =            None
regressor_depth                 2           =            4
num_decoder_self_attention      0           =            4
decoder_embed_dim               1024        =            768
decoder_num_heads               16          =            12
decoder_num_classes             1024        =            None
decoder_layer_scale_init_value  1e-5        =            0.1
mask_generator                  block       =            block
color_jitter                    0.4         =            0.0
exp_name                        try         =            ''
target_mode                     rgb         =            clusterID
target_path                     v.npz       =            None
normalized_pixel                channel     =            layernorm
denorm                          -           True         False
rescale_init                    -           True         False
dual_loss_weight                1           =            2.0
dual_loss_type                  kld         =            mse
dual_path_ema                   0.99        =            0.0
crop_min_size                   0.2         =            0.08
crop_max_size                   0.9         =            1.0
print_freq                      20          =            10
max_train_step                  7           =            None
amp                             -           True         True
model_type                      cae         =            cae
"""
ALIASES = {
    "decoder_depth": ("3", "num_decoder_self_attention", 3),
    "align_loss_weight": ("1.5", "dual_loss_weight", 1.5),
    "fix_init_weight": ("True", "rescale_init", True),
    "update_freq": ("2", "accum_iter", 2),
}
RETIRED_SWITCHES = ["rel_pos_bias", "disable_rel_pos_bias", "pin_mem", "no_pin_mem", "dist_on_itp"]
RETIRED_SWITCHES += ["debug", "enable_multi_print"]
RETIRED_VALUES = ["save_ckpt_toBPFS_freq", "warmup_lr", "world_size", "local_rank", "dist_url"]
RETIRED_VALUES += ["dvae_num_layers", "num_out_dim", "latent_alignment_loss_weight"]
# PLSC task/ssl/cae README.md, with the variables of its first lines.
PUBLISHED = """main_pretrain.py \\
  --data_path ./dataset/ILSVRC2012/ \\
  --output_dir ./output/ep800_fp16o1 \\
  --model cae_base_patch16_224_8k_vocab --discrete_vae_weight_path dalle-weights \\
  --batch_size 64 --lr 1.5e-3 --warmup_epochs 10 --epochs 800 \\
  --clip_grad 3.0 --layer_scale_init_value 0.1 \\
  --imagenet_default_mean_and_std \\
  --color_jitter 0 \\
  --drop_path 0 \\
  --sincos_pos_emb \\
  --mask_generator block \\
  --num_mask_patches 75 \\
  --decoder_layer_scale_init_value 0.1 \\
  --no_auto_resume \\
  --save_ckpt_freq 50 \\
  --exp_name ep800_fp16o1 \\
  --regressor_depth 4 \\
  --seed 0 \\
  --log_dir vdl \\
  --num_decoder_self_attention 4 \\
  --dual_loss_weight 2 \\
  --dual_path_ema 0
"""


@pytest.fixture(autouse=True)
def heard(caplog, monkeypatch):
    """The package's log, which the command line may have cut off from pytest's."""
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    return caplog


def resolved(*argv: str) -> CAEConfig:
    return parse(["--method", "cae", *argv], PRETRAIN, prog="plsc-mae pretrain")


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as error:
        resolved(*argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def literal(text: str):
    """The value that a word of the table stands for."""
    if text.startswith("("):
        return tuple(float(number) for number in text.strip("()").split(",") if number)
    try:
        return float(text)
    except ValueError:
        return {"None": None, "True": True, "False": False, "''": ""}.get(text, text)


def live_rows() -> list[list[str]]:
    return [line.split() for line in LIVE.strip().splitlines()]


@pytest.mark.parametrize(("flag", "word", "value", "default"), live_rows(), ids=[row[0] for row in live_rows()])
def test_live_flags(flag, word, value, default, heard):
    assert getattr(CAEConfig(), flag) == literal(default)
    config = resolved(f"--{flag}", *([] if word == "-" else [word]))
    assert getattr(config, flag) == literal(word if value == "=" else value)
    others = {item.name for item in options(CAEConfig)} - {flag}
    assert all(getattr(config, name) == getattr(CAEConfig(), name) for name in others)
    assert not heard.records


@pytest.mark.parametrize("flag", ALIASES)
def test_aliases(flag, heard):
    word, option, value = ALIASES[flag]
    assert CAEConfig.aliases[flag] == option
    assert resolved(f"--{flag}", word) == dataclasses.replace(CAEConfig(), **{option: value})
    assert not heard.records


@pytest.mark.parametrize("flag", [*RETIRED_SWITCHES, *RETIRED_VALUES])
def test_retired_flags_warn_and_change_nothing(flag, heard):
    assert resolved(f"--{flag}", *([] if flag in RETIRED_SWITCHES else ["1"])) == CAEConfig()
    (record,) = heard.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == f"--{flag} has no effect: {CAEConfig.retired[flag].reason}"


def test_flags_that_need_another(heard):
    config = resolved("--mask_generator", "random", "--ratio_mask_patches", "0.5")
    assert config == dataclasses.replace(CAEConfig(), mask_generator="random", ratio_mask_patches=0.5)
    assert resolved("--no_auto_resume") == dataclasses.replace(CAEConfig(), auto_resume=False)
    assert not heard.records


def test_no_option_is_left_out_of_these_tables():
    own = {item.name for item in options(CAEConfig)} - {item.name for item in options(MAEConfig)}
    listed = {row[0] for row in live_rows()} | {"mask_generator", "ratio_mask_patches"}
    # Not in the originals: how a random tokenizer is made and how any one computes.
    ours = {"discrete_vae_seed", "discrete_vae_hidden", "discrete_vae_dtype"}
    assert own - listed == ours


def test_the_published_command_means_what_it_says(heard):
    program, *words = shlex.split(PUBLISHED.replace("\\\n", " "))
    assert program == "main_pretrain.py"
    config = parse(words, PRETRAIN, prog="plsc-mae pretrain")  # the model's name tells the method
    assert config == CAEConfig(
        data_path="./dataset/ILSVRC2012/",
        output_dir="./output/ep800_fp16o1",
        model="cae_base_patch16_224_8k_vocab",
        discrete_vae_weight_path="dalle-weights",
        batch_size=64,
        lr=1.5e-3,
        warmup_epochs=10.0,
        epochs=800,
        clip_grad=3.0,
        layer_scale_init_value=0.1,
        imagenet_default_mean_and_std=True,
        color_jitter=0.0,
        drop_path=0.0,
        sincos_pos_emb=True,
        mask_generator="block",
        num_mask_patches=75,
        decoder_layer_scale_init_value=0.1,
        auto_resume=False,
        save_ckpt_freq=50,
        exp_name="ep800_fp16o1",
        regressor_depth=4,
        seed=0,
        log_dir="vdl",
        num_decoder_self_attention=4,
        dual_loss_weight=2.0,
        dual_path_ema=0.0,
    )
    assert not heard.records
    assert from_mapping(plain_values(config), PRETRAIN, "file.pd") == config


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            "--blr 1e-3",
            "--blr has no effect beside --lr (0.0005): the learning rate of method 'cae' is absolute; give",
        ),
        ("--lr none", "a learning rate is needed: --lr, or --blr"),
        ("--crop_min_size 0.5 --crop_max_size 0.4", "crop_min_size (0.5) exceeds crop_max_size (0.4)"),
        ("--no_sincos_pos_emb", "positions are needed: leave --sincos_pos_emb on, or give --abs_pos_emb"),
        ("--mask_generator random", "--ratio_mask_patches belongs to --mask_generator random, which requires it"),
        ("--ratio_mask_patches 0.5", "--ratio_mask_patches belongs to --mask_generator random, which requires it"),
        (
            "--mask_generator random --ratio_mask_patches 0.5 --num_mask_patches 75",
            "--ratio_mask_patches belongs to --mask_generator random, which requires it",
        ),
        ("--weight_decay 0 --weight_decay_end 0.1", "weight_decay_end needs a --weight_decay to start from; it is 0"),
        ("--regressor_depth 0", "--regressor_depth must lie in [1, inf), got 0"),
        ("--discrete_vae_type to_tensor", "--discrete_vae_type to_tensor has no tokens for --target_mode clusterID"),
        ("--discrete_vae_type customized", "--discrete_vae_type: expected one of dall-e, random_init, to_tensor"),
        ("--model_type caev2", "--model_type: expected one of cae, got 'caev2'"),
        ("--mask_generator blocks", "--mask_generator: expected one of block, random, got 'blocks'; did you mean"),
        ("--warmup_epochs 301", "warmup_epochs (301) exceeds epochs (300)"),
        ("--dual_path_ema 1", "--dual_path_ema must lie in [0, 1), got 1.0"),
        ("--num_mask_patches 0", "--num_mask_patches must lie in [1, inf), got 0"),
        ("--color_jitter -1", "--color_jitter must lie in [0, inf), got -1.0"),
        ("--mask_ratio 0.75", "--mask_ratio belongs to method 'mae'; this run is 'cae'"),
        ("--norm_pix_loss", "--norm_pix_loss belongs to method 'mae'; this run is 'cae'"),
    ],
)
def test_what_cannot_be_obeyed(argv, told):
    assert refused(*argv.split()).startswith(told)


def test_what_looks_alike_and_can_be_obeyed():
    assert resolved("--no_sincos_pos_emb", "--abs_pos_emb").abs_pos_emb
    assert resolved("--lr", "none", "--blr", "1e-3").blr == 1e-3
    assert resolved("--discrete_vae_type", "to_tensor", "--target_mode", "rgb").target_mode == "rgb"
    assert resolved("--crop_min_size", "0.5", "--crop_max_size", "0.5").crop_max_size == 0.5


def test_the_models_name_tells_the_method():
    for name in ("cae_tiny_patch16_224_8k_vocab", "cae_large_patch16_224_8k_vocab"):
        assert type(parse(["--model", name], PRETRAIN, prog="plsc-mae pretrain")) is CAEConfig
    with pytest.raises(ConfigError, match="--num_mask_patches belongs to method 'cae'; this run is 'mae'"):
        parse(["--num_mask_patches", "75"], PRETRAIN, prog="plsc-mae pretrain")
