"""The Python API: the same results as the commands, images in memory, errors, and nothing left behind by a call."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paddle import nn
from PIL import Image

import plsc_mae
from plsc_mae.cli import main
from plsc_mae.data.workers import Worker
from plsc_mae.errors import ConfigError, DataError, UserError, flag
from plsc_mae.methods.base import StepOutput, Task
from plsc_mae.train.checkpoint.file import load

ROOT = Path(__file__).parents[1]
ENCODER = {"input_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4}
RUN = {"num_workers": 0, "batch_size": 6, "epochs": 2, "print_freq": 1, "device": "cpu"}
MAE = {"model": "mae_vit_base_patch16", **ENCODER, **DECODER, **RUN, "vis_freq": 0}
PROBE = {"phase": "linprobe", "model": "vit_base_patch16", **ENCODER, **RUN}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Make 18 images [18, 40, 36, 3]: dark ones, then bright ones."""
    pixels = np.random.default_rng(0).integers(0, 128, (18, 40, 36, 3), np.uint8)
    pixels[9:] += 128
    return pixels


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory) -> Path:
    """Write the images as PNG files in two class folders; the order of the files is that of the array."""
    root = tmp_path_factory.mktemp("folder")
    for i, image in enumerate(images):
        path = root / ("a_dark" if i < 9 else "bright") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return root


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    """Pre-train the small MAE on the images in memory."""
    return plsc_mae.train(images, tmp_path_factory.mktemp("pretrained"), **MAE)


def words(options: dict) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def assert_same_weights(one: Path, two: Path) -> None:
    ours, theirs = load(one).tensors, load(two).tensors
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], name)


