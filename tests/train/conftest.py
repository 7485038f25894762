"""Fixtures for real runs on a folder of JPEG images, with one tiny command line per method."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from paddle import Tensor
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.data.demo import make_demo_data
from plsc_mae.models.dalle import DalleEncoder
from plsc_mae.train.checkpoint.file import find_newest, load

ROOT = Path(__file__).parents[2]
# The smallest network of each method; drop path makes results depend on the random state of the device.
TINY_RUNS = {
    "mae": "--model mae_vit_tiny_patch16 --input_size 32 --patch_size 8 --embed_dim 32 --depth 2 --num_heads 4 "
    "--decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 4 --drop_path 0.2 --norm_pix_loss",
    "cae": "--model cae_tiny_patch16_224_8k_vocab --input_size 32 --patch_size 8 --embed_dim 32 --depth 2 "
    "--num_heads 4 --decoder_embed_dim 24 --regressor_depth 1 --num_decoder_self_attention 1 --decoder_num_heads 4 "
    "--drop_path 0.2 --num_mask_patches 8 --min_mask_patches_per_block 2 --discrete_vae_type random_init "
    "--discrete_vae_hidden 8 --decoder_num_classes 32 --no_auto_resume --weight_decay_end 0.1",
    "simmim": "--model pretrain_simmim_tiny_patch16_224 --input_size 32 --patch_size 8 --embed_dim 32 --depth 2 "
    "--num_heads 4 --mask_patch_size 16 --drop_path 0.2 --no_auto_resume",
}
# Classifiers start from the small MAE; all random augmentations and layers are on.
_ENCODER = "--input_size 32 --patch_size 8 --embed_dim 32 --depth 2 --num_heads 4"
TINY_CLASSIFIERS = {
    "finetune": f"--model vit_base_patch16 {_ENCODER} --drop_path 0.2 --mixup 0.8 --cutmix 1.0 --model_ema "
    "--model_ema_decay 0.9 --layer_decay 0.75",
    "linprobe": f"--model vit_base_patch16 {_ENCODER}",
}
COMMON = "--epochs 4 --warmup_epochs 1 --lr none --blr 1e-2 --print_freq 1 --num_workers 0 --save_ckpt_freq 100"
MEASURED = {"images_per_second", "data_share", "memory_gib", "time", "run"}  # these differ from run to run


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Make 120 training images in 10 classes."""
    root = tmp_path_factory.mktemp("images") / "demo"
    make_demo_data(root, image_size=32, train_per_class=12, val_per_class=2)
    return root


@pytest.fixture(scope="session")
def shades(tmp_path_factory) -> Path:
    """Make noise images of a dark and a bright class, for training and validation, 2 per class in the wrong folder.

    The classes are far apart, so rounding does not change a predicted class and accuracies can be compared exactly.
    """
    root, rng = tmp_path_factory.mktemp("images") / "shades", np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 10)):
        for name, other, lowest in (("dark", "bright", 0), ("bright", "dark", 192)):
            for i in range(count):
                folder = root / split / (other if i < 2 else name)
                folder.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(lowest, lowest + 64, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}{i}.png")
    return root


@pytest.fixture(scope="session")
def pretrained(images, tmp_path_factory) -> Path:
    """Pre-train the small MAE for 3 updates and return its checkpoint."""
    folder = tmp_path_factory.mktemp("pretrained")
    flags = f"{TINY_RUNS['mae']} {COMMON} --vis_freq 0 --batch_size 12 --max_train_step 3"
    assert main(["pretrain", *f"{flags} --data_path {images} --output_dir {folder}".split()]) == 0
    return folder / "checkpoint-latest.pd"


@pytest.fixture(params=sorted(TINY_CLASSIFIERS))
def classifier(request, images, pretrained, fork_server, tmp_path):
    """Return runs of one kind of classifier training on the encoder of the small MAE."""
    flags = f"{TINY_CLASSIFIERS[request.param]} --finetune {pretrained}"
    return Runs(request.param, flags, images, tmp_path, fork_server)


@pytest.fixture(params=sorted(TINY_RUNS))
def run(request, images, fork_server, tmp_path):
    """Return pre-training runs of one method; a test with this fixture runs once per method."""
    return Runs("pretrain", f"{TINY_RUNS[request.param]} --vis_freq 0", images, tmp_path, fork_server)


@pytest.fixture(scope="session")
def new_runs(pretrained, fork_server):
    """Return a function that makes runs of a method's pre-training or of a kind of classifier training."""

    def make(kind: str, flags: str, images: Path, folder: Path) -> Runs:
        if kind in TINY_CLASSIFIERS:
            flags = f"{TINY_CLASSIFIERS[kind]} --finetune {pretrained} {flags}"
            return Runs(kind, flags, images, folder, fork_server)
        return Runs("pretrain", f"{TINY_RUNS[kind]} --vis_freq 0 {flags}", images, folder, fork_server)

    return make


@pytest.fixture(scope="session")
def known_tokens() -> dict[bytes, Tensor]:
    """Return the tokens of images by a digest of the image and of the tokenizer's weights."""
    return {}


