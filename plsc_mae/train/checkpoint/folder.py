"""Output folder of a run: the checkpoint to start from, and the protection of the files of other runs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plsc_mae.config import TrainingConfig
from plsc_mae.config.schema import to_yaml
from plsc_mae.errors import CheckpointError
from plsc_mae.files import refuse_foreign
from plsc_mae.folder_lock import require_unlocked
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.run_record import RunRecord, read_record, record_path, require_own_record, write_record
from plsc_mae.train.log.append_file import VISUALDL_FILE, has_visualdl_records, replace_content
from plsc_mae.wording import counted

logger = logging.getLogger(__name__)

LOGS = ("train.jsonl", "log.txt")
CONFIG = "config.yaml"
_OWN_CONFIG = "config-{}.yaml"  # with the id of the run; used if config.yaml is a file of the user
_OWN_CONFIGS = _OWN_CONFIG.format(12 * "[0-9a-f]")
_CONFIG_SIGNS = (" options of ", " with --config\n")  # in the first line of config.yaml since the first version
HISTORY, TRIVIAL_LOSSES = "history.jsonl", "trivial_losses.json"  # see train/history.py, train/trivial_losses.py
CLASS_RESULTS = "class_results.json"  # see train/class_results.py
_CONTINUED_REPORTS = ("spikes.jsonl", HISTORY, TRIVIAL_LOSSES, CLASS_RESULTS)
_REPORTS = (*_CONTINUED_REPORTS, "nonfinite-*.json", "hang-*.txt")
# Options of one start, which config.yaml does not pass on to later ones; the printed command that continues a run has
# those that still apply.
CONTINUED_SESSION_OPTIONS = ("max_train_step", "quiet", "json")
SESSION_OPTIONS = ("overwrite", "resume", "auto_resume", *CONTINUED_SESSION_OPTIONS)
_CHECKPOINTS = "*checkpoint-*.pd"  # of any --exp_name


class Start(NamedTuple):
    """Start of a run, as its options and the files of its output folder determine it."""

    checkpoint: Path | None  # the checkpoint to resume from; None if the run starts from the beginning
    record: RunRecord  # identity of the run; without an id if the run is a new one
    displaced: Sequence[Path] = ()  # files of other runs, which `prepare_folder` moves to a sub-folder
    # logs, options and reports that the run continues and that another run needs too;
    # they are copied to that sub-folder
    copied: Sequence[Path] = ()
    displaced_run: str = ""  # id of a run that wrote displaced files, for the name of the sub-folder; "" if it has none
    found: RunRecord | None = None  # the run record that the folder had when the start was determined; None without one


def find_start(config: TrainingConfig) -> Start:
    """Determine the start of a run from its options and its output folder, without changing a file.

    Raises:
        FolderError: another run writes to the output folder.
        CheckpointError: the output folder or --log_dir holds a run, and no option says what to do with it; the
            checkpoint of --resume cannot be read; or --auto_resume finds no usable checkpoint of its run, or cannot
            choose a run.
    """
    require_unlocked(Path(config.output_dir), "--output_dir")
    files = _RunFiles(config)
    return _choose_start(config, files)._replace(found=files.record)


def _choose_start(config: TrainingConfig, files: _RunFiles) -> Start:
    if config.resume:
        return _start_from_file(Path(config.resume), files)
    if config.overwrite:
        if config.auto_resume and files.checkpoints:
            logger.warning(
                "--overwrite takes precedence over --auto_resume: a new run starts, and another each time this command "
                "is repeated; leave out --overwrite to continue the run in %s",
                files.folder,
            )
        return Start(None, RunRecord(), files.all(), displaced_run=files.run)
    if files.only_foreign_records:
        folder = files.records.parent
        raise CheckpointError(
            f"--log_dir {folder} holds the records {files.records.name} of another run; choose another --log_dir, or "
            f"pass --overwrite to move them to {_spare_folder(folder, files.run)}"
        )
    if config.auto_resume:
        return _continue_run(config, files)
    if files.checkpoints or files.logs:
        spare = _spare_folder(files.folder, files.run)
        advice = (
            f"{files.continuing_flags(config.exp_name)} to continue that run, --overwrite to move its files to {spare}"
        )
        if not files.checkpoints and not (files.record and files.record.origin):
            advice = f"--auto_resume or --overwrite to move them to {spare}"
        raise CheckpointError(
            f"--output_dir {files.folder} holds {files.describe()}; pass {advice} and start a new run, or another "
            "--output_dir"
        )
    return Start(None, RunRecord())


class _RunFiles:
    """Files that training runs have written to an output folder and, with --log_dir, to the folder of VisualDL records.

    Attributes:
        folder: the output folder.
        records: path of the VisualDL records, which need not exist.
        record: the record of the run with this --exp_name; None without one.
        footers: footers of the checkpoints with this --exp_name by path; None if the file is damaged.
        checkpoints: checkpoints with any --exp_name.
        logs: logs that are not empty.
        run: id of a run that wrote the files, preferably that of the record; "" if none is known.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.folder = Path(config.output_dir)
        self.records = Path(config.log_dir or config.output_dir) / VISUALDL_FILE
        self._record_path = record_path(config.output_dir, config.exp_name)
        self.record = read_record(self._record_path)
        self.footers = {
            path: _footer(path) for path in sorted(checkpoint_file.all_of(config.output_dir, config.exp_name))
        }
        self.checkpoints = self._existing(_CHECKPOINTS)
        self.logs = [path for path in self._existing(*LOGS) if path.stat().st_size]
        if has_visualdl_records(self.records):
            self.logs.append(self.records)
        ids = self.ids - {""}
        self.run = self.record.run if self.record else next(iter(sorted(ids)), "")

    @property
    def ids(self) -> set[str]:
        """Ids of the undamaged checkpoints with this --exp_name; "" for those without an id."""
        return {_run_of(footer) for footer in self.footers.values() if footer}

    @property
    def only_foreign_records(self) -> bool:
        """True if --log_dir is another folder with VisualDL records and `folder` has no checkpoint, log or record."""
        outside = self.records.parent.absolute() != self.folder.absolute()
        return outside and self.logs == [self.records] and not self.checkpoints and self.record is None

    def continuing_flags(self, exp_name: str) -> str:
        """Return the flags that continue the run of the checkpoints, which may have another prefix than `exp_name`."""
        names = sorted({path.name.rpartition("checkpoint-")[0].removesuffix("_") for path in self.checkpoints})
        if not names or exp_name in names:
            return "--auto_resume"
        return f"--exp_name {names[0]} --auto_resume" if names[0] else "--auto_resume without --exp_name"

    def all(self) -> list[Path]:
        """Return the files that a new run must not find: checkpoints, logs, options, reports and run records."""
        records = [self.records] if self.records.exists() else []
        partial = _CHECKPOINTS + checkpoint_file.TEMPORARY
        names = (_CHECKPOINTS, partial, *LOGS, CONFIG, _OWN_CONFIGS, *_REPORTS, "run.json", "*_run.json")
        return [*self._existing(*names), *records]

    def shared_logs(self) -> list[Path]:
        """Return the files that two branches of a run have in common: logs, options, reports and the run record."""
        records = [self.records] if self.records.exists() else []
        return [*self._existing(*LOGS, CONFIG, _OWN_CONFIGS, *_CONTINUED_REPORTS, self._record_path.name), *records]

    def later_than(self, step: int) -> list[Path]:
        """Return the undamaged checkpoints that were saved after more than `step` updates."""
        return [path for path, footer in self.footers.items() if footer and footer["step"] > step]

    def describe(self) -> str:
        """Return a description of the checkpoints and logs, and of the run that wrote them, for a message."""
        parts = [f"the logs {', '.join(path.name for path in self.logs)}"] if self.logs else []
        if not self.checkpoints:
            parts.append("no checkpoint")
        else:
            newest = max(self.checkpoints, key=lambda path: path.stat().st_mtime).name
            more = len(self.checkpoints) - 1
            parts.insert(0, f"{newest} and {counted(more, 'other checkpoint')}" if more else newest)
        return " and ".join(parts) + (f" of run {self.run}" if self.run else " of an earlier run")

    def _existing(self, *patterns: str) -> list[Path]:
        return [path for pattern in patterns for path in sorted(self.folder.glob(pattern)) if path.is_file()]


