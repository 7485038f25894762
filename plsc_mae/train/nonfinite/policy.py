"""Keeps numbers that are not finite out of the weights: looks at every update first, and does as --nan_policy says.

What it does depends on numbers that all processes share, and on the run's position: a run that is killed and goes on
does the same again.
"""

from __future__ import annotations

import logging
from pathlib import Path

import paddle
from paddle import Tensor

from plsc_mae.data.loader import BatchLoader
from plsc_mae.errors import CheckpointError, DivergedError, UserError
from plsc_mae.train.checkpoint import file as checkpoint_file
from plsc_mae.train.checkpoint.state import Progress, RunState
from plsc_mae.train.nonfinite.diagnosis import Diagnosis
from plsc_mae.train.nonfinite.exchange import agree
from plsc_mae.train.nonfinite.spikes import SpikeReport
from plsc_mae.train.step import Stepper
from plsc_mae.weights.reader import Checkpoint

logger = logging.getLogger(__name__)

MOST_SKIPPED = 10  # in a row
MOST_ROLLBACKS = 3  # without a checkpoint of weights that have learned since
REMEDY = (
    "nothing was saved since the last checkpoint, go on from it with --auto_resume and a lower --lr or --blr, a "
    "--clip_grad, --no_amp, or another --nan_policy"
)


class NonFinitePolicy:
    """Decides about updates.

    Args:
        state: of the run; a rollback restores it.
        stepper: whose updates they are.
        loader: where the images come from.
    """

    def __init__(self, state: RunState, stepper: Stepper, loader: BatchLoader) -> None:
        self.state, self.stepper = state, stepper
        self.config, self.world, self.task = state.config, state.world, state.task
        self.diagnosis = Diagnosis(state, stepper, loader)
        self.spikes = SpikeReport(Path(self.config.output_dir) / "spikes.jsonl", active=self.world.is_main)
        self._losses: list[Tensor] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._restorable: list[Path] = []
        self._has_learned = False  # since the last rollback

    def start(self, path: Path | None, progress: Progress) -> None:
        """Begin at a position, resumed from `path` if there is one."""
        self._restorable = [] if path is None else [path]
        self.spikes.start(progress.step)

    def before_save(self, path: Path, progress: Progress) -> None:
        """Learn that there is going to be a checkpoint, to which the run may go back."""
        self._restorable = [*(known for known in self._restorable if known != path), path]
        if self._has_learned:
            progress.rollbacks_in_a_row = 0

    def start_group(self) -> None:
        """Begin an accumulation group."""
        self._losses = []
        if self.config.nan_policy == "skip":  # running statistics change in the forward pass already
            self._buffers = [(buffer, buffer.clone().detach()) for buffer in self.task.model.buffers()]

    def add(self, loss: Tensor) -> None:
        """Take in the loss of an iteration."""
        self._losses.append(loss.detach())

    def counts(self, progress: Progress) -> dict[str, int]:
        """Numbers for the logs, of a run that goes on after a bad update."""
        counts = {"skip": {"skipped_updates": progress.skipped_updates}, "rollback": {"rollbacks": progress.rollbacks}}
        return counts.get(self.config.nan_policy, {})

    def allow(self, norm: Tensor, progress: Progress) -> bool:
        """Look at an update, of which `progress` counts all iterations but the last, and do what a bad one demands.

        Args:
            norm: of the gradient, before clipping.
            progress: where the run stands; its counts of bad updates change.

        Returns:
            Whether to make the update. If not, the gradients are gone.

        Raises:
            DivergedError: the run is to end.
            CheckpointError: a rollback finds its checkpoints damaged.
        """
        loss = self._losses[0] if len(self._losses) == 1 else paddle.add_n(self._losses) / len(self._losses)
        numbers = agree(self.world, loss, norm)
        if numbers.finite:
            progress.skipped_in_a_row, self._has_learned = 0, True
            known = numbers.losses[: self.world.processes // self.world.pipeline.size]  # last stages come first
            values = {"loss": sum(known) / len(known), "grad_norm": numbers.norm}
            self.spikes.follow(progress.step + 1, values, lambda: self.diagnosis.suspects(numbers, progress))
            return True
        scaler = self.stepper.scaler
        if scaler.is_enable() and not numbers.bad_losses and not scaler.at_floor:
            self.stepper.drop(overflow=True)
            return False
        story = self.diagnosis.report(numbers, progress, self._losses)
        self.stepper.drop()
        getattr(self, f"_{self.config.nan_policy}")(story, progress)
        return False

    # -------------------------------------------------------------------------------------------- policies

    def _stop(self, story: str, _progress: Progress) -> None:
        raise DivergedError(f"{story}; {REMEDY}")

    def _skip(self, story: str, progress: Progress) -> None:
        """Leave everything as if the group had not been there."""
        progress.skipped_updates += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= MOST_SKIPPED:
            raise DivergedError(f"{story}, the {MOST_SKIPPED}th update in a row to be skipped; {REMEDY}")
        for buffer, before in self._buffers:
            buffer.set_value(before)
        logger.warning("%s; this update is skipped (--nan_policy skip)", story)

    def _rollback(self, story: str, progress: Progress) -> None:
        """Take what has a state from the newest checkpoint but not the position.

        So the images since then are left out, as in PaLM's training (Chowdhery et al. 2022, section 5.1), where other
        images on the same weights made no spike.
        """
        if not self._restorable:
            raise DivergedError(f"{story}, and there is no checkpoint yet for --nan_policy rollback; {REMEDY}")
        if progress.rollbacks_in_a_row == MOST_ROLLBACKS:
            raise DivergedError(
                f"{story}, after {MOST_ROLLBACKS} rollbacks without a checkpoint of weights that have learned since; "
                f"{REMEDY}"
            )
        path = self._go_back()
        progress.rollbacks += 1
        progress.rollbacks_in_a_row += 1
        self._has_learned = False
        logger.warning("%s; weights and optimizer are those of %s again (--nan_policy rollback)", story, path)

    def _go_back(self) -> Path:
        """Restore the newest checkpoint that all processes can read."""
        for path in reversed(self._restorable):
            stored = self._read(path)
            self.world.barrier()  # reading may take longer than the others would wait in a reduction
            unread = self.world.largest([float(stored is None)])[0]
            if stored is not None and not unread:
                self.state.restore(stored)
                return path
        raise CheckpointError("no checkpoint of this run can be read any more for --nan_policy rollback")

    def _read(self, path: Path) -> Checkpoint | None:
        try:
            return checkpoint_file.load(path)
        except UserError as error:
            logger.warning("passed over: %s", error)
            return None
