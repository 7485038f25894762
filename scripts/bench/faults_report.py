"""Print the tests of the faults that faults.sh injects, or tables of their results from pytest's XML files.

Needs the standard library only.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CAMPAIGN = "tests/train/test_kill_campaign.py"
# Tuples of the kind of fault, the expected outcome, and one or more tests.
FAULTS = [
    (
        "power lost at any call of a save, in any state of the disk",
        "a whole checkpoint is left, the old or the new",
        "tests/train/checkpoint/test_power_loss.py::test_a_whole_checkpoint_survives_any_loss_of_power",
    ),
    (
        "disk full while training",
        "warning, the run continues; same files and bits as with enough room",
        "tests/train/checkpoint/test_saver.py::test_a_run_outlives_a_full_disk",
    ),
    (
        "disk full when the run has ended",
        "waits for room, then saves",
        "tests/train/checkpoint/test_saver.py::test_a_finished_run_waits_for_space",
    ),
    (
        "disk that stays full, also with SIGTERM",
        "exit code 2, old checkpoint intact, continues later",
        "tests/train/checkpoint/test_saver.py::test_a_run_that_cannot_save_says_so_in_the_end",
    ),
    (
        "disk full while log lines are written",
        "lines wait in memory, none is lost",
        "tests/train/log/test_logs.py::test_lines_wait_in_memory_for_space",
    ),
    (
        "a save that fails",
        "the old file stays",
        "tests/train/checkpoint/test_file.py::test_a_save_that_fails_leaves_the_old_file",
    ),
    (
        "disk that returns other bytes than were written",
        "noticed, the file does not get its final name",
        "tests/train/checkpoint/test_file.py::test_what_is_read_back_otherwise_than_written_gets_no_name",
    ),
    (
        "changed byte in a checkpoint",
        "refused",
        "tests/train/checkpoint/test_file.py::test_one_changed_byte_is_noticed",
    ),
    ("truncated checkpoint", "refused", "tests/train/checkpoint/test_file.py::test_a_cut_file_is_noticed"),
    (
        "any damage to the newest checkpoint",
        "the previous one is found",
        "tests/train/checkpoint/test_file.py::test_any_damage_to_the_newest_falls_back",
    ),
    (
        "newest checkpoint of a run damaged, then all",
        "continues from the previous one, same losses; exit code 2",
        "tests/train/test_continuation.py::test_damaged_checkpoints_are_passed_over_but_not_all_of_them",
    ),
    (
        "damaged lines in a log",
        "only they are dropped",
        "tests/train/log/test_logs.py::test_damaged_lines_in_the_middle_go_alone",
    ),
    (
        "process ends between two files of one save",
        "the missing ones are written, same bits",
        "tests/train/test_signals.py::test_a_kill_between_two_files_leaves_none_out",
    ),
    (
        "SIGTERM at any moment",
        "saves, exit code 143, same bits",
        "tests/train/test_signals.py::test_any_moment_will_do",
    ),
    (
        "SIGTERM while evaluating",
        "evaluation is repeated, same bits",
        "tests/train/test_signals.py::test_an_evaluation_that_is_left_off_is_made_again",
    ),
    (
        "SIGTERM to the launcher of two processes",
        "both save together, same bits",
        "tests/train/test_signals.py::test_sigterm_to_two_processes",
    ),
    (
        "loss not finite, policy stop",
        "exit code 3, weights never see it, report names images and layer",
        "tests/train/nonfinite/test_policy.py::test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_see_it",
    ),
    (
        "gradient alone not finite",
        "exit code 3, report names parameters",
        "tests/train/nonfinite/test_policy.py::test_a_gradient_alone_stops_it_too",
    ),
    (
        "loss not finite, policy skip",
        "update left out, nothing else changes",
        "tests/train/nonfinite/test_policy.py::test_a_skipped_update_changes_nothing_and_the_run_goes_on",
    ),
    (
        "ten losses in a row not finite, with a stop between",
        "exit code 3",
        "tests/train/nonfinite/test_policy.py::test_ten_skipped_updates_in_a_row_are_too_many_also_where_the_run_was_stopped_between",
    ),
    (
        "loss not finite, policy rollback",
        "weights of the last checkpoint, later images",
        "tests/train/nonfinite/test_policy.py::test_a_rollback_takes_the_weights_back_and_leaves_out_the_images_since",
    ),
    (
        "the same with a damaged checkpoint",
        "rolls back to the previous one",
        "tests/train/nonfinite/test_policy.py::test_a_rollback_passes_damaged_checkpoints_over",
    ),
    (
        "loss of one of two processes not finite",
        "both stop with exit code 3",
        "tests/train/nonfinite/test_policy.py::test_all_processes_stop_for_one_of_them",
    ),
    (
        "float16 gradients overflow",
        "loss scale halves, no fault",
        "tests/train/nonfinite/test_policy.py::test_an_overflow_halves_the_loss_scale_and_is_no_fault",
    ),
    (
        "float16 gradients overflow at the smallest scale",
        "exit code 3",
        "tests/train/nonfinite/test_policy.py::test_overflow_at_the_smallest_loss_scale_is_a_fault",
    ),
    (
        "spike of the loss",
        "recorded with its images",
        "tests/train/nonfinite/test_policy.py::test_a_spike_is_written_down_with_its_images",
    ),
    (
        "file that is empty, not an image or missing",
        "one sentence with its path",
        "tests/data/test_decode.py::test_files_that_are_not_images_are_named_with_their_path",
    ),
    (
        "pipe, endless device, 64 GiB, link to itself instead of an image",
        "rejected immediately with its path",
        "tests/data/test_decode.py::test_files_that_could_hang_or_fill_the_memory_are_rejected_immediately",
    ),
    (
        "image truncated",
        "error",
        "tests/data/test_decode.py::test_truncated_jpeg_is_an_error",
        "tests/data/test_decode.py::test_truncated_png_is_an_error",
    ),
    (
        "image without permission",
        "one sentence with its path",
        "tests/data/test_decode.py::test_a_file_that_may_not_be_read_is_named",
    ),
    ("decompression bomb", "error", "tests/data/test_decode.py::test_decompression_bomb_is_an_error"),
    (
        "images vanish during an epoch",
        "one sentence, or skipped",
        "tests/data/test_loader.py::test_files_that_vanish_during_the_epoch",
    ),
    (
        "loader workers killed in a run",
        "replaced, same bits",
        "tests/train/test_data_faults.py::test_killed_workers_change_nothing",
    ),
    (
        "loader workers that keep dying",
        "one sentence",
        "tests/data/test_loader.py::test_workers_that_keep_dying_are_a_data_error",
    ),
    (
        "a file hangs in a run",
        "exit code 2 with its name",
        "tests/train/test_data_faults.py::test_a_file_that_is_not_read_in_time_ends_the_run_with_its_name",
    ),
    (
        "a file crashes or hangs its worker",
        "named, or skipped like a bad image",
        "tests/data/test_loader.py::test_a_file_that_crashes_or_hangs_its_worker_is_named",
        "tests/data/test_loader.py::test_a_file_that_crashes_or_hangs_its_worker_is_skipped_like_a_bad_one",
    ),
    (
        "/dev/shm full",
        "nothing: no batch is in it",
        "tests/data/test_workers.py::test_batches_are_in_no_file_system",
    ),
    (
        "no memory for a batch",
        "one sentence",
        "tests/data/test_workers.py::test_too_little_memory_is_one_sentence",
    ),
    (
        "the parent of loader workers ends or is killed",
        "no worker is left",
        "tests/data/test_workers.py::test_workers_end_with_their_parent",
    ),
    (
        "a process of several killed",
        "the others end within 10 s, name it, exit code 1",
        "tests/parallel/test_failure_detector.py::test_a_killed_process_ends_the_others",
    ),
    (
        "a process of two launchers killed while training",
        "the other launcher ends within 30 s; no orphan, no shared memory",
        "tests/parallel/test_failure_detector.py::test_a_training_run_on_two_nodes_ends_when_a_process_is_killed",
    ),
    (
        "a process killed while others wait at a barrier",
        "they end within 30 s",
        "tests/parallel/test_failure_detector.py::test_waiting_at_a_barrier_ends_too",
    ),
    (
        "a mistake or bug in one process",
        "reported by all, with its exit code",
        "tests/parallel/test_failure_detector.py::test_a_mistake_of_one_process_is_told_by_all_with_its_exit_code",
        "tests/parallel/test_failure_detector.py::test_a_bug_keeps_its_traceback_and_ends_the_others",
    ),
]


@dataclass
class Tally:
    """Counts of test outcomes for one row of a table."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    kills: collections.Counter[str] = field(default_factory=collections.Counter)

    def add(self, case: ET.Element) -> None:
        """Count the outcome of one test."""
        if case.find("failure") is not None or case.find("error") is not None:
            self.failed += 1
        elif case.find("skipped") is not None:
            self.skipped += 1
        else:
            self.passed += 1

    def summary(self) -> str:
        """Return the text of the row's last column."""
        total = self.passed + self.failed + self.skipped
        if not total:
            return "not run"
        return f"{self.passed} of {total}" + (f", {self.skipped} skipped" if self.skipped else "")


