"""Handling of updates whose loss or gradient norm is not finite, according to --nan_policy.

Decisions depend only on the position of the run and on numbers that are equal in all processes. So all processes decide
alike, and a run that is killed and resumed repeats its decisions.
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
from plsc_mae.train.nonfinite.exchange import UpdateNumbers, exchange_numbers
from plsc_mae.train.nonfinite.spikes import SpikeReport
from plsc_mae.train.signals import StopRequest
from plsc_mae.train.step import Verdict
from plsc_mae.weights.reader import Checkpoint

logger = logging.getLogger(__name__)

MAX_SKIPPED = 10  # skipped updates in a row before the run stops
MAX_ROLLBACKS = 3  # rollbacks without a checkpoint of newer weights in between, before the run stops
CHANGES = "a lower --lr or --blr, a --clip_grad, --no_amp, or another --nan_policy"
RESTART = f"start again with --overwrite and {CHANGES}"


class NonFinitePolicy:
    """Handler of updates with a non-finite loss or gradient norm: it stops the run, skips the update or rolls back."""

    def __init__(self, state: RunState, loader: BatchLoader) -> None:
        self.state, self.config, self.world = state, state.config, state.world
        self.scaler = state.stepper.scaler
        self.diagnosis = Diagnosis(state, loader)
        self.spikes = SpikeReport(Path(self.config.output_dir) / "spikes.jsonl", active=self.world.is_main)
        self._losses: list[Tensor] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._restorable: list[Path] = []
        self._has_learned = False  # since the last rollback

    def start(self, path: Path | None, progress: Progress) -> None:
        """Start at the position `progress`, which was restored from the checkpoint `path` unless that is None.

        Raises:
            CheckpointError: spikes.jsonl cannot be read or written.
        """
        self._restorable = [] if path is None else [path]
        self.spikes.start(progress.step)

    def before_save(self, path: Path, progress: Progress) -> None:
        """Register the checkpoint `path`, which is about to be written, as one that a rollback can restore.

        If updates were applied since the last rollback, this resets `rollbacks_in_a_row` of `progress`.
        """
        self._restorable = [*(known for known in self._restorable if known != path), path]
        if self._has_learned:
            progress.rollbacks_in_a_row = 0

    def start_group(self) -> None:
        """Clear the losses for a new accumulation group; with --nan_policy skip, save the running statistics."""
        self._losses = []
        if self.config.nan_policy == "skip":  # the forward pass already changes running statistics
            self._buffers = [(buffer, buffer.clone().detach()) for buffer in self.state.task.model.buffers()]

    def add(self, loss: Tensor) -> None:
        """Record the loss of an iteration of the accumulation group."""
        self._losses.append(loss.detach())

    def counts(self, progress: Progress) -> dict[str, int]:
        """Return the count of skipped updates or rollbacks by name, as the policy logs it; {} for "stop"."""
        counts = {"skip": {"skipped_updates": progress.skipped_updates}, "rollback": {"rollbacks": progress.rollbacks}}
        return counts.get(self.config.nan_policy, {})

    def exchange_and_decide(self, norm: Tensor, progress: Progress, stop: StopRequest) -> Verdict:
        """Exchange the losses of an update between all processes and return whether to apply it; all must call.

        The verdict is OVERFLOW if only the norm is not finite and the loss scale is above 1. Any other update that is
        not finite is reported and handled by --nan_policy. A loss or norm far above recent values is logged as a spike.

        Args:
            norm: gradient norm before clipping.
            progress: position of the run before the last iteration of the group; the policy updates its counts of
                non-finite updates.
            stop: request whose signals are exchanged together with the losses, so that they need no further wait.

        Raises:
            DivergedError: the policy stops the run.
            CheckpointError: a rollback finds no checkpoint that it can restore.
        """
        loss = self._losses[0] if len(self._losses) == 1 else paddle.add_n(self._losses) / len(self._losses)
        numbers = exchange_numbers(self.world, loss, norm, stop.signal)
        stop.exchanged = numbers.stop
        if numbers.finite:
            self._note_finite(numbers, progress)
            return Verdict.APPLY
        if self.scaler.enabled and not numbers.bad_losses and not self.scaler.at_floor:
            return Verdict.OVERFLOW
        story = self.diagnosis.report(numbers, progress, self._losses)
        policies = {"stop": self._stop, "skip": self._skip, "rollback": self._roll_back}
        policies[self.config.nan_policy](story, progress)
        return Verdict.DISCARD

    def _note_finite(self, numbers: UpdateNumbers, progress: Progress) -> None:
        progress.skipped_in_a_row = 0
        self._has_learned = True
        losses = numbers.losses[: self.world.processes // self.world.pipeline.size]  # those of the last stages
        values = {"loss": sum(losses) / len(losses), "grad_norm": numbers.norm}
        self.spikes.follow(progress.step + 1, values, lambda: self.diagnosis.suspects(numbers, progress))

    # -------------------------------------------------------------------------------------------- policies

    def _remedy(self) -> str:
        if self._restorable:
            return f"nothing was saved since the last checkpoint; resume from it with --auto_resume and {CHANGES}"
        return f"nothing was saved yet; {RESTART}"

    def _stop(self, story: str, _progress: Progress) -> None:
        raise DivergedError(f"{story}; {self._remedy()}")

    def _skip(self, story: str, progress: Progress) -> None:
        """Count the update as skipped and restore the running statistics that its forward passes have changed."""
        progress.skipped_updates += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= MAX_SKIPPED:
            raise DivergedError(f"{story}, the {MAX_SKIPPED}th skipped update in a row; {self._remedy()}")
        for buffer, before in self._buffers:
            paddle.assign(before, output=buffer)
        logger.warning("%s; this update is skipped (--nan_policy skip)", story)

    def _roll_back(self, story: str, progress: Progress) -> None:
        """Restore everything but the position from the newest readable checkpoint; all processes must call.

        Training continues with the next images and does not go back to those since that checkpoint. PaLM's training did
        the same: its loss did not spike again on other data (Chowdhery et al. 2022, section 5.1).
        """
        if not self._restorable:
            raise DivergedError(f"{story}, and there is no checkpoint yet for --nan_policy rollback; {RESTART}")
        if progress.rollbacks_in_a_row == MAX_ROLLBACKS:
            raise DivergedError(
                f"{story}, after {MAX_ROLLBACKS} rollbacks without a checkpoint in between; {self._remedy()}"
            )
        path = self._restore_newest()
        progress.rollbacks += 1
        progress.rollbacks_in_a_row += 1
        self._has_learned = False
        logger.warning("%s; restored weights and optimizer from %s (--nan_policy rollback)", story, path)

    def _restore_newest(self) -> Path:
        """Restore the newest checkpoint that all processes can read and return its path; all processes must call."""
        for path in reversed(self._restorable):
            stored = self._read(path)
            self.world.barrier()  # reading can take longer than the timeout of a reduction
            unread = self.world.largest([float(stored is None)])[0]
            if stored is not None and not unread:
                self.state.restore(stored)
                return path
        raise CheckpointError("--nan_policy rollback cannot read any checkpoint of this run; see the warnings")

    def _read(self, path: Path) -> Checkpoint | None:
        try:
            return checkpoint_file.load(path)
        except UserError as error:
            logger.warning("ignoring unusable checkpoint: %s", error)
            return None