@pytest.fixture(autouse=True)
def remember_tokens(monkeypatch, known_tokens):
    """Compute the tokens of an image once: runs with one seed see the same images, and CAE's tests take half the time.

    Processes that a run starts compute their tokens themselves.
    """
    compute = DalleEncoder._most_likely
    digests: weakref.WeakKeyDictionary[DalleEncoder, bytes] = weakref.WeakKeyDictionary()

    def remembering(encoder: DalleEncoder, images: Tensor) -> Tensor:
        if encoder not in digests:
            values = (value.numpy().tobytes() for value in encoder.state_dict().values())
            digests[encoder] = hashlib.sha256(b"".join(values)).digest()
        key = hashlib.sha256(digests[encoder] + images.numpy().tobytes()).digest()
        if key not in known_tokens:
            known_tokens[key] = compute(encoder, images)
        return known_tokens[key].clone()

    monkeypatch.setattr(DalleEncoder, "_most_likely", remembering)


class Runs:
    """Training runs of one command below one folder, with access to their logs and checkpoints."""

    def __init__(self, command: str, flags: str, images: Path, folder: Path, fork_server) -> None:
        self.command, self.flags, self.images, self.folder = command, flags, images, folder
        self.fork_server = fork_server

    def arguments(self, name: str, flags: str) -> list[str]:
        """Return the command line of the run `name`, whose output folder has this name."""
        sources = f"--data_path {self.images} --output_dir {self.folder / name}"
        return f"{self.flags} {COMMON} {sources} {flags}".split()

    def here(self, name: str, flags: str = "") -> list[dict]:
        """Run in this process and return its log records."""
        assert main([self.command, *self.arguments(name, flags)]) == 0
        return self.records(name)

    def start(
        self,
        name: str,
        flags: str = "",
        processes: int = 1,
        workers: str = "workers",
        launcher: str = "",
        **environ: str,
    ):
        """Start a run in other processes, which are forked unless a launcher or PYTHONPATH is requested.

        Args:
            name: name of the run.
            flags: further options of the command.
            processes: number of processes.
            workers: suffix of the folder NAME-`workers` for the logs of several processes.
            launcher: options of Paddle's launcher, which then starts the processes.
            environ: additional environment variables.
        """
        program = [str(ROOT / f"main_{self.command}.py"), *self.arguments(name, flags)]
        inherited = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        env = {**inherited, "PYTHONPATH": str(ROOT), **environ}
        logs = self.folder / f"{name}-{workers}"
        if not launcher and "PYTHONPATH" not in environ:
            if processes > 1:
                return self.fork_server.launch(program, processes, logs, env=env)
            return self.fork_server.start(program, env=env, stderr=subprocess.STDOUT)
        command = [sys.executable]
        if processes > 1 or launcher:
            command += ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), *launcher.split()]
            command += ["--log_dir", str(logs)]
        return subprocess.Popen(
            [*command, *program], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def elsewhere(self, name: str, flags: str = "", processes: int = 1, **options: str) -> list[dict]:
        """Run in other processes until the end and return the log records."""
        process = self.start(name, flags, processes, **options)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return self.records(name)

    def records(self, name: str) -> list[dict]:
        """Return the records of train.jsonl."""
        path = self.folder / name / "train.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def kill_at(self, process, name: str, step: int) -> None:
        """Send SIGKILL to a run when its log has reached `step`."""
        deadline = time.monotonic() + 120
        while not any(record["step"] >= step for record in self.complete_records(name)):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()

    def complete_records(self, name: str) -> list[dict]:
        """Return the records of train.jsonl that are written completely."""
        path = self.folder / name / "train.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def assert_same(self, one: str, two: str, *files: str) -> None:
        """Assert equal bits in the newest checkpoint and in `files`, and equal logs except for measured values."""
        folders = [self.folder / name for name in (one, two)]
        pairs = [[find_newest(str(folder), "") for folder in folders], *([x / file for x in folders] for file in files)]
        for ours, theirs in ([load(path) for path in pair] for pair in pairs):
            assert set(ours.tensors) == set(theirs.tensors)
            for key, value in ours.tensors.items():
                np.testing.assert_array_equal(value, theirs.tensors[key], key)
            for key in ("epoch", "step", "position", "meters", "window", "best", "best_step"):
                assert ours.meta[key] == theirs.meta[key], key
        for name in ("train.jsonl", "log.txt"):
            ours, theirs = (
                [
                    {key: value for key, value in json.loads(line).items() if key not in MEASURED}
                    for line in (folder / name).read_text().splitlines()
                ]
                for folder in folders
            )
            assert ours == theirs, name
        curves = [_curves(folder) for folder in folders]
        assert curves[0] == curves[1]
        assert len(curves[0]) > 5


def _curves(folder: Path) -> dict[str, list]:
    """Return the (step, value) pairs of all VisualDL curves, pictures and histograms, by tag."""
    reader = pytest.importorskip("visualdl").LogReader(file_path=str(folder / "vdlrecords.run.log"))
    values = {
        "scalar": lambda entry: entry.value,
        "image": lambda entry: entry.image.encoded_image_string,
        "histogram": lambda entry: list(entry.histogram.hist),
    }
    return {
        tag: [(entry.id, value(entry)) for entry in reader.get_data(kind, tag)]
        for kind, value in values.items()
        for tag in reader.get_tags().get(kind, ())
        if tag.rpartition("/")[2] not in MEASURED
    }