class Colors(Task):
    """A small objective: an autoencoder of colors."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))

    def forward(self, batch):
        colors = batch["image"].astype("float32") / 255
        loss = ((self.model(colors) - colors) ** 2).mean()
        return StepOutput(loss, {"loss": loss.detach()})


# ------------------------------------------------------------------------------------------------------ train


@pytest.mark.compat
def test_images_in_memory_give_the_bits_of_files(images, folder, pretrained, tmp_path):
    assert main(["pretrain", *words({**MAE, "data_path": folder, "output_dir": tmp_path})]) == 0
    assert_same_weights(tmp_path / "checkpoint-1.pd", pretrained.checkpoint)


def test_the_result_names_files_and_metrics(pretrained):
    assert pretrained.checkpoint == pretrained.folder / "checkpoint-1.pd"
    assert pretrained.best is None
    assert pretrained.metrics["epoch"] == 1
    assert pretrained.metrics["step"] == 6
    assert np.isfinite(pretrained.metrics["train_loss"])


def test_a_stopped_run_continues_with_the_same_images(images, pretrained, tmp_path):
    first = plsc_mae.train(list(images), tmp_path, auto_resume=True, max_train_step=2, **MAE)
    assert first.checkpoint.name == "checkpoint-latest.pd"
    assert first.metrics["step"] == 2
    assert np.isfinite(first.metrics["train_loss"])
    second = plsc_mae.train(list(images), tmp_path, auto_resume=True, **MAE)
    assert_same_weights(second.checkpoint, pretrained.checkpoint)
    again = plsc_mae.train(list(images), tmp_path, auto_resume=True, **MAE)
    assert again.metrics == second.metrics


def test_pairs_give_the_bits_of_class_folders(images, folder, pretrained, tmp_path):
    pairs = [(Image.fromarray(image), "a_dark" if i < 9 else "bright") for i, image in enumerate(images)]
    given = {**PROBE, "finetune": pretrained.checkpoint, "cache_features": True}
    memory = plsc_mae.train(pairs, tmp_path / "memory", eval_data=pairs[::3], **given)
    files = plsc_mae.train(folder, tmp_path / "files", eval_data=folder, **given)
    assert_same_weights(memory.checkpoint, files.checkpoint)
    assert memory.best.name == "checkpoint-best.pd"
    evaluated = plsc_mae.train(
        pairs[:9], phase="linprobe", eval=True, resume=memory.checkpoint, **{**ENCODER, **RUN, "model": PROBE["model"]}
    )
    assert set(evaluated.metrics) >= {"test_loss", "test_acc1", "test_acc5"}
    with pytest.raises(DataError, match="eval_data_path"):
        plsc_mae.train(pairs, tmp_path / "none", **given)


def test_a_task_of_ones_own_is_trained(images, tmp_path):
    task = Colors()
    before = task.model[0].weight.numpy()
    run = plsc_mae.train(images, tmp_path, task=task, lr=1e-2, **RUN)
    stored = plsc_mae.weights.read(run.checkpoint).model
    np.testing.assert_array_equal(stored["0.weight"], task.model[0].weight.numpy())
    assert (before != stored["0.weight"]).any()
    with pytest.raises(ConfigError, match="linprobe"):
        plsc_mae.train(images, tmp_path, task=task, phase="linprobe")
    pairs = [(image, i % 2) for i, image in enumerate(images)]
    with pytest.raises(ConfigError, match=r"online_probe.*Colors"):
        plsc_mae.train(pairs, tmp_path / "probe", task=task, online_probe=True, **RUN)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mask_ration": 0.5}, ["mask_ration", "mask_ratio"]),
        ({"batch_size": "many"}, ["batch_size", "many"]),
        ({"batch_size": 0}, ["batch_size", "[1, inf)"]),
        ({"data_path": "x"}, ["data_path"]),
        ({"output_dir": "x"}, ["output_dir"]),
        ({"phase": "pretrian"}, ["'pretrain'"]),
        ({"method": "mea"}, ["'mae'"]),
        ({"config": "no/such/recipe"}, ["no/such/recipe"]),
        ({"discrete_vae_type": "x"}, ["discrete_vae_type", "cae"]),
    ],
)
def test_options_are_checked_as_by_the_commands(images, tmp_path, options, named):
    with pytest.raises(ConfigError) as error:
        plsc_mae.train(images, tmp_path / "run", **options)
    assert all(text in str(error.value) for text in named)
    assert not (tmp_path / "run").exists()
    assert flag("nothing_has_this") == "--nothing_has_this"  # the flags of the call are no longer in force


def test_recipes_paths_and_array_scalars_are_accepted(images, tmp_path):
    options = {**MAE, "batch_size": np.int64(6), "input_size": np.array([32, 32]), "mask_ratio": np.float32(0.5)}
    run = plsc_mae.train(images, tmp_path, config="demo/mae", max_train_step=np.array(1), **options)
    text = (run.folder / "config.yaml").read_text()
    assert "mask_ratio: 0.5" in text
    assert "batch_size: 6" in text


# ------------------------------------------------------------------------------------------------------ embed


def test_embed_returns_one_row_per_image(images, folder, pretrained, tmp_path):
    options = {"model": pretrained.checkpoint, "num_workers": 0, "device": "cpu"}
    memory, files = (plsc_mae.embed(data, **options) for data in (images, folder))
    assert isinstance(memory, np.ndarray)
    assert memory.shape == (18, 32)
    assert memory.dtype == np.float32
    np.testing.assert_array_equal(memory, files)
    assert memory.paths[17] == "data[17]"
    assert files.paths[0] == "a_dark/00.png"
    assert plsc_mae.embed(images[:2], layers=1, tokens="patch", **options).shape == (2, 16, 32)
    with pytest.raises(ConfigError, match=r"tokens.*cls"):
        plsc_mae.embed(images, tokens=("cls", "mean"), **options)
    with pytest.raises(DataError, match=r"data\[1\]"):
        plsc_mae.embed([images[0], images[1].astype("float32")], **options)
    pairs = list(zip(images, [0] * 9 + [1] * 9, strict=True))
    written = plsc_mae.embed(pairs, out=tmp_path / "features.npz", **options)
    with np.load(tmp_path / "features.npz") as file:
        np.testing.assert_array_equal(file["layer2/mean"], written)
        assert file["labels"].tolist() == [0] * 9 + [1] * 9


# ----------------------------------------------------------------------------------------------------- export


def test_export_returns_the_files_and_the_verdict(pretrained, tmp_path):
    done = plsc_mae.export(pretrained.checkpoint, "timm", tmp_path / "timm", verify=False)
    assert done.folder == tmp_path / "timm"
    assert (tmp_path / "timm" / "example.py") in done.files
    assert all(path.exists() for path in done.files)
    assert done.verdict
    with pytest.raises(ConfigError, match="onnx"):
        plsc_mae.export(pretrained.checkpoint, "onxx", tmp_path / "none")


# --------------------------------------------------------------------------------------------- around a call


class Broken(Colors):
    """An objective with a bug."""

    def forward(self, batch):
        raise ZeroDivisionError


@pytest.mark.long
def test_no_process_is_left_after_an_exception(images, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Worker, "__init__", lambda *args, init=Worker.__init__: (init(*args), started.append(1))[0])
    with pytest.raises(ZeroDivisionError) as error:  # holds the traceback, as a notebook does
        plsc_mae.train(images, tmp_path, task=Broken(), **{**RUN, "num_workers": 2})
    assert len(started) == 2
    assert not multiprocessing.active_children()
    assert error.traceback


class Interrupted(Colors):
    """An objective during which the user presses Ctrl-C."""

    def forward(self, batch):
        os.kill(os.getpid(), signal.SIGINT)
        return super().forward(batch)


@pytest.fixture
def ctrl_c():
    """Let SIGINT raise KeyboardInterrupt, also where a shell has started the tests in the background without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_saves_the_run(images, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"checkpoint-latest\.pd"):
        plsc_mae.train(images, tmp_path, task=Interrupted(), **RUN)
    assert (tmp_path / "checkpoint-latest.pd").exists()
    assert signal.getsignal(signal.SIGINT) is handler
    assert plsc_mae.train(images, tmp_path, task=Colors(), auto_resume=True, **RUN).metrics["step"] == 6


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_ends_the_call_but_not_a_session(images, tmp_path, monkeypatch):
    class Twice(Colors):
        def forward(self, batch):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().forward(batch)

    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(KeyboardInterrupt):
        plsc_mae.train(images, tmp_path, task=Twice(), **RUN)


