"""One config out of defaults, YAML, overrides and flags."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from plsc_mae.config import FINETUNE, LINPROBE, PRETRAIN, MAEConfig, recipes, resolve
from plsc_mae.config.features import KNNConfig
from plsc_mae.config.inference import ExplainConfig
from plsc_mae.config.resolve import from_mapping, load_config, parse
from plsc_mae.config.runs import PlotConfig
from plsc_mae.config.schema import option, options, to_yaml
from plsc_mae.config.training import PretrainConfig
from plsc_mae.errors import ConfigError


@dataclass(kw_only=True, frozen=True)
class OtherConfig(PretrainConfig):
    """A second method, to tell methods apart."""

    method: ClassVar[str] = "other"
    models: ClassVar[tuple[str, ...]] = ("other_*",)

    defaults: ClassVar[dict[str, object]] = {"model": "other_base", "batch_size": 128}

    num_mask_patches: int = option(75, "patches hidden by the block mask", within="[1, inf)")


METHODS: dict[str, type] = {"mae": MAEConfig, "other": OtherConfig}


@pytest.fixture
def yaml_file(tmp_path):
    """Write a config file and return its path."""

    def write(text: str) -> str:
        file = tmp_path / "my.yaml"
        file.write_text(text)
        return str(file)

    return write


@pytest.fixture(autouse=True)
def heard(caplog, monkeypatch):
    """The package's log, which the command line may have cut off from pytest's."""
    monkeypatch.setattr(logging.getLogger("plsc_mae"), "propagate", True)
    return caplog


def resolved(*argv: str, configs=PRETRAIN):
    return parse(argv, configs, prog="plsc-mae pretrain")


def refused(*argv: str, configs=PRETRAIN) -> str:
    with pytest.raises(ConfigError) as error:
        resolved(*argv, configs=configs)
    assert not any("\n" in sentence for sentence in error.value.args)
    return str(error.value)


def test_nothing_given_gives_the_defaults():
    assert resolved() == MAEConfig()
    assert resolved().model == "mae_vit_large_patch16"


def test_each_source_outranks_the_one_before(yaml_file):
    file = yaml_file("blr: 1e-1\nepochs: 111\nbatch_size: 21\n")
    assert resolved().blr == 1e-3
    assert resolved("--config", file).blr == 0.1
    assert resolved("--blr", "0.3", "-c", file, "-o", "blr=0.2").blr == 0.3
    config = resolved("-o", "blr=0.2", "-c", file, "--batch_size", "31", "-o", "epochs=222")
    assert (config.blr, config.epochs, config.batch_size) == (0.2, 222, 31)


def test_the_last_flag_and_the_last_override_win():
    assert resolved("--blr", "1", "--blr", "2").blr == 2
    assert resolved("-o", "blr=1", "-o", "optim.blr=2").blr == 2
    assert resolved("--amp", "--no_amp").amp is False
    assert resolved("--no_amp", "--amp").amp is True


def test_switches(yaml_file):
    assert resolved("--norm_pix_loss").norm_pix_loss is True
    assert resolved("-c", yaml_file("norm_pix_loss: true\n"), "--no_norm_pix_loss").norm_pix_loss is False
    assert resolved("-o", "norm_pix_loss=yes").norm_pix_loss is True
    assert resolved("--no-amp").amp is False


def test_hyphens_and_equals_signs():
    config = resolved("--mask-ratio=0.5", "--save-ckpt-freq", "3", "--data_path=/a-b/c=d", "--exp_name=--x-y")
    assert (config.mask_ratio, config.save_ckpt_freq) == (0.5, 3)
    assert config.data_path == "/a-b/c=d"
    assert config.exp_name == "--x-y"


def test_tuples_from_everywhere(yaml_file):
    for argv in (
        ["--opt_betas", "0.9", "0.999"],
        ["--opt_betas", "0.9,0.999"],
        ["--opt_betas=0.9,0.999"],
        ["-o", "opt_betas=0.9 0.999"],
        ["-c", yaml_file("opt_betas: [0.9, 0.999]\n")],
    ):
        assert resolved(*argv).opt_betas == (0.9, 0.999)
    assert resolved("--input_size", "192", "256").image_size == (192, 256)
    assert resolved("--input_size", "96").image_size == (96, 96)
    assert refused("--opt_betas", "0.9") == "--opt_betas: expected 2 values, got '0.9'"
    assert refused("--input_size", "1", "2", "3").startswith("input_size: expected one side or height and width")


def test_numbers_that_yaml_reads_as_text(yaml_file):
    config = resolved("-c", yaml_file("blr: 1e-3\nlr: 1e-4\nopt_eps: 1e-8\n"))
    assert (config.blr, config.lr, config.opt_eps) == (1e-3, 1e-4, 1e-8)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--epochs", "-1", "--mask_ratio", "y"], "--epochs must lie in [1, inf), got -1\n--mask_ratio: expected a"),
        (["--mask_ratio", "1.5"], "--mask_ratio must lie in (0, 1), got 1.5"),
        (["-o", "mask_ratio=0"], "-o mask_ratio must lie in (0, 1), got 0.0"),
        (["--lr", "-1"], "--lr must lie in [0, inf), got -1.0"),
        (["--blr", "nan"], "--blr must lie in [0, inf), got nan"),
        (["--batch_size", "0"], "--batch_size must lie in [1, inf), got 0"),
        (["--epochs", "ten"], "--epochs: expected a whole number, got 'ten'"),
        (["--opt", "adam"], "--opt: expected one of adamw, sgd, lars, lars_priv, got 'adam'; did you mean 'adamw'?"),
        (["--warmup_epochs", "500"], "warmup_epochs (500) exceeds epochs (400); lower --warmup_epochs"),
        (["--lr", "none", "--blr", "none"], "a learning rate is needed"),
        (["--lr"], "--lr: expected one argument"),
        (["--online_probe_lr", "0"], "--online_probe_lr must lie in (0, inf), got 0.0"),
        (["--knn_freq", "-1"], "--knn_freq must lie in [0, inf), got -1"),
        (["--knn_k", "0"], "--knn_k must lie in [1, inf), got 0"),
        (["--eval_data_path", "x"], "--eval_data_path has no effect without --knn_freq"),
    ],
)
def test_values_that_cannot_be_obeyed(argv, told):
    assert refused(*argv).startswith(told)


@pytest.mark.parametrize("method", PRETRAIN)
def test_what_is_seen_while_training_is_chosen_for_every_method(method):
    plain = resolved("--method", method)
    assert (plain.online_probe, plain.knn_freq) == (False, 0)
    flags = "--online_probe --online_probe_lr 1e-2 --knn_freq 5 --knn_k 10 --knn_max_images 100 --eval_data_path val"
    chosen = {"online_probe_lr": 0.01, "knn_freq": 5, "knn_k": 10, "knn_max_images": 100, "eval_data_path": "val"}
    assert resolved("--method", method, *flags.split()) == dataclasses.replace(plain, online_probe=True, **chosen)


def test_the_message_names_file_and_key(yaml_file):
    file = yaml_file("mask_ratio: 1.5\n")
    assert refused("-c", file) == f"{file}: mask_ratio must lie in (0, 1), got 1.5"


def test_a_second_file_after_an_option_is_not_a_misspelled_option(tmp_path):
    (tmp_path / "b.jpg").touch()
    told = refused("--output_dir", "a.jpg", str(tmp_path / "b.jpg"))
    assert "b.jpg'; a path option takes one path: for several files give their folder" in told


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--wieght_decay", "0.1"], "unknown flag '--wieght_decay'; did you mean '--weight_decay'?"),
        (["--wieght-decay=0.1"], "unknown flag '--wieght_decay=0.1'; did you mean '--weight_decay'?"),
        (["-o", "wieght_decay=0.1"], "unknown key '-o wieght_decay'; did you mean 'weight_decay'?"),
        (["--update_frq", "2"], "unknown flag '--update_frq'; did you mean '--update_freq'?"),
        (["--mask", "0.5"], "unknown flag '--mask'"),  # no abbreviations: a new option must not change old commands
        (["--zzz"], "unknown flag '--zzz'; --help lists the options"),
        (["-q"], "unknown flag '-q'; --help lists the options"),
        (["--no_blr"], "unknown flag '--no_blr'"),
        (["--norm_pix_loss", "true"], "unexpected word 'true'; options are written `--name value`, switches `--name`"),
        (["somewhere"], "unexpected word 'somewhere'"),
    ],
)
def test_unknown_options(argv, told):
    assert refused(*argv).startswith(told)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            "--wieght_decay -1 --zzz 5 6 --yyy=2 --zzz 7",
            "unknown flag '--wieght_decay'; did you mean '--weight_decay'?\nunknown flag '--zzz'; --help lists the "
            "options\nunknown flag '--yyy=2'; --help lists the options",
        ),
        (
            "-o wieght_decay=1 -o zzz=2",
            "unknown key '-o wieght_decay'; did you mean 'weight_decay'?\nunknown key '-o z",
        ),
        ("somewhere --zzz", "unexpected word 'somewhere'; options are written `--name value`, switches `--name` or"),
        ("somewhere -1", "unexpected word 'somewhere'"),
    ],
)
def test_all_unknown_names_are_told_at_once(argv, told):
    assert refused(*argv.split()).startswith(told)
    assert ("--zzz" in refused(*argv.split())) == ("--zzz" in argv)


def test_unknown_names_and_invalid_values_are_told_at_once():
    told = refused("--zzz", "1", "--epochs", "ten", "--mask_ratio", "1.5").splitlines()
    assert [next(word for word in line.split() if "--" in word) for line in told] == [
        "'--zzz';",
        "--epochs:",
        "--mask_ratio",
    ]


@pytest.mark.parametrize(
    ("argv", "configs", "words"),
    [
        (
            "--eval --train_fraction 0.5 --quiet --json --warmup_epochs 9 --epochs 3",
            FINETUNE,
            ["warmup_epochs", "--quiet", "--eval needs", "--train_fraction"],
        ),
        (
            "--lr_sweep 1 10 --clip_grad 1 --linear_type attentive --mean 0.5",
            LINPROBE,
            ["--std", "--linear_type attentive", "--clip_grad"],
        ),
        (
            "--method cae --crop_min_size 0.9 --crop_max_size 0.8 --eval_data_path val --no_sincos_pos_emb",
            PRETRAIN,
            ["--eval_data_path", "crop_min_size", "--sincos_pos_emb"],
        ),
    ],
)
def test_all_contradictions_are_told_at_once(argv, configs, words):
    told = refused(*argv.split(), configs=configs).splitlines()
    assert len(told) == len(words)
    for word in words:
        assert sum(word in sentence for sentence in told) == 1


def test_unknown_key_in_a_file(yaml_file):
    file = yaml_file("wieght_decay: 0.1\n")
    assert refused("-c", file) == f"unknown key '{file}: wieght_decay'; did you mean 'weight_decay'?"


def test_aliases_reach_the_option_from_every_source(yaml_file, heard):
    assert resolved("--update_freq", "4", "--save-freq", "5").accum_iter == 4
    assert resolved("--update_freq", "4", "--save-freq", "5").save_ckpt_freq == 5
    assert resolved("-o", "update_freq=4").accum_iter == 4
    file = yaml_file("update_freq: 4\n")
    assert resolved("-c", file).accum_iter == 4
    assert resolved("-c", file, "--accum_iter", "8").accum_iter == 8
    assert resolved("-o", "accum_iter=4", "--update_freq", "8").accum_iter == 8
    assert refused("--update_freq", "0") == "--update_freq must lie in [1, inf), got 0"
    assert not heard.records


def test_every_retired_flag_is_accepted_and_told_once(heard):
    for name, retired in MAEConfig.retired.items():
        heard.clear()
        words = [f"--{name}", "7"] if retired.takes_value else [f"--{name}"]
        assert resolved(*words) == MAEConfig()
        assert [record.getMessage() for record in heard.records] == [f"--{name} has no effect: {retired.reason}"]
        assert heard.records[0].levelname == "WARNING"


def test_retired_keys_are_told_in_files_and_overrides_too(yaml_file, heard):
    file = yaml_file("world_size: 8\n")
    assert resolved("-c", file, "-o", "dist_url=env://") == MAEConfig()
    assert [record.getMessage().partition(" has")[0] for record in heard.records] == [
        f"{file}: world_size",
        "-o dist_url",
    ]


def test_the_model_or_the_method_picks_the_vocabulary_and_its_defaults(yaml_file):
    assert type(resolved(configs=METHODS)) is MAEConfig
    for argv in (
        ["--model", "other_base"],
        ["--model=other_base"],
        ["--method", "other"],
        ["-o", "method=other"],
        ["-c", yaml_file("model: other_base\n")],
    ):
        config = resolved(*argv, configs=METHODS)
        assert type(config) is OtherConfig
        assert config.batch_size == 128
        assert config.model == "other_base"
    assert resolved("--method", "other", "--num_mask_patches", "3", configs=METHODS).num_mask_patches == 3


def test_an_option_of_another_method_says_whose_it_is(yaml_file):
    told = "belongs to method 'other'; this run is 'mae'"
    assert refused("--num_mask_patches", "3", configs=METHODS) == f"--num_mask_patches {told}"
    assert refused("-o", "num_mask_patches=3", configs=METHODS) == f"-o num_mask_patches {told}"
    file = yaml_file("model: other_base\nmask_ratio: 0.5\n")
    assert refused("-c", file, configs=METHODS) == f"{file}: mask_ratio belongs to method 'mae'; this run is 'other'"


@pytest.mark.parametrize(
    ("argv", "content", "told"),
    [
        (["--method", "oter"], "", "unknown method 'oter'; did you mean 'other'?"),
        (["--method", "zzz"], "", "unknown method 'zzz'; known: mae, other"),
        ([], "method: 3\n", "unknown method '3'; known: mae, other"),
        ([], "method: [mae]\n", "method: expected text"),
    ],
)
def test_unknown_methods(yaml_file, argv, content, told):
    assert told in refused(*argv, "-c", yaml_file(content), configs=METHODS)


def test_the_means_of_a_file_and_the_channels_of_a_flag(yaml_file):
    """The file is the config.yaml of a run on four channels."""
    path = yaml_file("in_chans: 4\nmean: [0.1, 0.2, 0.3, 0.4]\nstd: [1, 1, 1, 1]\n")
    with pytest.raises(ConfigError) as caught:
        parse(["--config", path, "--in_chans", "3"], PRETRAIN, prog="pretrain")
    for part in (f"{path}: ", "4 values", "--in_chans", "channels to 3", "-o mean=null -o std=null"):
        assert part in str(caught.value)
    unset = ["-o", "mean=null", "-o", "std=null"]
    assert parse(["--config", path, "--in_chans", "3", *unset], PRETRAIN, prog="pretrain").mean is None
    assert parse(["--config", path, "--in_chans", "4"], PRETRAIN, prog="pretrain").mean == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize("content", ["a: [1\n", "optim:\n  lr: 1\n", "- 1\n"])
def test_unusable_config_files(yaml_file, content):
    file = yaml_file(content)
    assert file in refused("-c", file)


def test_a_missing_config_file():
    assert "none.yaml" in refused("-c", "none.yaml")


def test_the_resolved_config_can_be_fed_back(yaml_file):
    argv = "--model mae_vit_tiny_patch16 --input_size 32 64 --opt_betas 0.9 0.99 --norm_pix_loss --no_amp"
    config = resolved(*argv.split(), "--exp_name", "null", "--lr", "1e-4", "--num_workers", "0")
    file = yaml_file(to_yaml(config))
    assert resolved("-c", file) == config
    assert load_config(file) == config
    assert load_config(file, mask_ratio=0.5, input_size=96) == dataclasses.replace(
        config, mask_ratio=0.5, input_size=(96,)
    )


def test_load_config_refuses_what_the_command_line_refuses(yaml_file):
    file = yaml_file("wieght_decay: 0.1\n")
    with pytest.raises(ConfigError, match=r"wieght_decay'; did you mean 'weight_decay'\?"):
        load_config(file)
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(yaml_file(""), bls=1)
    with pytest.raises(ConfigError, match=r"phase: expected one of pretrain, .*, got \['pretrain'\]"):
        load_config(yaml_file("phase: [pretrain]\n"))


def test_stored_options_become_a_config_again():
    stored = {"method": "other", "num_mask_patches": 5, "opt_betas": [0.9, 0.98]}
    config = from_mapping(stored, METHODS, "file.pd")
    assert config == OtherConfig(num_mask_patches=5, opt_betas=(0.9, 0.98))
    with pytest.raises(ConfigError, match=r"^file.pd: batch_size must lie in"):
        from_mapping({"batch_size": 0}, METHODS, "file.pd")


def test_a_bare_word_for_commands_that_take_one():
    def plot(*argv: str) -> PlotConfig:
        return parse(argv, {"": PlotConfig}, prog="plsc-mae plot", positional="run_dir")

    assert plot("out") == plot("--run_dir", "out") == PlotConfig(run_dir="out")
    assert plot("out", "--save_path", "x.png").save_path == "x.png"
    with pytest.raises(ConfigError, match="unexpected word 'two'"):
        plot("one", "two")


@pytest.mark.parametrize(
    ("config", "content", "given", "ignored"),
    [
        (
            KNNConfig,
            "method: mae_priv\nbatch_size: 8\nmixup: 0.8\nlog_wandb: true\n",
            "--data_path d",
            "mixup, log_wandb",
        ),
        (ExplainConfig, "seed: 3\nlayer_decay: 0.5\n", "--img_path i", "layer_decay"),
    ],
)
def test_tools_take_a_training_file_and_say_what_they_ignore(config, content, given, ignored, yaml_file, heard):
    """As MAE-priv's tools do. Of the file's training options those that the tool has are used."""
    heard.set_level(logging.INFO, logger="plsc_mae")
    words = ["--finetune", "f", *given.split()]
    file = yaml_file("phase: finetune\n" + content)
    resolved_config = parse(["-c", file, *words], {"": config}, prog="plsc-mae tool")
    assert resolved_config.model_path == "f"
    assert getattr(resolved_config, content.split(":")[0], None) in (8, 3, None)
    (record,) = heard.records
    assert record.getMessage().endswith(f"that plsc-mae tool does not use: {ignored}")
    for wrong in ("drop_pth: 0.1\n", "phase: tuning\n"):
        with pytest.raises(ConfigError, match=r"'drop_path'\?|phase: expected one of"):
            parse(["-c", yaml_file(content + wrong), *words], {"": config}, prog="plsc-mae tool")
    for words in (["-o", "mixup=1"], ["--mixup", "1"]):
        with pytest.raises(ConfigError, match="unknown"):
            parse(words, {"": config}, prog="plsc-mae tool")


def test_other_commands_take_no_training_file(yaml_file):
    for content in ("phase: pretrain\n", "method: mae\n", "epochs: 3\n"):
        with pytest.raises(ConfigError, match="unknown key"):
            parse(["run", "-c", yaml_file(content)], {"": PlotConfig}, prog="plsc-mae plot", positional="run_dir")


def test_help_lists_every_option_and_no_retired_one(capsys):
    with pytest.raises(SystemExit) as exit:
        resolved("--help", "all", "--method", "mae", configs=METHODS)
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    for item in options(MAEConfig):
        assert f"--{item.name}" in shown
    for name in (*MAEConfig.retired, *MAEConfig.aliases, "num_mask_patches"):
        assert f"--{name} " not in shown


def test_a_default_warm_up_fits_a_short_run(yaml_file, heard):
    heard.set_level(logging.INFO, logger="plsc_mae")
    assert resolved("--epochs", "2").warmup_epochs == 0.2
    assert "--warmup_epochs 0.2" in heard.text
    heard.clear()
    assert resolved("--epochs", "40").warmup_epochs == 40
    assert resolved("--epochs", "2", "--warmup_epochs", "1").warmup_epochs == 1
    assert resolved("-c", yaml_file("epochs: 2\nwarmup_epochs: 0\n")).warmup_epochs == 0
    assert heard.text == ""
    assert resolved("--epochs", "10", configs=FINETUNE).warmup_epochs == 5
    assert resolved("--epochs", "5", "--model", "cae_base_patch16_224_8k_vocab").warmup_epochs == 5
    assert resolved("-c", yaml_file("epochs: 3\n"), "--method", "simmim").warmup_epochs == pytest.approx(0.3)
    assert "warmup_epochs (5) exceeds epochs (2); lower --warmup_epochs" in refused(
        "--epochs", "2", "--warmup_epochs", "5"
    )


def test_a_short_run_with_warmup_steps_adapts_the_unused_warmup_epochs_silently(heard):
    heard.set_level(logging.INFO, "plsc_mae")
    assert resolved("--method", "cae", "--epochs", "2", "--warmup_steps", "3").warmup_epochs == 0.2
    assert not heard.messages
    resolved("--method", "cae", "--epochs", "2")
    assert "--warmup_epochs 0.2" in heard.text


def test_the_later_of_lr_and_blr_wins(yaml_file, heard):
    file = yaml_file("blr: 1e-4\n")
    assert resolved("-c", file, "--lr", "1e-3").lr == 1e-3  # which replaces blr
    file = yaml_file("lr: 1e-4\n")
    assert (resolved("-c", file, "--blr", "1e-3").lr, resolved("-c", file, "--blr", "1e-3").blr) == (None, 1e-3)
    assert resolved("-c", file, "-o", "blr=2e-3").lr is None
    assert resolved("--lr", "none", "--blr", "1e-3").blr == 1e-3
    heard.clear()
    assert resolved("-c", yaml_file("lr: 1e-4\nblr: 1e-3\n")).lr == 1e-4  # as in the config.yaml of a run with lr
    assert not heard.text
    assert resolved("-c", yaml_file("lr: 1e-4\nblr: 0.5\n")).lr == 1e-4
    assert "blr is not used" in heard.text
    assert "lr 1e-4 applies" in heard.text


@pytest.mark.parametrize("name", ["../try", "/tmp/try", "a/b"])
def test_an_exp_name_is_no_path(name):
    told = refused("--exp_name", name)
    assert f"--exp_name {name}" in told
    assert "--output_dir" in told


@pytest.mark.parametrize("argv", [["--lr", "1e-3", "--blr", "1e-4"], ["-o", "lr=1e-3", "-o", "blr=1e-4"]])
@pytest.mark.parametrize("configs", [PRETRAIN, FINETUNE, LINPROBE])
def test_lr_and_blr_of_one_source_contradict_each_other(argv, configs):
    told = refused(*argv, configs=configs)
    assert "1e-3" in told
    assert "1e-4" in told
    assert "one of them" in told


def test_lr_beside_blr_is_reported_together_with_other_contradictions():
    with pytest.raises(ConfigError) as caught:
        resolved("--lr", "1e-3", "--blr", "1e-4", "--quiet", "--json")
    assert [mistake.split()[0] for mistake in caught.value.args] == ["--lr", "--quiet"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package with three recipes; the working folder is another one, and empty."""
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "site/plsc_mae/config/recipes.py"))
    for name, epochs in (("mae/pretrain_tiny", 7), ("mae/pretrain_small", 8), ("other/pretrain_tiny", 9)):
        file = tmp_path / f"site/plsc_mae/configs/{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"epochs: {epochs}\nwarmup_epochs: 0\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


