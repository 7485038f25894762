"""Options of fine-tuning and probing: every flag of the originals is obeyed, renamed or said to have no effect."""

from __future__ import annotations

import logging

import pytest

from plsc_mae.config import FINETUNE, LINPROBE
from plsc_mae.config.resolve import load_config, parse
from plsc_mae.errors import ConfigError

# PLSC task/ssl/cae README.md.
CAE_FINETUNE = """--data_path d --output_dir o --model cae_base_patch16_224 --finetune f --nb_classes 1000
  --batch_size 128 --lr 8e-3 --accum_iter 1 --warmup_epochs 5 --epochs 100 --layer_decay 0.65 --drop_path 0.1
  --weight_decay 0.05 --mixup 0.8 --cutmix 1.0 --sin_pos_emb --dist_eval --no_auto_resume --exp_name n"""
CAE_LINPROBE = """--data_path d --output_dir o --model cae_base_patch16_224 --finetune f --nb_classes 1000
  --batch_size 512 --epochs 90 --blr 0.1 --weight_decay 0.0 --dist_eval --log_dir l --enable_linear_eval --use_cls
  --save_freq 50 --disable_rel_pos_bias --linear_type standard --exp_name n"""
# FINETUNE.md of facebookresearch/mae and PLSC task/ssl/mae README.md.
MAE_FINETUNE = """--accum_iter 1 --batch_size 32 --model vit_base_patch16 --finetune f --epochs 100 --blr 5e-4
  --layer_decay 0.65 --weight_decay 0.05 --drop_path 0.1 --reprob 0.25 --mixup 0.8 --cutmix 1.0 --dist_eval
  --data_path d"""
MAE_LINPROBE = """--batch_size 512 --model vit_base_patch16 --cls_token --finetune f --epochs 90 --blr 0.1
  --weight_decay 0.0 --dist_eval --data_path d"""
# README of pengzhiliang/MAE-pytorch.
MP_FINETUNE = """--model vit_base_patch16_224 --data_path d --finetune f --output_dir o --batch_size 128 --opt adamw
  --opt_betas 0.9 0.999 --weight_decay 0.05 --epochs 100 --dist_eval"""

COMMON = """--device gpu --seed 1 --resume f --start_epoch 1 --num_workers 3 --pin_mem --no_pin_mem --world_size 1
  --local_rank 0 --dist_on_itp --dist_url env:// --eval --min_lr 1e-7 --lr 1e-3 --nb_classes 10 --log_dir l"""
AUGMENT = """--color_jitter 0.4 --aa rand-m9-mstd0.5-inc1 --smoothing 0.1 --reprob 0.25 --remode pixel --recount 1
  --resplit --mixup 0.8 --cutmix 1.0 --cutmix_minmax 0.2 0.8 --mixup_prob 1.0 --mixup_switch_prob 0.5
  --mixup_mode batch"""
BEIT = """--update_freq 2 --save_ckpt_freq 5 --drop 0.1 --attn_drop_rate 0.1 --model_ema
  --model_ema_decay 0.99 --model_ema_force_cpu --opt adamw --opt_eps 1e-8 --opt_betas 0.9 0.99 --clip_grad 1
  --momentum 0.9 --weight_decay_end 0.01 --layer_decay 0.7 --warmup_lr 1e-6 --warmup_steps 3 --train_interpolation
  bicubic --crop_pct 0.9 --model_key model|module --init_scale 0.001 --eval_data_path v --data_set IMNET
  --auto_resume --no_auto_resume --save_ckpt --no_save_ckpt --enable_deepspeed"""
CAE_ONLY = """--rel_pos_bias --disable_rel_pos_bias --abs_pos_emb --sin_pos_emb --disable_sin_pos_emb
  --layer_scale_init_value 0.1 --use_mean_pooling --use_cls --imagenet_default_mean_and_std --enable_linear_eval
  --linear_type attentive --linear_depth 2 --enable_multi_print --exp_name n --print_freq 1 --max_train_step 2"""


