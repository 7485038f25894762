"""A run that is asked to stop saves where it stands, at any moment, and goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from plsc_mae import console
from plsc_mae.cli import main
from plsc_mae.methods.classify import ClassifyTask
from plsc_mae.parallel import failure_detector
from plsc_mae.train import signals
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.file import load
from plsc_mae.train.observers.features import ImageEncoder
from plsc_mae.train.signals import StopRequest
from plsc_mae.train.trainer import Trainer

pytestmark = [pytest.mark.compat, pytest.mark.long]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Do not wait for the launcher's repeated signal in this process."""
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def after(calls: int, action, function):
    """The function, with something done before its call number `calls`."""
    count = [0]

    def wrapped(*arguments, **options):
        count[0] += 1
        if count[0] == calls:
            action()
        return function(*arguments, **options)

    return wrapped


def stopped(run, name: str, flags: str, code: int = 143) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert main([run.command, *run.arguments(name, flags)]) == code
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.once
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_any_moment_will_do(run, monkeypatch, capsys):
    """In the first update, within a log interval, at the end of an epoch and of the run, while saving."""
    flags = "--batch_size 8 --accum_iter 2 --print_freq 7 --epochs 2 --save_ckpt_freq 2 --online_probe"
    run.here("whole", flags)
    # Iterations from one stop to the next; an epoch has 15, and a group of two is finished.
    for function, calls in (("iterate", 1), ("iterate", 5), ("iterate", 7), ("save", 1), ("iterate", 15)):
        with monkeypatch.context() as patch:
            if function == "iterate":
                patch.setattr(Trainer, "iterate", after(calls, ask, Trainer.iterate))
                stopped(run, "cut", f"{flags} --auto_resume")
            else:
                patch.setattr(checkpoint_file, "save", after(calls, ask, checkpoint_file.save))
                stopped(run, "cut", f"{flags} --auto_resume --save_ckpt_steps 1")
        end, command = capsys.readouterr().err.splitlines()[-2:]
        assert end.startswith("plsc-mae: stopped by SIGTERM: epoch"), end
        assert command.endswith("--auto_resume") or "/cut/config.yaml" in command
    run.here("cut", f"{flags} --auto_resume")
    run.assert_same("whole", "cut")


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["finetune"], indirect=True)
def test_an_evaluation_that_is_left_off_is_made_again(classifier, monkeypatch):
    """Also where the run's last update is done and only the evaluation of it is not."""
    flags = "--batch_size 12 --epochs 2 --blr 0.1"
    classifier.here("whole", flags)
    scores = ClassifyTask.scores
    for calls, step in ((2, 10), (4 + 2, 20)):  # 20 images: two batches for the weights, two for their average
        with monkeypatch.context() as patch:
            patch.setattr(ClassifyTask, "scores", after(calls, ask, scores))
            stopped(classifier, "cut", f"{flags} --auto_resume")
        stored = load(classifier.folder / "cut/checkpoint-latest.pd").meta
        assert (stored["step"], stored["position"]["ended"]) == (step, True)
        lines = (classifier.folder / "cut/log.txt").read_text().splitlines()
        assert len(lines) == step // 10 - 1
    classifier.here("cut", f"{flags} --auto_resume")
    classifier.assert_same("whole", "cut", "checkpoint-best.pd", "checkpoint-1.pd")


@pytest.mark.once
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_look_at_the_features_is_made_again(run, monkeypatch):
    flags = "--batch_size 12 --epochs 1 --warmup_epochs 0 --knn_freq 1 --knn_k 3 --vis_freq 1"
    run.here("whole", flags)
    with monkeypatch.context() as patch:
        patch.setattr(ImageEncoder, "_encode", after(3, ask, ImageEncoder._encode))
        stopped(run, "cut", f"{flags} --auto_resume")
    run.here("cut", f"{flags} --auto_resume")
    run.assert_same("whole", "cut", "checkpoint-0.pd")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


def kill() -> None:
    raise Killed