@pytest.mark.parametrize(
    "text",
    ["mae/pretrain_tiny", "mae/pretrain_tiny.yaml", "configs/mae/pretrain_tiny.yaml", "configs/mae/pretrain_tiny"],
)
def test_recipes_are_found_by_name_in_any_folder(installed, text):
    assert resolved("--config", text).epochs == 7
    assert resolve.load_config(text).epochs == 7


@pytest.mark.parametrize("text", ["mae/pretrain_tiny", "configs/mae/pretrain_tiny.yaml"])
def test_a_path_takes_precedence_over_a_recipe(installed, text):
    Path(text).parent.mkdir(parents=True)
    Path(text).write_text("epochs: 3\nwarmup_epochs: 0\n")
    assert resolved("--config", text).epochs == 3
    Path(text).unlink()
    Path(text).mkdir()  # the output folder of a run, for example
    assert resolved("--config", text).epochs == 7


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("mae/pretrain_smal", "'mae/pretrain_small'"),
        ("MAE/Pretrain_Small", "'mae/pretrain_small'"),
        ("pretrain_tiny", "'mae/pretrain_tiny' or 'other/pretrain_tiny'"),
        ("configs/mae/pretrain-small.yaml", "'mae/pretrain_small'"),
        ("mae", "folder"),
        ("mine.yaml", "plsc-mae configs"),
    ],
)
def test_a_misspelled_recipe_gets_suggestions(installed, text, meant):
    Path("mae").mkdir()
    said = refused("--config", text)
    assert text in said
    assert meant in said