def test_the_log_is_shown_during_a_call_only(images, tmp_path, capsys, monkeypatch):
    log = logging.getLogger("plsc_mae")
    monkeypatch.setattr(log, "handlers", [])
    before = log.level, log.propagate
    plsc_mae.train(images, tmp_path / "one", max_train_step=1, **MAE)
    assert "18 images" in capsys.readouterr().out
    assert log.handlers == []
    assert (log.level, log.propagate) == before
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    plsc_mae.train(images, tmp_path / "two", max_train_step=1, **MAE)
    assert "18 images" not in capsys.readouterr().out


def test_one_of_several_processes_is_refused(images, monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    with pytest.raises(UserError, match="plsc-mae launch"):
        plsc_mae.embed(images, model="x")


def test_the_packages_train_and_export_are_callable():
    assert list(inspect.signature(plsc_mae.export).parameters)[:3] == ["model", "target", "out"]
    assert list(inspect.signature(plsc_mae.train).parameters)[:2] == ["data", "out"]
    assert sys.modules["plsc_mae.train"] is plsc_mae.train
    assert plsc_mae.train.checkpoint.file.load is load


@pytest.mark.long
def test_the_verbs_load_on_first_use():
    program = (
        "import plsc_mae, sys; assert 'paddle' not in sys.modules; plsc_mae.train; assert 'paddle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.long
def test_the_examples_of_the_document_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 4
    assert len(blocks[0].strip().splitlines()) == 10
    narrow = "\n".join(blocks).replace('"depth": 2', '"depth": 1, "embed_dim": 48, "num_heads": 3')
    narrow = narrow.replace("epochs=2", "epochs=1").replace('"epochs": 2', '"epochs": 1')
    narrow = narrow.replace('"decoder_depth": 1', '"decoder_depth": 1, "decoder_embed_dim": 48, "decoder_num_heads": 3')
    narrow = narrow.replace("**tiny", "vis_freq=0, **tiny").replace(
        '"auto_resume": True, vis_freq=0, ', '"auto_resume": True, "vis_freq": 0, '
    )
    exec(compile(narrow, "docs/python.md", "exec"), {"__name__": "example"})
    assert "did you mean 'mask_ratio'" in capsys.readouterr().out