def resolved(configs, *words: str):
    return parse(" ".join(words).split(), configs, prog="plsc-mae")


@pytest.fixture
def heard(caplog):
    """Warnings of the package, which keeps its records from the root logger once a command has run."""
    log = logging.getLogger("plsc_mae")
    log.addHandler(caplog.handler)
    yield caplog
    log.removeHandler(caplog.handler)


def test_the_published_commands_are_obeyed_without_a_word(heard):
    config = resolved(FINETUNE, CAE_FINETUNE)
    assert (config.method, config.lr, config.blr, config.layer_decay, config.auto_resume) == (
        "cae",
        8e-3,
        None,
        0.65,
        False,
    )
    assert (config.global_pool, config.rel_pos_bias, config.rand_augment) == (True, True, "rand-m9-mstd0.5-inc1")
    assert (config.min_lr, config.reprob, config.smoothing, config.opt_betas) == (1e-6, 0.25, 0.1, (0.9, 0.999))
    config = resolved(LINPROBE, CAE_LINPROBE)
    assert (config.method, config.opt, config.blr, config.lr, config.min_lr) == ("cae", "lars", 0.1, None, 0.0)
    assert (config.global_pool, config.rel_pos_bias, config.save_ckpt_freq) == (False, False, 50)
    assert (config.probe, config.warmup_epochs) == ("standard", 10)
    config = resolved(FINETUNE, MAE_FINETUNE)
    assert (config.method, config.blr, config.warmup_epochs, config.min_lr) == ("mae", 5e-4, 5, 1e-6)
    config = resolved(LINPROBE, MAE_LINPROBE)
    assert (config.method, config.opt, config.blr, config.global_pool) == ("mae", "lars", 0.1, False)
    config = resolved(FINETUNE, MP_FINETUNE)
    assert (config.method, config.lr, config.lr_per_256, config.mixup, config.cutmix) == (
        "mae_pytorch",
        1e-3,
        True,
        0.8,
        1,
    )
    assert (config.layer_decay, config.reprob, config.warmup_epochs) == (0.75, 0.25, 5)
    assert not heard.records


@pytest.mark.parametrize(
    ("configs", "method", "flags"),
    [
        (FINETUNE, "mae", f"{COMMON} {AUGMENT} --clip_grad 1 --global_pool --cls_token --accum_iter 2"),
        (LINPROBE, "mae", f"{COMMON} --global_pool --cls_token --accum_iter 2"),
        (FINETUNE, "mae", "--disable_eval_during_finetuning"),
        (FINETUNE, "cae", f"{COMMON} {AUGMENT} {BEIT} {CAE_ONLY}"),
        (LINPROBE, "cae", f"{COMMON} {CAE_ONLY} --clip_norm 1 --debug --drop 0 --attn_drop_rate 0 --lr none"),
        (FINETUNE, "mae_pytorch", f"{COMMON} {AUGMENT} {BEIT} --use_cls"),
        (FINETUNE, "mae_priv", f"{COMMON} {AUGMENT} {BEIT} --log_wandb "
                               "--wandb_project p --use_cls_token --imagenet_inception_mean_and_std"),
        (LINPROBE, "mae_priv", f"{COMMON} --opt lars --momentum 0.9 --use_cls_token --no_log_wandb --warmup_steps 3"),
    ],
)  # fmt: skip
def test_every_flag_of_the_originals_is_known(configs, method, flags):
    config = resolved(configs, "--method", method, flags)
    assert config.method == method


def test_switches_that_turn_another_option_off(tmp_path):
    for flags, pooled in (
        ("", True),
        ("--cls_token", False),
        ("--use_cls", False),
        ("--cls_token --use_mean_pooling", True),
        ("--no_global_pool", False),
    ):
        assert resolved(FINETUNE, "--model vit_base_patch16", flags).global_pool is pooled, flags
    file = tmp_path / "my.yaml"
    for key, pooled in (("use_cls: true", False), ("use_cls: false", True), ("use_mean_pooling: false", False)):
        file.write_text(key + "\n")
        assert resolved(FINETUNE, "--model vit_base_patch16 -c", str(file)).global_pool is pooled, key
    for key, pooled in (("use_cls_token: true", False), ("use_cls_token: false", True)):
        file.write_text(key + "\n")
        assert resolved(FINETUNE, "--method mae_priv -c", str(file)).global_pool is pooled, key
    assert resolved(FINETUNE, "--method mae_priv").global_pool is False
    assert resolved(FINETUNE, "--model cae_base_patch16_224 --disable_rel_pos_bias").rel_pos_bias is False


