"""A run that makes no progress ends in all processes, and names the process that is behind."""

from __future__ import annotations

import itertools
import select
import socket
import threading
import types
from pathlib import Path

import pytest

from plsc_mae.config import CONFIGS
from plsc_mae.data.demo import make_demo_data
from plsc_mae.errors import HANG_EXIT_CODE
from plsc_mae.parallel import activity, failure_detector, hang_detector
from plsc_mae.parallel.activity import Activity
from plsc_mae.parallel.hang_detector import FIRST_UPDATE, HangDetector, ProgressTable
from plsc_mae.parallel.peer import Peer

PROGRAM = Path(__file__).with_name("hanging_program.py")
TIMEOUT = 100.0
NETWORK = (
    "--model mae_vit_tiny_patch16 --input_size 32 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 4 "
    "--decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 4 --vis_freq 0"
)


def at(entered: int, phase: str = "data", *, waiting: bool = False, ticks: int = 0, update: int = 7) -> Activity:
    """Return the activity of a process that has updated before."""
    return Activity(phase, entered, waiting, ticks, update, has_updated=True)


@pytest.fixture
def table() -> ProgressTable:
    """Return the table of two processes at time 0."""
    return ProgressTable(TIMEOUT, {0: "process 0 on a", 1: "process 1 on b"}, 0.0)


def hear(table: ProgressTable, now: float, *reports: Activity) -> None:
    for process, report in enumerate(reports):
        table.hear(process, report, now)


# ------------------------------------------------------------------------------------------------ decisions


@pytest.mark.parametrize(
    ("reports", "culprit", "place"),
    [
        ((at(5, "backward"), at(4, "forward")), "process 1 on b", "'forward'"),
        ((at(3), at(4, "forward")), "process 0 on a", "'data'"),
        ((at(6, "save"), at(6, "save", waiting=True)), "process 0 on a", "'save'"),
        ((at(6, "evaluation", waiting=True), at(6, "evaluation", ticks=3)), "process 1 on b", "'evaluation'"),
    ],
)
def test_the_process_that_is_behind_is_named(table, reports, culprit, place):
    hear(table, 1, *reports)
    hear(table, TIMEOUT + 0.5, *reports)
    assert table.find_stalled(TIMEOUT + 0.5) is None
    end = table.find_stalled(TIMEOUT + 1)
    assert (end.code, end.hung_at) == (HANG_EXIT_CODE, 7)
    assert end.cause.startswith(culprit)
    assert all(text in end.cause for text in (place, "update 7", "100 s", "--hang_timeout"))


def test_nobody_is_named_if_nobody_is_behind(table):
    hear(table, 1, at(5, "backward"), at(5, "backward"))
    cause = table.find_stalled(TIMEOUT + 1).cause
    assert "process 0" not in cause
    assert "'backward'" in cause


def test_a_process_that_sends_no_report_is_named(table):
    hear(table, 1, at(5, "backward"), at(4, "data"))
    for now in range(2, 101):
        table.hear(0, at(5 + now, "backward"), now)
        assert table.find_silent(now) is None
    end = table.find_silent(TIMEOUT + 1)
    assert end.code == HANG_EXIT_CODE
    assert all(text in end.cause for text in ("process 1 on b", "'data'", "update 7", "--hang_timeout"))


def test_slow_work_of_one_process_is_no_hang(table):
    """Evaluation, or a checkpoint on a slow disk: the others wait much longer than the timeout."""
    for now in range(1, 1000, 50):
        hear(table, now, at(9, "save", ticks=now), at(9, "save", waiting=True))
        assert table.find_stalled(now) is None
        assert table.find_silent(now) is None


def test_the_first_update_may_take_longer(table):
    hear(table, 0, Activity("forward", 2), Activity("forward", 2))
    assert table.find_stalled(TIMEOUT + 1) is None
    cause = table.find_stalled(FIRST_UPDATE + 1).cause
    assert f"{FIRST_UPDATE:g} s" in cause
    assert "--hang_timeout" not in cause  # which is shorter


