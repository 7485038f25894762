"""The output folder: whose checkpoints a run continues from, when it is refused, and that nothing in it is lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from plsc_mae.config import PRETRAIN
from plsc_mae.config.resolve import parse
from plsc_mae.errors import CheckpointError, ConfigError
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.folder import Start, find_start, prepare_folder
from plsc_mae.train.checkpoint.run_record import RunRecord, read_record, write_record

OLD, NEW = "0123456789ab", "ba9876543210"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    return path


def config(folder, flags: str = ""):
    return parse(f"--model mae_vit_tiny_patch16 --output_dir {folder} {flags}".split(), PRETRAIN, prog="pretrain")


def checkpoint(folder, tag, step: int, run: str = "", exp_name: str = ""):
    folder.mkdir(exist_ok=True)
    path = checkpoint_file.checkpoint_path(str(folder), exp_name, tag)
    checkpoint_file.save(path, {"model": {"w": np.zeros(2, np.float32)}, "epoch": 0, "step": step, "run": run})
    return path


def logs(folder, steps: int, run: str = "") -> None:
    for name in ("train.jsonl", "log.txt"):
        (folder / name).write_text("".join(json.dumps({"step": i, "run": run}) + "\n" for i in range(steps)))


def record(folder, run: str, **values) -> None:
    write_record(folder / "run.json", RunRecord(run, **values))


def enter(folder, flags: str = "") -> Start:
    """Start a run as the trainer does, up to its first update."""
    options = config(folder, flags)
    start = find_start(options)
    start = start._replace(record=start.record.with_id(World("cpu")))
    prepare_folder(options, start)
    return start


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------- a new run


def test_a_run_leaves_its_id_in_its_folder(folder):
    first, second = enter(folder), enter(folder)  # nothing was trained, so nothing is in the way
    assert len(first.record.run) == 12
    assert first.record.run != second.record.run
    assert read_record(folder / "run.json") == second.record
    assert second.record.run in (folder / "config.yaml").read_text().splitlines()[0]


@pytest.mark.parametrize("flags", ["", "--exp_name other", "--no_auto_resume"])
@pytest.mark.parametrize("left", ["checkpoint", "damaged checkpoint", "log", "unnamed"])
def test_a_used_folder_is_refused(folder, left, flags):
    if left == "log":
        logs(folder, 3)
    elif left == "damaged checkpoint":
        (folder / "checkpoint-3.pd").write_bytes(b"")
    else:
        checkpoint(folder, 3, 40, OLD if left == "checkpoint" else "")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        CheckpointError, match=r"--output_dir .*--auto_resume.*--overwrite.*another --output_dir"
    ) as told:
        find_start(config(folder, flags))
    assert ("continue that run" in str(told.value)) == (left != "log")  # there is nothing to continue from
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_records_of_another_run_in_the_log_dir_are_a_use_too(folder, tmp_path, messages):
    from plsc_mae.train.log.append_file import VisualDLRecords

    pytest.importorskip("visualdl")
    file = VisualDLRecords(tmp_path / "curves")
    file.keep(lambda *_: True)
    flags = f"--log_dir {tmp_path / 'curves'}"
    assert find_start(config(folder, flags)).checkpoint is None  # an empty file
    file.add_scalars({"train/loss": 1.0}, 1)
    for start in ("", " --auto_resume"):  # the other run goes on and needs its records
        with pytest.raises(
            CheckpointError, match=r"--log_dir .*curves holds .*vdlrecords\.run\.log.*--overwrite"
        ) as told:
            find_start(config(folder, flags + start))
        assert str(tmp_path / "curves/previous-run") in str(told.value)
        assert "--output_dir" not in str(told.value)
    content = file.path.read_bytes()
    enter(folder, f"{flags} --overwrite")
    assert (
        f"moved 1 file of an earlier run from {tmp_path / 'curves'} to {tmp_path / 'curves/previous-run'}"
        in " ".join(messages)
    )
    (kept,) = (tmp_path / "curves").glob("previous-*/vdlrecords.run.log")
    assert kept.read_bytes() == content


@pytest.mark.parametrize(
    ("saved", "given", "advice"),
    [
        ("one", "", "--exp_name one --auto_resume"),
        ("one", "two", "--exp_name one --auto_resume"),
        ("", "two", "--auto_resume without --exp_name"),
        ("one", "one", "pass --auto_resume"),
    ],
)
def test_the_advice_for_a_run_of_another_name_continues_that_run(folder, saved, given, advice):
    checkpoint(folder, 3, 40, OLD, saved)
    name = f"--exp_name {given}" if given else ""
    for flags in ("", "--auto_resume")[: 1 if saved == given else 2]:
        with pytest.raises(CheckpointError, match=f"{advice} to continue that run"):
            find_start(config(folder, f"{name} {flags}"))


def test_what_other_commands_write_is_no_use(folder):
    for name in ("loss.png", "panel.png", "features.npz", "config.yaml", "notes.txt", "train.jsonl", "log.txt"):
        (folder / name).write_bytes(b"" if name.endswith(("jsonl", "log.txt")) else b"x")
    assert find_start(config(folder)) == Start(None, RunRecord())


def test_options_of_the_first_versions_are_replaced(folder):
    (folder / "config.yaml").write_text("# the resolved options of this run; feed them back with --config\nepochs: 3\n")
    run = enter(folder).record.run
    assert run in (folder / "config.yaml").read_text().splitlines()[0]


def test_options_and_records_of_others_are_not_replaced(folder, caplog):
    (folder / "config.yaml").write_text("epochs: 3\n")
    run = enter(folder).record.run
    assert (folder / "config.yaml").read_text() == "epochs: 3\n"
    assert run in (folder / f"config-{run}.yaml").read_text().splitlines()[0]
    assert f"config-{run}.yaml" in caplog.text

    (folder / "run.json").write_text('{"speed": 3}')
    with pytest.raises(CheckpointError, match=r"run\.json is not the record of a run; .*--output_dir"):
        enter(folder)
    assert (folder / "run.json").read_text() == '{"speed": 3}'
    enter(folder, "--overwrite")
    (kept,) = folder.glob("previous-*")
    assert names(kept) == {"config.yaml", f"config-{run}.yaml", "run.json"}
    assert (kept / "config.yaml").read_text() == "epochs: 3\n"


@pytest.mark.parametrize("content", ['{"run": 3}', '{"run": "a", "origin": 3}', '{"run": ""}', "[]", "{"])
def test_a_malformed_record_is_none(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert read_record(tmp_path / "run.json") is None


def test_overwriting_moves_the_old_run_and_nothing_else(folder):
    record(folder, OLD)
    logs(folder, 3, OLD)
    for tag, name in ((3, ""), ("best", ""), (3, "try")):
        checkpoint(folder, tag, 40, OLD, name)
    (folder / "loss.png").write_bytes(b"x")
    (folder / "nonfinite-3-rank0.json").write_text("{}")
    before = names(folder)
    start = enter(folder, "--overwrite")
    assert start.checkpoint is None
    assert names(folder / f"previous-{OLD}") == before - {"loss.png"}
    assert names(folder) == {"loss.png", "run.json", "config.yaml", f"previous-{OLD}"}
    assert read_record(folder / f"previous-{OLD}/run.json").run == OLD
    text = (folder / "config.yaml").read_text()
    assert "overwrite: false" in text  # else `--config config.yaml` would move the new run away

    checkpoint(folder, 0, 2)
    enter(folder, "--overwrite")  # no name is taken twice
    assert len(list(folder.glob("previous-*"))) == 2
    with pytest.raises(ConfigError, match="--resume"):
        config(folder, "--overwrite --resume x.pd")


def test_options_of_one_start_are_not_repeated(tmp_path):
    enter(tmp_path, "--auto_resume --max_train_step 3")
    text = (tmp_path / "config.yaml").read_text()
    assert "auto_resume: false" in text  # else `--config config.yaml` would continue any run of another folder
    assert "max_train_step: null" in text


def test_a_kill_while_files_are_moved_does_not_bring_the_old_run_back(folder):
    """Nor does a checkpoint of another run that somebody copies over those of this one."""
    record(folder, NEW)  # the record is written first
    for run in (OLD, ""):
        file = checkpoint(folder, 9, 900, run)
        with pytest.raises(CheckpointError, match=rf"checkpoint-9.pd of run .*{NEW}.*--resume FILE.*--overwrite"):
            find_start(config(folder, "--auto_resume"))
        assert enter(folder, f"--resume {file}").checkpoint == file
        record(folder, NEW)
    enter(folder, "--overwrite")
    assert not list(folder.glob("*.pd"))


def test_two_runs_that_start_at_once_do_not_share_a_folder(folder):
    one, two = config(folder), config(folder)
    starts = [find_start(options)._replace(record=RunRecord(run)) for options, run in ((one, OLD), (two, NEW))]
    find = find_start(one)
    prepare_folder(one, starts[0]._replace(found=find.found))
    with pytest.raises(CheckpointError, match="another run has just started"):
        prepare_folder(two, starts[1])


def test_later_starts_do_not_inherit_options_of_one_start(folder):
    enter(folder, "--max_train_step 3 --quiet --epochs 7")
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert (stored["max_train_step"], stored["quiet"], stored["epochs"]) == (None, False, 7)


# ------------------------------------------------------------------------------------------- --auto_resume


def test_the_first_start_of_a_command_that_always_resumes(folder):
    start = enter(folder, "--auto_resume")
    assert start.checkpoint is None
    # Killed before its first update, it is the same run.
    again = enter(folder, "--auto_resume")
    assert (again.checkpoint, again.record) == (None, start.record)


def test_a_run_never_goes_on_from_another_ones_checkpoint(folder):
    old = checkpoint(folder, 9, 900, OLD)
    latest = checkpoint(folder, "latest", 12, NEW)
    record(folder, NEW)
    logs(folder, 2, NEW)
    start = enter(folder, "--auto_resume")
    assert (start.checkpoint, start.record.run) == (latest, NEW)
    assert (folder / f"previous-{OLD}" / old.name).exists()  # this run will write checkpoint-9.pd itself


def test_a_folder_of_an_earlier_version_is_one_run(folder):
    checkpoint(folder, 0, 10)
    newest = checkpoint(folder, "latest", 15)
    logs(folder, 15)
    start = enter(folder, "--auto_resume")
    assert start.checkpoint == newest
    assert enter(folder, "--auto_resume").record == start.record  # killed before its first checkpoint
    named = checkpoint(folder, 1, 20, start.record.run)
    assert find_start(config(folder, "--auto_resume")).checkpoint == named
    named.unlink()
    assert find_start(config(folder, "--auto_resume")).checkpoint == newest


def test_checkpoints_copied_without_their_record(folder):
    newest = checkpoint(folder, 1, 20, OLD)
    start = find_start(config(folder, "--auto_resume"))
    assert (start.checkpoint, start.record) == (newest, RunRecord(OLD))
    checkpoint(folder, 2, 10, NEW)
    with pytest.raises(CheckpointError, match=rf"{OLD}, {NEW}.*--resume FILE"):
        find_start(config(folder, "--auto_resume"))


def test_runs_of_an_earlier_version_that_differ_by_name(folder):
    paths = {name: checkpoint(folder, 1, step, "", name) for name, step in (("a", 20), ("b", 30))}
    for name in ("a", "b", "a"):
        assert enter(folder, f"--auto_resume --exp_name {name}").checkpoint == paths[name]
    with pytest.raises(CheckpointError, match="--exp_name 'c'"):
        find_start(config(folder, "--auto_resume --exp_name c"))


def test_logs_without_a_checkpoint_are_kept(folder):
    record(folder, OLD)
    logs(folder, 3, OLD)
    start = enter(folder, "--auto_resume")
    assert start.checkpoint is None
    assert start.record.run != OLD
    assert names(folder / f"previous-{OLD}") == {"train.jsonl", "log.txt", "run.json"}


def test_damaged_checkpoints_are_no_reason_to_start_again(folder):
    record(folder, OLD)
    checkpoint(folder, 1, 20, OLD).write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 1 checkpoint, and none"):
        find_start(config(folder, "--auto_resume"))


# ------------------------------------------------------------------------------------------- --resume FILE


def test_the_newest_checkpoint_continues_its_run(folder, tmp_path):
    checkpoint(folder, 0, 10, OLD)
    path = checkpoint(folder, "latest", 15, OLD)
    record(folder, OLD)
    logs(folder, 15, OLD)
    assert enter(folder, f"--resume {path} --auto_resume") == Start(path, RunRecord(OLD), found=RunRecord(OLD))
    copy = checkpoint(tmp_path / "backup", "latest", 15, OLD)
    assert find_start(config(folder, f"--resume {copy}")).record.run == OLD
    assert "resume: ''" in (folder / "config.yaml").read_text()  # else `--config config.yaml` would go back to it


def test_an_older_checkpoint_starts_a_branch(folder):
    base = checkpoint(folder, 0, 10, OLD)
    for tag, step in ((1, 20), ("latest", 25)):
        checkpoint(folder, tag, step, OLD)
    record(folder, OLD)
    logs(folder, 25, OLD)
    branch = enter(folder, f"--resume {base}")
    assert branch.record.run not in ("", OLD)
    kept = names(folder / f"previous-{OLD}")
    assert kept == {"checkpoint-1.pd", "checkpoint-latest.pd", "train.jsonl", "log.txt", "run.json"}
    assert (folder / f"previous-{OLD}/log.txt").read_text() == (folder / "log.txt").read_text()
    # Killed before it saved anything, it starts from that file again; afterwards it continues from its own.
    assert find_start(config(folder, "--auto_resume")).checkpoint == base
    own = checkpoint(folder, "latest", 12, branch.record.run)
    again = find_start(config(folder, "--auto_resume"))
    assert (again.checkpoint, again.record, list(again.displaced)) == (own, branch.record, [])
    # The same command once more starts a second branch, and loses nothing of the first.
    second = enter(folder, f"--resume {base}")
    assert second.record.run not in (OLD, branch.record.run)
    assert (folder / f"previous-{branch.record.run}" / own.name).exists()


def test_a_checkpoint_of_another_folder_starts_a_branch_here(folder, tmp_path):
    base = checkpoint(tmp_path / "first", 3, 40, OLD)
    start = enter(folder, f"--resume {base}")
    assert (start.record.origin, start.record.origin_run) == (str(base), OLD)
    assert find_start(config(folder, "--auto_resume")).checkpoint == base
    base.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-3\.pd, from which it started, is gone"):
        find_start(config(folder, "--auto_resume"))


def test_a_checkpoint_of_another_run_moves_the_files_of_the_folders_run(folder, tmp_path):
    base = checkpoint(tmp_path / "first", 3, 40, OLD)
    checkpoint(folder, 9, 90, NEW)
    record(folder, NEW)
    logs(folder, 3, NEW)
    before = names(folder)
    start = enter(folder, f"--resume {base}")
    assert start.checkpoint == base
    assert names(folder / f"previous-{NEW}") == before
    assert names(folder) == {"run.json", "config.yaml", f"previous-{NEW}"}