def _footer(path: Path) -> dict[str, Any] | None:
    try:
        return checkpoint_file.read_footer(path)
    except CheckpointError:
        return None


def _run_of(footer: Mapping[str, Any]) -> str:
    return str(footer.get(checkpoint_file.RUN, ""))


def _start_from_file(path: Path, files: _RunFiles) -> Start:
    """Return the start from the checkpoint of --resume: the run of the folder continues, or a new run branches off.

    The run of the folder continues if the checkpoint belongs to it and no later checkpoint is in the folder. Otherwise
    a run with a new id starts: with the old id, --auto_resume would continue from the later checkpoints.
    """
    footer = checkpoint_file.read_footer(path)
    run, record = _run_of(footer), files.record
    branch = RunRecord(origin=str(path.absolute()), origin_run=run)
    if not files.checkpoints and not files.logs:
        return Start(path, branch)
    in_folder = path.absolute().parent == files.folder.absolute()
    known = files.ids if record is None else {record.run, record.origin_run} | ({""} & files.ids)
    if not (run in known if run else in_folder and "" in known):
        return Start(path, branch, [file for file in files.all() if not _is_same(file, path)], (), files.run)
    later = [file for file in files.later_than(footer["step"]) if not _is_same(file, path)]
    if later:
        return Start(path, branch, later, files.shared_logs(), files.run)
    if record is None:
        return Start(path, RunRecord(run, adopts_unnamed="" in files.ids))
    return Start(path, record if record.owns(run) else dataclasses.replace(record, origin=branch.origin))