def test_a_process_that_has_left_is_not_watched_until_it_returns(table):
    hear(table, 1, at(5), at(4))
    table.forget(1)
    assert table.find_silent(90) is None
    assert "process 0" in table.find_stalled(TIMEOUT + 1).cause
    hear(table, 200, at(6), at(5))
    table.hear(0, at(7), 299)
    assert "process 1" in table.find_silent(200 + TIMEOUT).cause


def test_the_time_in_which_the_whole_run_was_suspended_does_not_count(table):
    hear(table, 1, at(5), at(4))
    table.restart(5000)
    assert table.find_silent(5001) is None
    assert table.find_stalled(5001) is None


def test_a_suspect_is_named_only_after_a_while(table):
    hear(table, 1, at(5, "backward"), at(4, "data"))
    assert table.describe_suspect(2) == ""
    hear(table, 31, at(5, "backward"), at(4, "data"))
    assert all(text in table.describe_suspect(31) for text in ("process 1 on b", "30 s", "'data'"))


def test_a_process_without_any_report_is_a_suspect(table):
    for now in (1, 31):
        table.hear(0, at(5, "log"), now)
    assert "process 1 on b" in table.describe_suspect(31)


def test_a_suspect_is_logged_once_until_it_moves(table, messages, tmp_path):
    detector = HangDetector(TIMEOUT, tmp_path, None)
    detector.table = table
    behind = at(4, "data")
    for now in (1, 31, 41):
        hear(table, now, at(5, "backward"), behind)
        detector._warn(now)
    assert len(messages) == 1
    assert all(text in messages[0] for text in ("process 1 on b", "'data'", "--hang_timeout"))
    hear(table, 42, at(7, "backward"), at(6, "data"))
    detector._warn(42)
    hear(table, 72, at(7, "backward"), at(6, "data"))
    detector._warn(72)
    assert len(messages) == 2


def test_the_next_suspect_is_logged_without_a_pause_between_them(table, messages, tmp_path):
    detector = HangDetector(TIMEOUT, tmp_path, None)
    detector.table = table
    for now in (1, 31):
        hear(table, now, at(5, "backward"), at(4, "data"))
        detector._warn(now)
    for now in (32, 33):  # process 1 has overtaken process 0
        hear(table, now, at(5, "backward"), at(7, "data"))
        detector._warn(now)
    assert ["process 1 on b" in message for message in messages] == [True, False]
    assert "process 0 on a" in messages[1]


