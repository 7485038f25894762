"""When one process of a run dies, all others exit soon, whatever they are doing, and report the first cause."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from plsc_mae.data.demo import make_demo_data
from plsc_mae.errors import HANG_EXIT_CODE

pytestmark = [pytest.mark.compat, pytest.mark.long, pytest.mark.once]

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("peer_program.py")
KILLED = "killed"  # in the message about a process that ended without sending a reason


@pytest.fixture
def run(fork_server, tmp_path):
    """Return a function that runs processes with the given deeds and returns (exit code, stderr, seconds) of each."""

    def start(*deeds: str) -> list[tuple[int, str, float]]:
        started = time.monotonic()
        errors = [tmp_path / f"error{number}" for number in range(len(deeds))]
        processes = []
        for number, deed in enumerate(deeds):
            with open(errors[number], "w") as error:
                words = [PROGRAM, tmp_path, 0, number, len(deeds), *deed.split()]
                processes.append(fork_server.start(words, stdout=None, stderr=error))
        codes = [process.wait(timeout=100) for process in processes]
        seconds = time.monotonic() - started
        return [(code, error.read_text(), seconds) for code, error in zip(codes, errors, strict=True)]

    return start


@pytest.mark.parametrize(
    ("deeds", "culprit"),
    [
        (("sleep", "wait die", "sleep"), 1),
        (("wait die", "sleep", "sleep"), 0),
        (("sleep", "fork wait die"), 1),  # a child of the dead process, as data workers are, lives on
        (("fork wait die", "sleep"), 0),
        (("sleep", "done", "wait die"), 2),
    ],
)
def test_a_killed_process_ends_the_others(run, deeds, culprit):
    for number, (code, error, seconds) in enumerate(run(*deeds)):
        assert seconds < 60  # nobody sleeps to the end
        if number == culprit:
            assert code == -9
        elif "done" not in deeds[number]:
            assert code == 1
            assert f"process {culprit} on " in error
            assert KILLED in error.splitlines()[-1]


def test_a_mistake_of_one_process_is_told_by_all_with_its_exit_code(run):
    first, second, third = run("sleep", "wait mistake", "sleep")
    assert [code for code, _, _ in (first, second, third)] == [2, 2, 2]
    for _, error, seconds in (first, third):
        assert seconds < 60
        assert "process 1 on " in error
        assert "no such picture" in error


@pytest.mark.parametrize("deeds", [("stop sleep", "wait wait mistake"), ("sleep", "stop sleep", "wait wait mistake")])
def test_a_stopped_process_ends_with_the_others(run, deeds):
    assert all(code == 2 and seconds < 60 for code, _, seconds in run(*deeds))


@pytest.mark.parametrize("deed", ["bug", "raise"])
def test_a_bug_keeps_its_traceback_and_ends_the_others(run, deed):
    first, second = run("sleep", f"wait {deed}")
    assert (first[0], second[0]) == (1, 1)
    assert "process 1 on " in first[1]
    assert "KeyError: 'bug'" in first[1]
    assert "KeyError: 'bug'" in second[1]


def test_an_exception_that_follows_from_a_death_is_not_taken_for_the_cause(run):
    first, _ = run("wait wait bug", "wait die")
    assert first[0] == 1
    assert "Traceback" not in first[1]
    assert KILLED in first[1].splitlines()[-1]


@pytest.mark.parametrize("deeds", [("wait wait", "done wait", "late"), ("done", "wait wait", "wait"), ("", "", "")])
def test_an_end_without_fault_ends_nobody(run, deeds):
    assert [code for code, _, _ in run(*deeds)] == [0, 0, 0]


def test_strangers_are_not_let_in(run):
    assert [(code, error) for code, error, _ in run("wait wait wait wait", "refuse", "late")] == [(0, "")] * 3


# ----------------------------------------------------------------------------------------------- training runs

TRAINING = (
    "--model mae_vit_tiny_patch16 --input_size 32 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 4 "
    "--decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 4 --vis_freq 0 --epochs 4000 --print_freq 1 "
    "--num_workers 1"
)


def children_of(pid: int) -> set[int]:
    """Return the ids of the children of a process."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_training_run_of_two_processes_ends_when_one_is_killed(fork_server, tmp_path, victim):
    """The other one exits with the cause, and no data worker and no shared memory is left."""
    make_demo_data(tmp_path / "images", image_size=32, train_per_class=4, val_per_class=1)
    shared_memory = set(os.listdir("/dev/shm"))
    flags = f"{TRAINING} --batch_size 4 --no_save_ckpt --data_path {tmp_path}/images --output_dir {tmp_path}/run"
    launch = fork_server.launch([ROOT / "main_pretrain.py", *flags.split()], 2, tmp_path / "logs")
    wait_for(lambda: "epoch 1 [" in launch.logs[0].read_text(), launch)
    workers = children_of(launch.processes[0].pid) | children_of(launch.processes[1].pid)
    assert len(workers) >= 2
    launch.processes[victim].kill()
    assert launch.processes[1 - victim].wait(30) in (1, -signal.SIGABRT)  # where gloo's timeout comes first
    told = launch.logs[1 - victim].read_text()
    assert f"process {victim} on " in told
    assert KILLED in told
    left = set(os.listdir("/dev/shm")) - shared_memory
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), launch)
    wait_for(lambda: not left & set(os.listdir("/dev/shm")), launch)