def node_of(case: ET.Element) -> str:
    """Return the pytest node id of the test function to which a result belongs."""
    name = (case.get("name") or "").partition("[")[0]
    return f"{(case.get('classname') or '').replace('.', '/')}.py::{name}"


def read(paths: Iterable[Path]) -> Iterator[ET.Element]:
    """Yield the last result of every test in the files, which are read in the order of their names."""
    found = {}
    for path in sorted(paths):
        for case in ET.parse(path).iter("testcase"):
            found[case.get("classname"), case.get("name")] = case
    yield from found.values()


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table in Markdown."""
    header = list(header)
    for row in (header, ["---"] * len(header), *rows):
        print("|", " | ".join(str(cell) for cell in row), "|")
    print()


def report_kills(cases: Iterable[ET.Element]) -> int:
    """Print the outcomes of the killed runs and return the number of unexpected ones."""
    rows: dict[tuple[str, str, int], Tally] = collections.defaultdict(Tally)
    total = Tally()
    for case in cases:
        properties = {p.get("name"): json.loads(p.get("value") or "") for p in case.iter("property")}
        row = rows[properties.get("method", "?"), properties.get("phase", "?"), properties.get("processes", 0)]
        for tally in (row, total):
            tally.add(case)
            tally.kills.update(kill.split()[0].rstrip(",") for kill in properties.get("kills", ()))
    moments = ("starting", "training", "saving", "evaluating")
    head = ("method", "phase", "processes", *(f"killed {moment}" for moment in moments), "equal final states")
    lines = [(*key, *(row.kills[moment] for moment in moments), row.summary()) for key, row in sorted(rows.items())]
    table(head, [*lines, ("all", "", "", *(total.kills[moment] for moment in moments), total.summary())])
    print(f"{sum(total.kills.values())} kills in {total.passed + total.failed} runs, {total.failed} not as expected\n")
    return total.failed


def report_faults(cases: list[ET.Element]) -> int:
    """Print the outcomes of the injected faults and return the number of unexpected ones."""
    rows, wrong = [], 0
    for kind, outcome, *nodes in FAULTS:
        tally = Tally()
        for case in cases:
            if node_of(case) in nodes:
                tally.add(case)
        wrong += tally.failed
        rows.append((kind, tally.passed + tally.failed, outcome, tally.summary()))
    table(("fault", "count", "expected outcome", "passed"), rows)
    print(f"{len(rows)} kinds of fault, {sum(row[1] for row in rows)} injected, {wrong} not as expected")
    return wrong


def main() -> int:
    """Print the tests to run or the tables of their results; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", action="store_true", help="print the names of the tests and exit")
    parser.add_argument("results", nargs="*", type=Path, help="XML files that pytest wrote")
    arguments = parser.parse_args()
    if arguments.tests:
        print("\n".join([CAMPAIGN, *(node for _, _, *nodes in FAULTS for node in nodes)]))
        return 0
    cases = list(read(arguments.results))
    campaign = [case for case in cases if node_of(case).startswith(f"{CAMPAIGN}::")]
    return 1 if report_kills(campaign) + report_faults(cases) else 0


if __name__ == "__main__":
    sys.exit(main())