def test_a_stopped_process_blocks_no_detector_and_half_a_report_is_none(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    for end, option in ((ours, socket.SO_SNDBUF), (theirs, socket.SO_RCVBUF)):
        end.setsockopt(socket.SOL_SOCKET, option, 4096)
    with ours, theirs:
        watch = types.SimpleNamespace(process=0, reports={1: Peer(ours, "process 1 on b")})
        detector = HangDetector(TIMEOUT, tmp_path, watch)
        for number in range(2000):  # the other end reads none of the reports
            detector._exchange(number)
        for sent, heard in ((b'{"phase": "da{"phase": "save"}', None), (b'{"phase": "save"}', Activity("save"))):
            theirs.sendall(sent + b"\n")
            select.select([ours], [], [], 10)
            detector._exchange(0)
            assert detector.table.observed[1].activity == heard


# ------------------------------------------------------------------------------------------------ one process


@pytest.fixture
def ended(monkeypatch):
    """Return an event that replaces the end of this process, with the reason as its attribute."""
    event = threading.Event()

    def end(reason, folder) -> None:
        event.reason = reason
        event.set()

    monkeypatch.setattr(failure_detector, "end_hung", end)
    return event


def test_a_single_process_watches_itself(ended, tmp_path):
    with hang_detector.watching(0.2, tmp_path, 3):
        activity.enter("data")
        activity.finish_update(4)
        assert ended.wait(10)
    assert all(text in ended.reason.cause for text in ("process 0 on", "pid", "'data'", "update 4"))


def test_progress_within_a_phase_is_no_hang(ended, tmp_path):
    with hang_detector.watching(0.5, tmp_path):
        activity.finish_update(1)
        for _ in range(8):
            activity.tick()
            assert not ended.wait(0.08)


def test_zero_watches_nothing(tmp_path):
    before = threading.active_count()
    with hang_detector.watching(0, tmp_path):
        assert threading.active_count() == before


def test_the_detector_stops_with_the_training(tmp_path):
    before = threading.active_count()
    with hang_detector.watching(50, tmp_path):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_the_interval_grows_with_the_timeout_up_to_a_limit(tmp_path):
    assert HangDetector(3.0, tmp_path, None).interval == pytest.approx(0.15)
    assert HangDetector(1800.0, tmp_path, None).interval == 1


def test_stacks_of_a_single_process_are_in_its_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(failure_detector, "leave", lambda code: codes.append(code))
    codes: list[int] = []
    failure_detector.end_hung(failure_detector.End("it hangs", HANG_EXIT_CODE, hung_at=12), tmp_path)
    assert codes == [HANG_EXIT_CODE]
    assert Path(__file__).name in (tmp_path / "hang-12-rank0.txt").read_text()


def test_fetching_enters_a_phase_for_every_item():
    before = activity.current.entered
    for count, _ in zip(itertools.count(1), activity.fetching(iter("abc")), strict=False):
        assert activity.current.phase == "data"
        assert activity.current.entered == before + count


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.method}-{config.phase}")
def test_every_training_command_has_the_option(config):
    assert config.hang_timeout == 1800


# ---------------------------------------------------------------------------------------------- several processes

SLOW = pytest.mark.slow
PHASES = ("data", "forward", "backward", "collective", "optimizer", "log", "evaluation", "save")
RUNS = [
    pytest.param(0, "data", "stop", marks=pytest.mark.long),
    pytest.param(1, "forward", "sleep", marks=pytest.mark.long),
    *(
        pytest.param(process, phase, deed, marks=SLOW)
        for process in (0, 1)
        for phase in PHASES
        for deed in ("stop", "sleep")
        if (process, phase, deed) not in ((0, "data", "stop"), (1, "forward", "sleep"))
    ),
]


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawings") / "images"
    make_demo_data(folder, image_size=32, train_per_class=2, val_per_class=1)
    return folder


@pytest.mark.parametrize(("process", "phase", "deed"), RUNS)
def test_a_run_of_two_processes_ends(fork_server, drawings, tmp_path, process, phase, deed):
    flags = f"{NETWORK} --epochs 1000 --batch_size 2 --print_freq 1 --num_workers 0 --save_ckpt_steps 1 --knn_freq 1 "
    flags += f"--knn_k 3 --hang_timeout 3 --data_path {drawings} --output_dir {tmp_path}/run"
    words = [PROGRAM, process, phase, deed, "pretrain", *flags.split()]
    launch = fork_server.launch(words, 2, tmp_path / "logs")
    launch.communicate(60)
    assert [started.returncode for started in launch.processes] == [HANG_EXIT_CODE] * 2
    for number, log in enumerate(launch.logs):
        text = log.read_text()
        line = next(line for line in text.splitlines() if "plsc-mae: error" in line)
        assert f"process {process} on " in line
        assert f"(pid {launch.processes[process].pid})" in line
        assert f"'{phase}'" in line or deed == "stop"  # the last report of a stopped process may be older
        assert "--hang_timeout" in line
        (stacks,) = (tmp_path / "run").glob(f"hang-*-rank{number}.txt")
        assert "trainer.py" in stacks.read_text()
        assert "trainer.py" in text
