"""The command line as a user meets it: help, exit codes, and one sentence for every mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import plsc_mae
from plsc_mae.__main__ import main as main_of_process
from plsc_mae.cli import COMMANDS, main
from plsc_mae.commands import doctor
from plsc_mae.data.demo import make_demo_data
from plsc_mae.parallel import failure_detector

pytestmark = pytest.mark.compat

ROOT = Path(__file__).parents[1]
TINY = (
    "pretrain --model mae_vit_tiny_patch16 --input_size 32 --patch_size 8 --embed_dim 32 --depth 1 --num_heads 2 "
    "--decoder_embed_dim 16 --decoder_depth 1 --decoder_num_heads 2 --batch_size 12 --epochs 2 --warmup_epochs 1 "
    "--lr 1e-3 --save_ckpt_freq 1 --num_workers 0 --vis_freq 0 --print_freq 1"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with `images` and `run`, the output folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    make_demo_data(folder / "images", image_size=32, train_per_class=3, val_per_class=1)
    assert main(f"{TINY} --data_path {folder}/images --output_dir {folder}/run".split()) == 0
    return folder


@pytest.fixture
def place(finished, tmp_path) -> Path:
    """A copy of `finished` with things beside it that a user may name by mistake."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not what you think\n")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/picture.jpg").write_text("not a picture\n")
    (tmp_path / "typo.yaml").write_text("wieght_decay: 0.1\n")
    return tmp_path


def tell(captured: str) -> str:
    """The error sentence, which must be all there is on stderr besides warnings of ours."""
    *warnings, last = captured.splitlines()
    assert all(line.startswith("warning: ") for line in warnings), captured
    assert last.startswith("plsc-mae: error: ")
    return last.removeprefix("plsc-mae: error: ")


