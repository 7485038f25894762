"""List the faults that faults.sh injects, with their expected outcomes, and print the results from pytest's XML.

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
# Kind of fault, expected outcome, test functions.
FAULTS = [
    (
        "power loss at any system call of a save, with any state of the disk afterwards",
        "a complete checkpoint remains, the old or the new one",
        "tests/train/checkpoint/test_power_loss.py::test_a_whole_checkpoint_survives_any_loss_of_power",
    ),
    (
        "disk full during training",
        "warning, training continues; same files and bits as with space",
        "tests/train/checkpoint/test_saver.py::test_a_run_outlives_a_full_disk",
    ),
    (
        "disk full at the end of the run",
        "waits for space, then saves",
        "tests/train/checkpoint/test_saver.py::test_a_finished_run_waits_for_space",
    ),
    (
        "disk stays full, also with SIGTERM",
        "exit code 2, old checkpoint intact, the run can be resumed",
        "tests/train/checkpoint/test_saver.py::test_a_run_that_cannot_save_says_so_in_the_end",
    ),
    (
        "disk full during writing of log lines",
        "lines wait in memory, no line is lost",
        "tests/train/log/test_logs.py::test_lines_wait_in_memory_for_space",
    ),
    (
        "failed save",
        "the old file remains",
        "tests/train/checkpoint/test_file.py::test_a_save_that_fails_leaves_the_old_file",
    ),
    (
        "disk returns other bytes than were written",
        "detected, the file is not renamed to its final name",
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
        "the previous checkpoint is used",
        "tests/train/checkpoint/test_file.py::test_any_damage_to_the_newest_falls_back",
    ),
    (
        "newest checkpoint of a run damaged, then all of them",
        "resumes from the previous checkpoint, same losses; then exit code 2",
        "tests/train/test_continuation.py::test_damaged_checkpoints_are_passed_over_but_not_all_of_them",
    ),
    (
        "damaged lines in a log",
        "only these lines are dropped",
        "tests/train/log/test_logs.py::test_damaged_lines_in_the_middle_go_alone",
    ),
    (
        "process killed between two files of one save",
        "the missing files are written, same bits",
        "tests/train/test_signals.py::test_a_kill_between_two_files_leaves_none_out",
    ),
    (
        "SIGTERM at any moment",
        "saves, exit code 143, same bits",
        "tests/train/test_signals.py::test_any_moment_will_do",
    ),
    (
        "SIGTERM during evaluation",
        "the evaluation is repeated, same bits",
        "tests/train/test_signals.py::test_an_evaluation_that_is_left_off_is_made_again",
    ),
    (
        "SIGTERM to the launcher of two processes",
        "both save together, same bits",
        "tests/train/test_signals.py::test_sigterm_to_the_launcher_of_two_processes",
    ),
    (
        "non-finite loss, policy stop",
        "exit code 3, weights unchanged, report names images and layer",
        "tests/train/nonfinite/test_policy.py::test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_see_it",
    ),
    (
        "non-finite gradient with a finite loss",
        "exit code 3, report names parameters",
        "tests/train/nonfinite/test_policy.py::test_a_gradient_alone_stops_it_too",
    ),
    (
        "non-finite loss, policy skip",
        "the update is skipped, nothing else changes",
        "tests/train/nonfinite/test_policy.py::test_a_skipped_update_changes_nothing_and_the_run_goes_on",
    ),
    (
        "ten non-finite losses in a row, with a restart in between",
        "exit code 3",
        "tests/train/nonfinite/test_policy.py::test_ten_skipped_updates_in_a_row_are_too_many_also_where_the_run_was_stopped_between",
    ),
    (
        "non-finite loss, policy rollback",
        "weights of the newest checkpoint, training continues with the next images",
        "tests/train/nonfinite/test_policy.py::test_a_rollback_takes_the_weights_back_and_leaves_out_the_images_since",
    ),
    (
        "non-finite loss, policy rollback, newest checkpoint damaged",
        "rolls back to the previous checkpoint",
        "tests/train/nonfinite/test_policy.py::test_a_rollback_passes_damaged_checkpoints_over",
    ),
    (
        "non-finite loss in one of two processes",
        "both stop with exit code 3",
        "tests/train/nonfinite/test_policy.py::test_all_processes_stop_for_one_of_them",
    ),
    (
        "float16 gradients overflow",
        "the loss scale is halved, the run continues",
        "tests/train/nonfinite/test_policy.py::test_an_overflow_halves_the_loss_scale_and_is_no_fault",
    ),
    (
        "float16 gradients overflow at the smallest loss scale",
        "exit code 3",
        "tests/train/nonfinite/test_policy.py::test_overflow_at_the_smallest_loss_scale_is_a_fault",
    ),
    (
        "loss spike",
        "recorded with its images",
        "tests/train/nonfinite/test_policy.py::test_a_spike_is_written_down_with_its_images",
    ),
    (
        "empty file, other file type, or missing file instead of an image",
        "one-sentence error with the path",
        "tests/data/test_decode.py::test_what_is_no_image_is_named_with_its_path",
    ),
    (
        "pipe, endless device, 64 GiB file, or link to itself instead of an image",
        "refused at once with the path",
        "tests/data/test_decode.py::test_what_could_hang_or_fill_the_memory_is_refused_at_once",
    ),
    (
        "truncated image",
        "error",
        "tests/data/test_decode.py::test_truncated_jpeg_is_an_error",
        "tests/data/test_decode.py::test_truncated_png_is_an_error",
    ),
    (
        "image without read permission",
        "one-sentence error with the path",
        "tests/data/test_decode.py::test_a_file_that_may_not_be_read_is_named",
    ),
    ("decompression bomb", "error", "tests/data/test_decode.py::test_decompression_bomb_is_an_error"),
    (
        "images deleted during an epoch",
        "one-sentence error, or skipped",
        "tests/data/test_loader.py::test_files_that_vanish_during_the_epoch",
    ),
    (
        "loader workers killed during a run",
        "replaced, same bits",
        "tests/train/test_data_faults.py::test_killed_workers_change_nothing",
    ),
    (
        "loader workers that keep dying",
        "one-sentence error",
        "tests/data/test_loader.py::test_workers_that_keep_dying_are_a_data_error",
    ),
    (
        "reading a file hangs during a run",
        "exit code 2 with the file's name",
        "tests/train/test_data_faults.py::test_a_file_that_is_not_read_in_time_ends_the_run_with_its_name",
    ),
    (
        "a file crashes or stops its worker",
        "named, or skipped like a bad image",
        "tests/data/test_loader.py::test_a_file_that_ends_or_stops_its_worker_is_named",
        "tests/data/test_loader.py::test_a_file_that_ends_or_stops_its_worker_is_skipped_like_a_bad_one",
    ),
    (
        "/dev/shm full",
        "no effect: batches do not use it",
        "tests/data/test_workers.py::test_batches_are_in_no_file_system",
    ),
    (
        "too little memory for a batch",
        "one-sentence error",
        "tests/data/test_workers.py::test_too_little_memory_is_one_sentence",
    ),
    (
        "parent process of loader workers exits or is killed",
        "no worker remains",
        "tests/data/test_workers.py::test_workers_end_with_their_parent",
    ),
    (
        "one of several processes killed",
        "the others exit within 10 s with code 1 and name the killed process",
        "tests/parallel/test_failure_detector.py::test_a_killed_process_ends_the_others",
    ),
    (
        "a process of two launchers killed during training",
        "the other launcher exits within 30 s; no orphan processes, no shared memory left",
        "tests/parallel/test_failure_detector.py::test_a_training_run_on_two_nodes_ends_when_a_process_is_killed",
    ),
    (
        "one process killed, the others wait at a barrier",
        "the others exit within 30 s",
        "tests/parallel/test_failure_detector.py::test_waiting_at_a_barrier_ends_too",
    ),
    (
        "user error or bug in one process",
        "all processes report it and exit with its code",
        "tests/parallel/test_failure_detector.py::test_a_mistake_of_one_process_is_told_by_all_with_its_exit_code",
        "tests/parallel/test_failure_detector.py::test_a_bug_keeps_its_traceback_and_ends_the_others",
    ),
]


@dataclass
class Tally:
    """Counts of test outcomes for one row of a table.

    Attributes:
        passed: tests that passed.
        failed: tests that failed or had an error.
        skipped: tests that were skipped.
        kills: kills by phase of the run.
    """

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    kills: collections.Counter[str] = field(default_factory=collections.Counter)

    def add(self, case: ET.Element) -> None:
        """Add the outcome of one test."""
        if case.find("failure") is not None or case.find("error") is not None:
            self.failed += 1
        elif case.find("skipped") is not None:
            self.skipped += 1
        else:
            self.passed += 1

    def summary(self) -> str:
        """Return the text of a table's last column, such as "3 of 4, 1 skipped"."""
        total = self.passed + self.failed + self.skipped
        if not total:
            return "not run"
        return f"{self.passed} of {total}" + (f", {self.skipped} skipped" if self.skipped else "")