def test_a_probe_through_the_fine_tuning_command_has_no_rand_augment_by_default():
    probe = "--model cae_base_patch16_224 --enable_linear_eval"
    assert resolved(FINETUNE, probe).rand_augment is None
    assert resolved(FINETUNE, probe, "--aa rand-m5").rand_augment == "rand-m5"
    assert resolved(FINETUNE, probe).probe == "standard"
    assert resolved(FINETUNE, "--model cae_base_patch16_224 --aa none").rand_augment is None


@pytest.mark.parametrize(
    ("configs", "flags", "told"),
    [
        (FINETUNE, "--eval", "--eval needs a classifier to evaluate: --resume FILE"),
        (FINETUNE, "--classes f", "--classes names the outputs of a trained classifier"),
        (LINPROBE, "--classes f --finetune f", "--classes names the outputs of a trained classifier"),
        (FINETUNE, "--eval --resume f --disable_eval_during_finetuning", "cannot be combined"),
        (FINETUNE, "--method mae_pytorch --blr 1e-3", "the learning rate of method 'mae_pytorch' is per 256 images"),
        (FINETUNE, "--model cae_base_patch16_224 --blr 1e-3", "the learning rate of method 'cae' is absolute"),
        (FINETUNE, "--linear_type standard", "belongs to method 'cae'; this run is 'mae'"),
        (FINETUNE, "--model cae_base_patch16_224 --linear_type attentive", "give --enable_linear_eval too"),
        (LINPROBE, "--linear_depth 2", "--linear_depth 2 counts the blocks of --linear_type attentive"),
        (LINPROBE, "--mixup 0.8", "unknown flag '--mixup'"),
        (FINETUNE, "--crop_scale 0.9 0.5", "--crop_scale 0.9 0.5: the smallest value exceeds the largest"),
        (LINPROBE, "--crop_scale 0 1", "--crop_scale must lie in (0, 1], got 0"),
        (FINETUNE, "--cutmix_minmax 0.8 0.2", "--cutmix_minmax 0.8 0.2: the smallest value exceeds the largest"),
        (LINPROBE, "--cache_features --crop_scale 0.5 1", "--crop_scale has no effect with --cache_features"),
        (FINETUNE, "--crop_ratio 2.8 1.8", "--crop_ratio 2.8 1.8: the smallest value exceeds the largest"),
        (FINETUNE, "--crop_ratio 0 1", "--crop_ratio must lie in (0, inf), got 0"),
        (LINPROBE, "--cache_features --crop_ratio 1.8 2.8", "--crop_ratio has no effect with --cache_features"),
        (LINPROBE, "--method mae_pytorch", "unknown method 'mae_pytorch'"),
    ],
)
def test_what_cannot_be_obeyed(configs, flags, told):
    with pytest.raises(ConfigError) as error:
        resolved(configs, flags)
    assert told in str(error.value)


def test_a_file_of_another_phase(root, tmp_path):
    file = root / "configs/mae/linprobe_vit_base.yaml"
    assert load_config(str(file)).phase == "linprobe"
    with pytest.raises(ConfigError, match="phase: the file has options of 'linprobe', but this command is 'finetune'"):
        resolved(FINETUNE, "-c", str(file))
    (tmp_path / "my.yaml").write_text("phase: finetuning\n")
    with pytest.raises(ConfigError, match="phase: expected one of pretrain, finetune, linprobe, got 'finetuning'"):
        load_config(str(tmp_path / "my.yaml"))