def checkpoints(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*checkpoint*")}


RUN = f"{TINY} --data_path PLACE/images --output_dir PLACE/new"
OLD = f"{TINY} --data_path PLACE/images --output_dir PLACE/run"
MISTAKES = {
    "unknown command": ("pretrian", "unknown command 'pretrian'; did you mean 'pretrain'?"),
    "unknown flag": (f"{RUN} --wieght_decay 0.1", "unknown flag '--wieght_decay'; did you mean '--weight_decay'?"),
    "unknown key": (f"{RUN} -c PLACE/typo.yaml", "wieght_decay'; did you mean 'weight_decay'?"),
    "no config file": (f"{RUN} -c PLACE/none.yaml", "cannot read the config file PLACE/none.yaml"),
    "impossible value": (f"{RUN} --mask_ratio 1.5", "--mask_ratio must lie in (0, 1), got 1.5"),
    "unknown model": (f"{RUN} --model mae_vit_bas_patch16", "did you mean mae_vit_base_patch16"),
    "nothing to train": (f"{RUN} --start_epoch 400 --epochs 400", "start_epoch (400) leaves nothing of --epochs 400"),
    "sizes at odds": (f"{RUN} --input_size 33", "input_size 33 is not a multiple of patch_size 8; use 32 or 40"),
    "sizes before a missing folder": (
        f"{RUN} --data_path PLACE/none --embed_dim 34",
        "embed_dim 34 must be a multiple",
    ),
    "model before a missing folder": (f"{RUN} --data_path PLACE/none --model mae_vit_bas", "did you mean mae_vit_base"),
    "sizes before a bad image": (
        f"{RUN} --data_path PLACE/fake --batch_size 1 --mask_ratio 0.999",
        "--mask_ratio 0.999 leaves 0 of 16 patches visible",
    ),
    "a used folder": (OLD, "--output_dir PLACE/run holds checkpoint-1.pd and 1 other checkpoint and the logs"),
    "two beginnings": (f"{OLD} --overwrite --resume PLACE/run/checkpoint-0.pd", "leave one of them out"),
    "no data path": (f"{TINY} --output_dir PLACE/new", "--data_path is required"),
    "no data folder": (f"{RUN} --data_path PLACE/none", "--data_path PLACE/none does not exist; expected"),
    "empty folder": (f"{RUN} --data_path PLACE/empty", "no images in PLACE/empty; expected"),
    "no image": (f"{RUN} --data_path PLACE/fake --batch_size 1", "PLACE/fake cannot be used: picture.jpg: it is"),
    "no image, 2 workers": (
        f"{RUN} --data_path PLACE/fake --batch_size 1 --num_workers 2",
        "PLACE/fake cannot be used: picture.jpg: it is",
    ),
    "no image at all": (
        f"{RUN} --data_path PLACE/fake --batch_size 1 --bad_image skip",
        "1 of 1 files of PLACE/fake cannot be used: picture.jpg: it is not an image",
    ),
    "no image at all, unchecked": (
        f"{RUN} --data_path PLACE/fake --batch_size 1 --bad_image skip --no_check_data",
        "cannot decode any of 1 file of PLACE/fake; the first: cannot read image PLACE/fake/picture.jpg: it is not an",
    ),
    "output below a file": (f"{RUN} --output_dir PLACE/notes.txt/run", "cannot write to the output folder"),
    "output is a file": (f"{RUN} --output_dir PLACE/notes.txt", "choose another --output_dir"),
    "records below a file": (f"{RUN} --log_dir PLACE/notes.txt/log", "choose another --log_dir"),
    "nothing to resume": (f"{OLD} --resume PLACE/none.pd", "cannot read the checkpoint PLACE/none.pd"),
    "resume a text file": (f"{OLD} --resume PLACE/notes.txt", "PLACE/notes.txt is not a complete training checkpoint"),
    "resume other sizes": (
        f"{OLD} --resume PLACE/run/checkpoint-0.pd --embed_dim 64",
        "PLACE/run/checkpoint-0.pd does not fit this run",
    ),
    "resume other sizes in a new folder": (
        f"{TINY} --data_path PLACE/images --output_dir PLACE/fresh --resume PLACE/run/checkpoint-0.pd --embed_dim 64",
        "PLACE/run/checkpoint-0.pd does not fit this run",
    ),
    "batch larger than the data": (f"{RUN} --batch_size 31", "the data set has 30 images, fewer than one batch of 31"),
}


@pytest.mark.parametrize(("line", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_checkpoints_alone(place, capfd, line, told):
    before = checkpoints(place / "run")
    assert set(before) == {"checkpoint-0.pd", "checkpoint-1.pd"}
    assert main(line.replace("PLACE", str(place)).split()) == 2
    assert told.replace("PLACE", str(place)) in tell(capfd.readouterr().err)
    assert checkpoints(place / "run") == before
    assert not (place / "fresh").exists()  # no empty folder stays


def test_several_mistakes_are_an_error_line_each(capsys):
    assert main(["compare", "--save_path", "table.txt", "--device", "cpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("plsc-mae: error: ") for line in lines)
    for line, word in zip(lines, ("--data_path", "--model_path", "table.txt"), strict=True):
        assert word in line


def test_divergence_has_its_own_exit_code(place, capfd):
    before = checkpoints(place / "run")
    assert main(f"{RUN} --lr 1e30 --warmup_epochs 0".replace("PLACE", str(place)).split()) == 3
    assert "loss became nan" in tell(capfd.readouterr().err)
    assert checkpoints(place / "run") == before


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize("program", ["main_pretrain.py", "-m plsc_mae pretrain"])
def test_programs_tell_a_mistake_without_a_traceback(place, program, fork_server):
    """The first starts as a user starts it, with an interpreter of its own."""
    line = TINY.removeprefix("pretrain").split()
    line += f"--data_path {place}/fake --output_dir {place}/new --batch_size 1 --num_workers 2".split()
    words = [*program.split(), *line]
    if program.startswith("-m"):
        done = fork_server.run(words, cwd=ROOT)
    else:
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
        )
    assert done.returncode == 2, done.stderr
    assert "picture.jpg" in tell(done.stderr)
    assert "Traceback" not in done.stdout


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def fail(config):
        raise RuntimeError("ours")

    monkeypatch.setattr(doctor, "run", fail)
    with pytest.raises(RuntimeError, match="ours"):
        main(["doctor"])


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "plsc-mae: interrupted\n"


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["nonsense"], 2)])
def test_one_of_several_processes_ends_without_paddles_cleanup(monkeypatch, words, code):
    class Group:
        def report_success(self) -> None:
            reported.append(0)

        def report_failure(self, sentence: str, code: int) -> None:
            reported.append(code)

    def end(code: int) -> None:
        raise SystemExit(code)

    reported: list[int] = []
    monkeypatch.setattr(failure_detector.os, "_exit", end)
    assert main_of_process(words) == code  # a process alone ends as every interpreter does
    monkeypatch.setattr(failure_detector, "_watch", Group())
    with pytest.raises(SystemExit) as ended:
        main_of_process(words)
    assert ended.value.code == code
    assert reported == ([code] if code else [])


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]])
def test_the_overview_lists_the_commands(words, capsys):
    assert main(words) == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in shown
        assert command.summary in shown


@pytest.mark.parametrize("words", [["weights"], ["weights", "--help"]])
def test_a_family_lists_its_commands_alone(words, capsys):
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all((f"\n  {name} " in shown) == name.startswith("weights ") for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*name.split(), "--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: plsc-mae {name} ")


@pytest.mark.once
def test_help_and_mistakes_do_not_wait_for_paddle():
    script = (
        "import contextlib, io, sys\n"
        "from plsc_mae.cli import COMMANDS, main\n"
        "lines = [[], *([*name.split(), '--help'] for name in COMMANDS), ['pretrain', '--mask_ratio', '2']]\n"
        "for line in lines:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main(line)\n"
        "    loaded = {'paddle', 'torch', 'matplotlib', 'visualdl', 'cv2', 'scipy', 'requests'} & set(sys.modules)\n"
        "    assert not loaded, (line, loaded)\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.once
def test_version():
    command = [sys.executable, "-m", "plsc_mae", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{plsc_mae.__version__}\n", "")


def test_only_the_first_process_tells_more_than_warnings(place, monkeypatch, capsys):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    assert main(f"{RUN} --batch_size 31 --world_size 2".replace("PLACE", str(place)).split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("warning: --world_size has no effect")


@pytest.mark.once
def test_a_closed_pipe_is_no_bug():
    """As `plsc-mae pretrain --help all | head -1` closes it."""
    program = [sys.executable, "-m", "plsc_mae", "pretrain", "--help", "all"]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (141, "")