def _is_same(one: Path, two: Path) -> bool:
    return one.absolute() == two.absolute()


def _continue_run(config: TrainingConfig, files: _RunFiles) -> Start:
    """Return the start of --auto_resume: from the newest checkpoint of the folder's run.

    If that run has no checkpoint, it starts from the checkpoint that it branched off, or else from the beginning.
    """
    record = files.record or _only_run(config, files)
    newest = checkpoint_file.find_newest(
        config.output_dir, config.exp_name, lambda footer: record.owns(_run_of(footer))
    )
    runs = {path: _run_of(footer) for path, footer in files.footers.items() if footer}
    foreign = [path for path, run in runs.items() if not record.descends_from(run)]
    others = runs[foreign[0]] if foreign else ""
    if newest is not None:
        return Start(newest, record, foreign, displaced_run=others)
    damaged = sum(path not in runs or record.owns(runs[path]) for path in files.footers)
    if damaged:
        raise CheckpointError(
            f"{config.output_dir} has {counted(damaged, 'checkpoint')}, and none can be used, see the warnings; "
            "restore one from a backup, or start in another --output_dir"
        )
    if record.origin:
        return Start(_origin(config, record), record, foreign, displaced_run=others)
    if foreign:
        raise CheckpointError(
            f"--output_dir {config.output_dir} holds {foreign[-1].name} of run {others or 'without an id'}, but no "
            f"checkpoint of run {record.run}, which {record_path('', config.exp_name)} names; pass --resume FILE to "
            "continue from one of them, or --overwrite to move them away and start a new run"
        )
    if files.record is None and files.checkpoints:
        raise CheckpointError(
            f"--output_dir {files.folder} holds {files.describe()}, but no checkpoint with --exp_name "
            f"'{config.exp_name}'; pass {files.continuing_flags(config.exp_name)} to continue that run, --overwrite to "
            "move its files away, or another --output_dir"
        )
    if files.logs:
        return Start(None, RunRecord(), files.shared_logs(), displaced_run=files.run)
    return Start(None, record)


def _only_run(config: TrainingConfig, files: _RunFiles) -> RunRecord:
    """Return the record of the only run whose checkpoints are in a folder without a record."""
    named = sorted(files.ids - {""})
    if len(named) > 1:
        raise CheckpointError(
            f"--auto_resume cannot choose between the checkpoints of the runs {', '.join(named)} in "
            f"{config.output_dir}, which has no {record_path('', config.exp_name)}; name one with --resume FILE"
        )
    return RunRecord(named[0] if named else "", adopts_unnamed="" in files.ids)


def _origin(config: TrainingConfig, record: RunRecord) -> Path:
    """Return the checkpoint from which a run without checkpoints of its own started."""
    path = Path(record.origin)
    for candidate in (path, Path(config.output_dir) / path.name):
        if candidate.exists():
            return candidate
    raise CheckpointError(
        f"run {record.run} in {config.output_dir} has no checkpoint of its own, and {path}, from which it started, is "
        "gone; restore that file, or start a new run with --overwrite or in another --output_dir"
    )


