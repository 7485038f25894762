"""Output folder of a run: its creation, config.yaml and the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from plsc_mae.config import TrainingConfig
from plsc_mae.config.schema import to_yaml
from plsc_mae.errors import CheckpointError
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.log.append_file import replace_content

logger = logging.getLogger(__name__)


def create_folder(config: TrainingConfig) -> None:
    """Create the output folder.

    Raises:
        CheckpointError: the folder cannot be created.
    """
    with _writing_to(config.output_dir):
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)


def prepare_folder(config: TrainingConfig) -> None:
    """Remove partly written checkpoints and write config.yaml; only the main process may call.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    with _writing_to(config.output_dir):
        checkpoint_file.remove_leftovers(config.output_dir, config.exp_name)
        header = "# all options of this run; repeat it with --config\n"
        replace_content(Path(config.output_dir) / "config.yaml", to_yaml(config, header).encode())


def checkpoint_to_resume(config: TrainingConfig) -> Path | None:
    """Return the checkpoint from which a run resumes, or None; warn if it ignores checkpoints in the output folder.

    Raises:
        CheckpointError: --auto_resume finds only damaged checkpoints.
    """
    if config.resume:
        return Path(config.resume)
    files = checkpoint_file.all_of(config.output_dir, config.exp_name)
    if config.auto_resume:
        newest = checkpoint_file.find_newest(config.output_dir, config.exp_name)
        if files and newest is None:
            raise CheckpointError(
                f"none of the {len(files)} checkpoints in {config.output_dir} can be used, see the warnings; restore "
                "one from a backup, or start in another --output_dir"
            )
        return newest
    if files:
        logger.warning(
            "%s holds checkpoints of an earlier run, and this run starts from the beginning; to continue the earlier "
            "run stop this one and pass --auto_resume, else choose another --output_dir",
            config.output_dir,
        )
    return None


@contextlib.contextmanager
def _writing_to(folder: str) -> Iterator[None]:
    """Convert an OSError within the context into a CheckpointError that names the output folder."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write to the output folder {folder}: {error.strerror}; choose another --output_dir"
        ) from None