def wait_for(condition, launch, limit: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, [log.read_text() for log in launch.logs]
        time.sleep(0.05)


def environ_of(pid: int) -> dict[str, str]:
    """Environment of a process; empty when it has gone."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


class Nodes:
    """Launchers that stand for the nodes of a run, found again by a mark in their environment."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        inherited = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        environ = {**inherited, "PYTHONPATH": str(ROOT), "PEERS_TEST": self.mark}
        launch = [sys.executable, "-m", "paddle.distributed.launch", "--nnodes", "2", "--nproc_per_node", "1"]
        launch += ["--master", f"127.0.0.1:{port}"]
        self.launchers = [
            subprocess.Popen(
                [*launch, "--rank", str(rank), "--log_dir", str(folder / f"node{rank}"), *command],
                env=environ,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for rank in range(2)
        ]

    def alive(self) -> dict[int, str]:
        """Rank of every process of the run by its id; launchers have none."""
        found = {int(entry.name): environ_of(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}
        return {
            pid: env.get("PADDLE_TRAINER_ID", "") for pid, env in found.items() if env.get("PEERS_TEST") == self.mark
        }

    def trainer(self, rank: int) -> int:
        """The training process; its data workers came later."""
        return min(pid for pid, known in self.alive().items() if known == str(rank))

    def log(self, rank: int) -> str:
        """What the training process has printed."""
        path = self.folder / f"node{rank}/workerlog.0"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, condition, limit: float = 60) -> float:
        """Wait until something is so; returns the seconds it took."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < limit, self.log(0) + self.log(1)
            time.sleep(0.05)
        return time.monotonic() - started

    def end(self) -> None:
        """Leave nothing behind, whatever a test found."""
        for pid in self.alive():
            os.kill(pid, 9)
        for launcher in self.launchers:
            launcher.wait()


@pytest.fixture
def start(tmp_path):
    """Start two launchers."""
    started: list[Nodes] = []

    def launch(*command: str) -> Nodes:
        started.append(Nodes(tmp_path, list(command)))
        return started[-1]

    yield launch
    for nodes in started:
        nodes.end()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_training_run_on_two_nodes_ends_when_a_process_is_killed(start, tmp_path, victim):
    make_demo_data(tmp_path / "images", image_size=32, train_per_class=4, val_per_class=1)
    shared_memory = set(os.listdir("/dev/shm"))
    flags = f"{TRAINING} --batch_size 4 --no_save_ckpt --data_path {tmp_path}/images --output_dir {tmp_path}/run"
    nodes = start(f"{ROOT}/main_pretrain.py", *flags.split())
    nodes.wait_for(lambda: "epoch 1 [" in nodes.log(0))
    other = nodes.launchers[1 - victim]
    os.kill(nodes.trainer(victim), 9)
    assert nodes.wait_for(lambda: other.poll() is not None) < 30
    assert other.returncode not in (0, None)
    assert f"process {victim} on " in nodes.log(1 - victim)
    assert KILLED in nodes.log(1 - victim)
    left = set(os.listdir("/dev/shm")) - shared_memory
    nodes.wait_for(lambda: not nodes.alive())
    nodes.wait_for(lambda: not left & set(os.listdir("/dev/shm")))


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["data", "forward", "save", "evaluation"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_training_run_on_two_nodes_ends_when_a_process_is_stopped(start, tmp_path, victim, phase):
    """SIGSTOP: the process lives and so does its connection, but it cannot answer; no process is left behind."""
    make_demo_data(tmp_path / "images", image_size=32, train_per_class=2, val_per_class=1)
    flags = f"{TRAINING} --batch_size 2 --save_ckpt_steps 1 --knn_freq 1 --knn_k 3 --hang_timeout 4 "
    flags += f"--data_path {tmp_path}/images --output_dir {tmp_path}/run"
    program = Path(__file__).with_name("hanging_program.py")
    nodes = start(str(program), str(victim), phase, "stop", "pretrain", *flags.split())
    nodes.wait_for(lambda: all(launcher.poll() is not None for launcher in nodes.launchers), limit=180)
    assert [launcher.returncode for launcher in nodes.launchers] == [HANG_EXIT_CODE] * 2
    nodes.wait_for(lambda: not nodes.alive())
    for rank in range(2):
        assert f"process {victim} on " in nodes.log(rank)
        assert len(list((tmp_path / "run").glob(f"hang-*-rank{rank}.txt"))) == 1


def test_waiting_at_a_barrier_ends_too(fork_server, tmp_path):
    """The launcher's store, where the processes meet, would wait for ever."""
    program = tmp_path / "waits.py"
    program.write_text(
        "import os, time\n"
        "from plsc_mae.parallel.world import World\n"
        "world = World('cpu')\n"
        "print('waiting', flush=True)\n"
        "world.barrier() if world.is_main else time.sleep(100)\n"
    )
    launch = fork_server.launch([program], 2, tmp_path / "logs")
    wait_for(lambda: all("waiting" in log.read_text() for log in launch.logs), launch)
    launch.processes[1].kill()
    assert launch.processes[0].wait(30) == 1
    assert KILLED in launch.logs[0].read_text()