# ------------------------------------------------------------------------------------------------- changes


def config_path(output_dir: str, run: str) -> Path:
    """Return the path of the file with the options of a run; call this after `prepare_folder` has written it."""
    own = Path(output_dir) / _OWN_CONFIG.format(run)
    return own if own.exists() else Path(output_dir) / CONFIG


def create_folder(config: TrainingConfig) -> None:
    """Create the output folder.

    Raises:
        CheckpointError: the folder cannot be created.
    """
    with _writing_to(config.output_dir):
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)


def prepare_folder(config: TrainingConfig, start: Start) -> None:
    """Write the record and config.yaml of the run `start.record`, and move or copy the files of other runs.

    Only the main process may call. The record is written before files are moved: if a kill interrupts the rest, the
    remaining files of another run do not count as files of this run.

    Raises:
        CheckpointError: the folder cannot be written, a file of the user has the name of the record, or another run has
            started in the folder since `find_start`.
    """
    path = record_path(config.output_dir, config.exp_name)
    if read_record(path) != start.found:
        raise CheckpointError(
            f"another run has just started in --output_dir {config.output_dir}; stop one of them, or choose another "
            "--output_dir"
        )
    with _writing_to(config.output_dir):
        spare = _spare_folder(Path(config.output_dir), start.displaced_run)
        for file in start.copied:
            _keep(file, spare, move=False)
        if path in start.displaced:
            _keep(path, spare, move=False)
        else:
            require_own_record(path)
        write_record(path, start.record)
        for file in start.displaced:
            if file != path:
                _keep(file, spare, move=True)
        if start.displaced:
            logger.warning(
                "moved %s of %s from %s to %s",
                counted(len(start.displaced), "file"),
                f"run {start.displaced_run}" if start.displaced_run else "an earlier run",
                *_source_and_target(start.displaced, spare),
            )
        checkpoint_file.remove_leftovers(config.output_dir, config.exp_name)
        _write_config(config, start)


def _write_config(config: TrainingConfig, start: Start) -> None:
    """Write the options to config.yaml, without SESSION_OPTIONS; if that is a file of the user, to a file beside it."""
    source = f", which started from {start.record.origin}" if start.record.origin else ""
    header = f"# all options of run {start.record.run}{source}; repeat it with --config\n"
    repeated = dataclasses.replace(config, **{name: getattr(type(config), name) for name in SESSION_OPTIONS})
    path = Path(config.output_dir) / CONFIG
    try:
        refuse_foreign(path, _CONFIG_SIGNS)
    except FileExistsError:
        own = path.with_name(_OWN_CONFIG.format(start.record.run))
        logger.warning("%s was not written by a run and is kept; the options of this run are in %s", path, own.name)
        path = own
    replace_content(path, to_yaml(repeated, header).encode())


def _spare_folder(folder: Path, run: str) -> Path:
    """Return the path of a new sub-folder for files of an earlier run: `previous-{run}`, numbered if that exists."""
    name, number = f"previous-{run or 'run'}", 1
    while (folder / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder / (name if number == 1 else f"{name}-{number}")


def _source_and_target(files: Sequence[Path], spare: Path) -> tuple[Path, Path]:
    """Return the folder of `files` and the one to which `_keep` moves them, for a message.

    If the files are in two folders, these are the output folder and `spare`.
    """
    parents = {file.parent for file in files}
    source = spare.parent if len(parents) > 1 else parents.pop()
    return source, source / spare.name


def _keep(file: Path, spare: Path, *, move: bool) -> None:
    """Move or copy a file of the output folder into its sub-folder `spare`.

    A file from another folder (--log_dir) goes into a sub-folder of that folder, with the same name as `spare`.
    """
    target = spare if file.parent == spare.parent else file.parent / spare.name
    target.mkdir(parents=True, exist_ok=True)
    if move:
        file.rename(target / file.name)
    else:
        shutil.copy2(file, target / file.name)


@contextlib.contextmanager
def _writing_to(folder: str) -> Iterator[None]:
    """Convert an OSError within the context into a CheckpointError that names the output folder."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write to the output folder {folder}: {error.strerror}; choose another --output_dir"
        ) from None
