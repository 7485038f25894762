"""Identity of a run: a random id, stored in its checkpoints, its logs and the file run.json of its output folder."""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from plsc_mae.errors import CheckpointError
from plsc_mae.files import refuse_foreign
from plsc_mae.names import as_json
from plsc_mae.parallel.world import World
from plsc_mae.train.log.append_file import replace_content

ID_BITS = 48  # the processes exchange the id as float64, which is exact up to 53 bits


@dataclass(frozen=True)
class RunRecord:
    """Content of run.json."""

    run: str = ""  # id of the run, 12 hexadecimal digits; "" before the processes have drawn it
    # absolute path of the checkpoint of another run from which this run started; "" if it started from the beginning
    origin: str = ""
    origin_run: str = ""  # id of that other run; "" if it has none
    # whether the checkpoints without an id, which earlier versions wrote, belong to this run
    adopts_unnamed: bool = False

    def owns(self, run: str) -> bool:
        """Return whether a checkpoint belongs to this run; `run` is the checkpoint's run id, "" if it has none."""
        return run == self.run if run else self.adopts_unnamed

    def descends_from(self, run: str) -> bool:
        """Return whether a checkpoint with run id `run` is from this run or from the run that this one started from."""
        return self.owns(run) or (bool(self.origin) and run == self.origin_run)

    def with_id(self, world: World) -> RunRecord:
        """Return this record with an id: its own or, if it has none, a random one; all processes must call.

        Process 0 draws the id. All processes return the same id.
        """
        drawn = int(world.largest([float(secrets.randbits(ID_BITS) if world.is_main else 0)])[0])
        return self if self.run else dataclasses.replace(self, run=f"{drawn:012x}")


def record_path(output_dir: str, exp_name: str) -> Path:
    """Return the path of the record of a run: `{exp_name}_run.json`, or `run.json` if `exp_name` is ""."""
    return Path(output_dir) / f"{exp_name + '_' if exp_name else ''}run.json"


def read_record(path: Path) -> RunRecord | None:
    """Return the content of a run record; None if the file cannot be read or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = RunRecord(**content)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = record.run, record.origin, record.origin_run
    return record if record.run and all(isinstance(text, str) for text in texts) else None


def write_record(path: Path, record: RunRecord) -> None:
    """Write a run record atomically.

    Raises:
        OSError: the file cannot be written.
    """
    replace_content(path, (as_json(dataclasses.asdict(record)) + "\n").encode())


def require_own_record(path: Path) -> None:
    """Raise CheckpointError if `path` holds something other than the record of a run."""
    try:
        refuse_foreign(path, ('"run"', '"origin"'))
    except FileExistsError:
        raise CheckpointError(
            f"{path} is not the record of a run; move it elsewhere, or choose another --output_dir"
        ) from None