def node_of(case: ET.Element) -> str:
    """Return pytest's id of the test function of a result, without parameters."""
    name = (case.get("name") or "").partition("[")[0]
    return f"{(case.get('classname') or '').replace('.', '/')}.py::{name}"


def read(paths: Iterable[Path]) -> Iterator[ET.Element]:
    """Yield the last result of every test; files are read in the order of their names."""
    found = {}
    for path in sorted(paths):
        for case in ET.parse(path).iter("testcase"):
            found[case.get("classname"), case.get("name")] = case
    yield from found.values()


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a Markdown table."""
    header = list(header)
    for row in (header, ["---"] * len(header), *rows):
        print("|", " | ".join(str(cell) for cell in row), "|")
    print()


def report_kills(cases: Iterable[ET.Element]) -> int:
    """Print the table of the killed runs; return the number of runs whose final state differs."""
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
    """Print the table of the injected faults; return the number of tests that failed."""
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
    """Print the ids of the tests to run, or the tables of their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", action="store_true", help="print the ids of the tests to run and exit")
    parser.add_argument("results", nargs="*", type=Path, help="XML files written by pytest --junitxml")
    arguments = parser.parse_args()
    if arguments.tests:
        print("\n".join([CAMPAIGN, *(node for _, _, *nodes in FAULTS for node in nodes)]))
        return 0
    cases = list(read(arguments.results))
    campaign = [case for case in cases if node_of(case).startswith(f"{CAMPAIGN}::")]
    return 1 if report_kills(campaign) + report_faults(cases) else 0


if __name__ == "__main__":
    sys.exit(main())
