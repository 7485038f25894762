"""Hints for users of other programs: options, commands and models by purpose."""

from __future__ import annotations

import pytest

from plsc_mae.cli import COMMANDS, main
from plsc_mae.config import synonyms
from plsc_mae.config.schema import vocabulary
from plsc_mae.errors import ConfigError
from plsc_mae.models import registry

OPTIONS = {
    "pretrain": {
        "--learning_rate 1e-3": "'--lr' or '--blr'",
        "--num_epochs 3": "'--epochs'",
        "--max-epochs 3": "'--epochs'",
        "--per_device_train_batch_size 8": "'--batch_size'",
        "--output DIR": "'--output_dir'",
        "--img_size 64": "'--input_size'",
        "--workers 2": "'--num_workers'",
        "--wd 0.1": "'--weight_decay'",
        "--gradient_accumulation_steps 2": "'--accum_iter'",
        "--checkpoint FILE": "'--resume'",
        "--fp16": "'--amp' or '--amp_dtype'",
        "--in_channels 4": "'--in_chans'",
        "--gpus 2": "plsc-mae launch",
        "--nb_classes 10": "option of finetune and linprobe, not of pretrain",
        "-o learning_rate=1": "'lr' or 'blr'",
        "--ratio 1.8 2.8": "did you mean '--crop_ratio' or '--mask_ratio'?",
    },
    "finetune": {
        "--num_classes 10": "'--nb_classes'",
        "--checkpoint FILE": "'--finetune' or '--resume'",
        "--val_dir DIR": "'--eval_data_path'",
        "--mask_ratio 0.5": "option of pretrain, not of finetune",
        "--test_only": "'--eval'",
        "--scale 0.5 1": "'--crop_scale'",
        "--ratio 1.8 2.8": "did you mean '--crop_ratio'?",
    },
    "knn": {"--output_dir DIR": "'--save_path'", "--checkpoint FILE": "'--model_path'", "--k 5": "'--nb_knn'"},
    "reconstruct": {"--data_path DIR": "'--img_path'", "--checkpoint FILE": "'--model_path'"},
    "extract": {"--images DIR": "'--data_path'", "--model NAME": "'--model_path'"},
    "predict": {"--top_k 3": "'--topk'"},
    "export": {
        "--target paddle": "did you mean 'inference'?",
        "--target hf": "did you mean 'huggingface'?",
        "--target onxx": "did you mean 'onnx'?",
    },
    "launch": {"--num_processes 2 knn": "'--nproc_per_node'"},
}


@pytest.mark.parametrize(("command", "line"), [(command, line) for command in OPTIONS for line in OPTIONS[command]])
def test_options_of_other_programs(command, line, capsys):
    assert main([command, *line.split()]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert OPTIONS[command][line] in message


@pytest.mark.parametrize("line", ["--mask-ratio 0.5", "--weight-decay 0.1", "--save_freq 2"])
def test_accepted_spellings_need_no_hint(line, capsys):
    assert main(["pretrain", *line.split()]) == 2
    assert "--data_path is required" in capsys.readouterr().err


def test_every_hint_names_an_option_that_exists():
    known = {name for command in COMMANDS.values() for cls in command.configs.values() for name in vocabulary(cls)}
    named = {name for names in synonyms._OPTIONS.values() for name in names}
    assert named <= known


def test_every_hint_names_a_command_that_exists():
    for hint in synonyms._COMMANDS.values():
        words = hint.replace(",", " ").split()
        assert any(" ".join(words[:size]) in COMMANDS for size in (1, 2)), hint
    assert not synonyms._COMMANDS.keys() & COMMANDS.keys()


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("eval", "finetune --eval --resume"),
        ("test", "finetune --eval --resume"),
        ("train", "pretrain, finetune or linprobe"),
        ("fine-tune", "finetune"),
        ("visualize", "reconstruct"),
        ("inference", "predict"),
        ("features", "extract"),
        ("diff", "weights diff"),
        ("convert", "weights convert"),
    ],
)
def test_commands_of_other_programs(word, command, capsys):
    assert main([word]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert f"'{word}'; use plsc-mae {command}" in message


@pytest.mark.parametrize(
    ("network", "name", "first"),
    [
        (registry.MAE, "vit_mae_base", "mae_vit_base_patch16"),
        (registry.MAE, "facebook/vit-mae-large", "mae_vit_large_patch16"),
        (registry.MAE, "vit_base_patch16", "mae_vit_base_patch16"),
        (registry.MAE, "ViT-B/16", "mae_vit_base_patch16"),
        (registry.MAE, "vit_h_14", "mae_vit_huge_patch14"),
        (registry.MAE, "mae_vit_bas_patch16", "mae_vit_base_patch16"),
        (registry.MAE, "simmim_base_patch16_224", "pretrain_simmim_base_patch16_224"),
        (registry.CAE, "cae_base_patch16_224", "cae_base_patch16_224_8k_vocab"),
        (registry.CLASSIFIER, "mae_vit_base_patch16", "vit_base_patch16"),
        (registry.CLASSIFIER, "mae_vit_tiny_patch16", "vit_tiny_patch16"),
        (registry.CLASSIFIER, "vit_mae_huge", "vit_huge_patch14"),
        (registry.CLASSIFIER, "cae_base_patch16_224_8k_vocab", "cae_base_patch16_224"),
        (registry.CLASSIFIER, "pretrain_simmim_base_patch16_224", "simmim_base_patch16_224"),
    ],
)
def test_models_by_purpose(network, name, first):
    with pytest.raises(ConfigError) as raised:
        registry.require_network(name, network)
    hint = str(raised.value).partition("did you mean ")[2]
    assert hint.rstrip("?").split(" or ")[0] == first


def test_a_network_of_another_kind_lists_ours():
    with pytest.raises(ConfigError, match=r"'resnet50'.*vision transformers: .*mae_vit_base_patch16") as raised:
        registry.require_network("resnet50", registry.MAE)
    assert " vit_base_patch16" not in str(raised.value)