@pytest.mark.once
@pytest.mark.parametrize("classifier", ["linprobe"], indirect=True)
def test_a_kill_between_two_files_leaves_none_out(classifier, monkeypatch):
    """Before each save of a run that keeps the numbered, the best and the latest, and after the last log line."""
    flags = "--batch_size 12 --epochs 2 --blr 0.1 --save_ckpt_freq 1"
    classifier.here("whole", flags)
    files = sorted(path.name for path in (classifier.folder / "whole").glob("*.pd"))
    assert "checkpoint-best.pd" in files
    save = checkpoint_file.save
    for calls in (1, 2, 3):
        name = f"cut{calls}"
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_file, "save", after(calls, kill, save))
            with pytest.raises(Killed):
                main(["linprobe", *classifier.arguments(name, flags)])
        classifier.here(name, f"{flags} --auto_resume")
        classifier.assert_same("whole", name, *files)


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_sigterm_to_a_process(run):
    flags = "--batch_size 12 --epochs 4"
    whole = run.here("whole", flags)
    process = run.start("cut", flags)
    wait_for_step(run, process, "cut", 3)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    end, command = output.splitlines()[-2:]
    assert end.startswith("plsc-mae: stopped by SIGTERM: epoch "), output
    assert command.endswith(f" pretrain --config {run.folder / 'cut/config.yaml'} --auto_resume"), output
    assert 3 <= len(run.records("cut")) < len(whole)
    run.here("cut", f"{flags} --auto_resume")
    run.assert_same("whole", "cut")


@pytest.mark.once
@pytest.mark.parametrize("launcher", ["", pytest.param("--nnodes 1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_sigterm_to_two_processes(run, launcher):
    """Send it to both processes, or (slow) to Paddle's launcher, which sends it to both."""
    flags = "--batch_size 6 --epochs 4 --accum_iter 2"
    started = run.start("cut", flags, processes=2, launcher=launcher)
    wait_for_step(run, started, "cut", 3)
    for process in [started] if launcher else started.processes:
        process.terminate()
    output, _ = started.communicate(timeout=60)
    assert launcher or started.returncode == 143, output
    stored = load(run.folder / "cut/checkpoint-latest.pd").meta
    assert stored["step"] < 20
    assert len(list(run.folder.glob("cut/*.pd"))) == 1
    for name in ("whole", "cut"):
        run.elsewhere(name, f"{flags} --auto_resume", processes=2)
    run.assert_same("whole", "cut")


def wait_for_step(run, process, name: str, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(record["step"] >= step for record in run.complete_records(name)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_interrupt_ends_at_once(fork_server):
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in backgrounds of shells
        "import time; from plsc_mae.parallel.world import World; from plsc_mae.train.signals import StopRequest\n"
        "with StopRequest(World('cpu')).listening():\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
    )
    process = fork_server.start(["-c", script])
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    while "SIGINT: the run will save and stop" not in process.stderr.readline():
        assert process.poll() is None
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT


class OneProcess:
    @staticmethod
    def largest(values):
        return values


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupt_before_training(processes, monkeypatch, capfd):
    """A process of the command line ends at once; one of several must inform the others."""
    monkeypatch.setattr(failure_detector, "_watch", None if processes == 1 else SimpleNamespace())
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, console.raise_interrupt)
        try:
            with signals.preparing_run():
                with contextlib.suppress(KeyboardInterrupt if processes == 1 else ValueError):
                    ask(signal.SIGINT)
                os._exit(1)
        except KeyboardInterrupt as interrupt:
            os._exit(2 if str(interrupt) == signals.BEFORE_TRAINING else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == {1: 130, 2: 2}[processes]
    message = f"plsc-mae: interrupted: {signals.BEFORE_TRAINING}\n"
    assert capfd.readouterr().err == (message if processes == 1 else "")


def test_an_interrupt_after_training_is_not_called_one_before():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=signals.BEFORE_TRAINING), signals.preparing_run():
            ask(signal.SIGINT)
        with signals.preparing_run():
            with StopRequest(SimpleNamespace()).listening():
                pass
            with pytest.raises(KeyboardInterrupt, match=r"^$"):
                ask(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_update_stops_all_processes_by_the_signals_that_it_exchanged():
    alone, one_of_two = (StopRequest(SimpleNamespace(processes=count)) for count in (1, 2))
    alone.signal = one_of_two.signal = signal.SIGTERM  # came after the exchange
    assert (alone.agreed_in_update(), one_of_two.agreed_in_update()) == (signal.SIGTERM, 0)
    one_of_two.exchanged = signal.SIGINT
    assert one_of_two.agreed_in_update() == signal.SIGINT


def test_only_the_main_thread_listens():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def listen():
        with StopRequest(OneProcess()).listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


def test_what_is_ignored_stays_so_and_sigterm_is_stronger():
    stop = StopRequest(OneProcess())
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.listening():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert stop.agreed() == 0
            ask()
            assert stop.agreed() == signal.SIGTERM
    finally:
        signal.signal(signal.SIGINT, before)
