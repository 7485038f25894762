"""`plsc-mae launch`: the command line and environment of Paddle's launcher. test_doctor_processes.py starts it."""

from __future__ import annotations

import sys

import pytest

from plsc_mae import runtime
from plsc_mae.cli import main
from plsc_mae.commands import launch
from plsc_mae.config.launch import Launch, LaunchConfig, split_launch

MODEL = "pretrain --model mae_vit_tiny_patch16 --data_path DIR"


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """Run `plsc-mae launch ...` without a GPU up to the start of Paddle's launcher; return its words and variables."""
    calls = []
    monkeypatch.setattr(launch.os, "execve", lambda *call: calls.append(call))
    monkeypatch.setattr(runtime, "has_gpu", lambda: False)
    monkeypatch.chdir(tmp_path)  # where the folder log/ is created

    def run(line: str) -> tuple[list[str], dict[str, str]]:
        calls.clear()
        assert main(["launch", *line.split()]) == 0
        ((_, words, environ),) = calls
        assert words[:3] == [sys.executable, "-m", "paddle.distributed.launch"]
        return words[3:], environ

    return run


@pytest.mark.parametrize("flags", ["--nproc_per_node 2", "--processes 2", "--processes=2", "--nproc-per-node 2"])
def test_processes_of_a_command(executed, monkeypatch, flags):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words, environ = executed(f"{flags} {MODEL} --mask-ratio 0.5")
    own, _, started = " ".join(words).partition(f"{sys.executable} -m plsc_mae ")
    assert own == "--nproc_per_node 2 --log_dir log --log_level WARNING "
    assert started == f"{MODEL} --mask-ratio 0.5"
    assert "CUDA_VISIBLE_DEVICES" not in environ
    assert environ["PADDLE_DISTRI_BACKEND"] == "gloo"


def test_processes_divide_the_cores_themselves(executed, monkeypatch):
    """What the import of plsc_mae has added for one process is not passed on; what the user has set is."""
    for name in runtime.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime, "_added", {})
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delitem(sys.modules, "paddle", raising=False)
    assert "FLAGS_use_stride_kernel" in runtime.apply_cpu_settings()
    _, environ = executed(f"--processes 2 {MODEL}")
    assert "FLAGS_use_stride_kernel" not in environ
    assert environ["MKL_NUM_THREADS"] == "3"


def test_one_process_per_core_without_a_number(executed, monkeypatch):
    monkeypatch.setattr(runtime, "available_cores", lambda: 7)
    assert "--nproc_per_node 7" in " ".join(executed(MODEL)[0])


def test_options_of_several_machines(executed):
    line = "--nnodes 4 --master 10.0.0.1:29761 --rank 0 --log_dir logs --processes 1"
    words = " ".join(executed(f"{line} {MODEL}")[0])
    assert "--nnodes 4 --master 10.0.0.1:29761 --rank 0 --log_dir logs" in words


def test_gpus_are_left_to_the_launcher():
    words = launch.launcher_words(Launch(LaunchConfig(devices="0,1"), ["knn"]), on_gpu=True)
    assert "--devices 0,1 --log_dir" in " ".join(words)
    assert "--nproc_per_node" not in words
    kept = launch.launcher_environment({"CUDA_VISIBLE_DEVICES": "0,1"}, on_gpu=True)
    assert kept["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "PADDLE_DISTRI_BACKEND" not in kept


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", ["COMMAND", "pretrain"]),
        ("--processes 2", ["COMMAND"]),
        ("pretrian", ["pretrian", "'pretrain'"]),
        ("plot DIR", ["plot", "one process", "knn"]),
        (f"{MODEL} --mask_ratoi 0.5", ["--mask_ratoi", "mask_ratio"]),
        (f"--processes 0 {MODEL}", ["--processes", "0"]),
        (f"--procs 2 {MODEL}", ["--procs"]),
        (f"--devices 0,1 {MODEL}", ["--devices 0,1", "--nproc_per_node 2"]),
        (f"--nnodes 2 {MODEL}", ["--nnodes 2", "--master"]),
        (f"--nnodes 2 --master node0:29761 {MODEL}", ["node0:29761", "IP:PORT"]),
    ],
)
def test_mistakes_are_reported_before_a_process_starts(monkeypatch, capsys, line, named):
    monkeypatch.setattr(launch.os, "execve", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(runtime, "has_gpu", lambda: False)
    assert main(["launch", *line.split()]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert all(name in message for name in named), message


def test_the_help_after_the_command_is_the_command_s(capsys):
    for line, title in (("--help", "plsc-mae launch"), ("--processes 2 knn --help", "plsc-mae knn")):
        with pytest.raises(SystemExit):
            main(["launch", *line.split()])
        assert f"usage: {title}" in capsys.readouterr().out


def test_a_value_is_never_taken_for_the_command():
    assert split_launch(["--log_dir", "pretrain", "--rank=1", "knn", "--k", "1"]) == (
        ["--log_dir", "pretrain", "--rank=1"],
        ["knn", "--k", "1"],
    )


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_log_dir_that_cannot_be_a_folder_is_refused_before_the_launcher_starts(executed, tmp_path, capsys, place):
    (tmp_path / "file").write_text("mine")
    assert main(["launch", "--log_dir", place, "--processes", "2", *MODEL.split()]) == 2
    assert f"--log_dir {place}: " in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
