"""The faults that faults.sh injects, what is expected of each, and the tables of what pytest's XML says came of it.

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
# Kind of fault, expected outcome, tests: a file, or functions of it.
FAULTS = [
    (
        "power lost at any call of a save, in any state of the disk",
        "a whole checkpoint is left, the old or the new",
        "tests/train/test_power_loss.py::test_a_whole_checkpoint_survives_any_loss_of_power",
    ),
    (
        "disk full while training",
        "warning, the run goes on; files and bits of a run that had room",
        "tests/train/test_full_disk.py::test_a_run_outlives_a_full_disk",
    ),
    (
        "disk full when the run has ended",
        "waits for room, then saves",
        "tests/train/test_full_disk.py::test_a_finished_run_waits_for_space",
    ),
    (
        "disk that stays full, also with SIGTERM",
        "exit code 2, old checkpoint intact, goes on later",
        "tests/train/test_full_disk.py::test_a_run_that_cannot_save_says_so_in_the_end",
    ),
    (
        "disk full while log lines are written",
        "lines wait in memory, none is lost",
        "tests/train/test_logs.py::test_lines_wait_in_memory_for_space",
    ),
    (
        "a save that fails",
        "the old file stays",
        "tests/train/test_checkpoint.py::test_a_save_that_fails_leaves_the_old_file",
    ),
    (
        "disk that gives back other bytes than were written",
        "noticed, the file gets no name",
        "tests/train/test_checkpoint.py::test_what_is_read_back_otherwise_than_written_gets_no_name",
    ),
    (
        "changed byte in a checkpoint",
        "refused",
        "tests/train/test_checkpoint.py::test_one_changed_byte_is_noticed",
    ),
    ("checkpoint cut off", "refused", "tests/train/test_checkpoint.py::test_a_cut_file_is_noticed"),
    (
        "any damage to the newest checkpoint",
        "the one before is found",
        "tests/train/test_checkpoint.py::test_any_damage_to_the_newest_falls_back",
    ),
    (
        "newest checkpoint of a run damaged, then all",
        "goes on from the one before, same losses; exit code 2",
        "tests/train/test_continuation.py::test_damaged_checkpoints_are_passed_over_but_not_all_of_them",
    ),
    (
        "damaged lines in a log",
        "only they are dropped",
        "tests/train/test_logs.py::test_damaged_lines_in_the_middle_go_alone",
    ),
    (
        "process ends between two files of one save",
        "the missing ones are written, same bits",
        "tests/train/test_stop.py::test_a_kill_between_two_files_leaves_none_out",
    ),
    ("SIGTERM at any moment", "saves, exit code 143, same bits", "tests/train/test_stop.py::test_any_moment_will_do"),
    (
        "SIGTERM while evaluating",
        "evaluation is made again, same bits",
        "tests/train/test_stop.py::test_an_evaluation_that_is_left_off_is_made_again",
    ),
    (
        "SIGTERM to the launcher of two processes",
        "both save together, same bits",
        "tests/train/test_stop.py::test_sigterm_to_the_launcher_of_two_processes",
    ),
    (
        "loss not finite, policy stop",
        "exit code 3, weights never see it, report names images and layer",
        "tests/train/test_numerics.py::test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_see_it",
    ),
    (
        "gradient alone not finite",
        "exit code 3, report names parameters",
        "tests/train/test_numerics.py::test_a_gradient_alone_stops_it_too",
    ),
    (
        "loss not finite, policy skip",
        "update left out, nothing else changes",
        "tests/train/test_numerics.py::test_a_skipped_update_changes_nothing_and_the_run_goes_on",
    ),
    (
        "ten losses in a row not finite, with a stop between",
        "exit code 3",
        "tests/train/test_numerics.py::test_ten_skipped_updates_in_a_row_are_too_many_also_where_the_run_was_stopped_between",
    ),
    (
        "loss not finite, policy rollback",
        "weights of the last checkpoint, later images",
        "tests/train/test_numerics.py::test_a_rollback_takes_the_weights_back_and_leaves_out_the_images_since",
    ),
    (
        "the same with a damaged checkpoint",
        "rolls back to the one before",
        "tests/train/test_numerics.py::test_a_rollback_passes_damaged_checkpoints_over",
    ),
    (
        "loss of one of two processes not finite",
        "both stop with exit code 3",
        "tests/train/test_numerics.py::test_all_processes_stop_for_one_of_them",
    ),
    (
        "float16 gradients overflow",
        "loss scale halves, no fault",
        "tests/train/test_numerics.py::test_an_overflow_halves_the_loss_scale_and_is_no_fault",
    ),
    (
        "float16 gradients overflow at the smallest scale",
        "exit code 3",
        "tests/train/test_numerics.py::test_overflow_at_the_smallest_loss_scale_is_a_fault",
    ),
    (
        "spike of the loss",
        "written down with its images",
        "tests/train/test_numerics.py::test_a_spike_is_written_down_with_its_images",
    ),
    (
        "image that is empty, no image or not there",
        "one sentence with its path",
        "tests/data/test_decode.py::test_what_is_no_image_is_named_with_its_path",
    ),
    (
        "pipe, endless device, 64 GiB, link to itself instead of an image",
        "refused at once with its path",
        "tests/data/test_decode.py::test_what_could_hang_or_fill_the_memory_is_refused_at_once",
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
        "a file kills or stops its worker",
        "named, or skipped like a bad image",
        "tests/data/test_loader.py::test_a_file_that_ends_or_stops_its_worker_is_named",
        "tests/data/test_loader.py::test_a_file_that_ends_or_stops_its_worker_is_skipped_like_a_bad_one",
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
        "tests/parallel/test_peers.py::test_a_killed_process_ends_the_others",
    ),
    (
        "a process of two launchers killed while training",
        "the other launcher ends within 30 s; no orphan, no shared memory",
        "tests/parallel/test_peers.py::test_a_training_run_on_two_nodes_ends_when_a_process_is_killed",
    ),
    (
        "a process killed while others wait at a barrier",
        "they end within 30 s",
        "tests/parallel/test_peers.py::test_waiting_at_a_barrier_ends_too",
    ),
    (
        "a mistake or bug in one process",
        "told by all, with its exit code",
        "tests/parallel/test_peers.py::test_a_mistake_of_one_process_is_told_by_all_with_its_exit_code",
        "tests/parallel/test_peers.py::test_a_bug_keeps_its_traceback_and_ends_the_others",
    ),
]


@dataclass
class Tally:
    """Outcomes of the tests of one row."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    kills: collections.Counter[str] = field(default_factory=collections.Counter)

    def add(self, case: ET.Element) -> None:
        """Count one test."""
        if case.find("failure") is not None or case.find("error") is not None:
            self.failed += 1
        elif case.find("skipped") is not None:
            self.skipped += 1
        else:
            self.passed += 1

    def told(self) -> str:
        """As in the last column of a table."""
        total = self.passed + self.failed + self.skipped
        if not total:
            return "not run"
        return f"{self.passed} of {total}" + (f", {self.skipped} skipped" if self.skipped else "")


def node_of(case: ET.Element) -> str:
    """The test function of a result, as pytest is told of it."""
    name = (case.get("name") or "").partition("[")[0]
    return f"{(case.get('classname') or '').replace('.', '/')}.py::{name}"


def read(paths: Iterable[Path]) -> Iterator[ET.Element]:
    """The last result of every test in the files, in the order of their names."""
    found = {}
    for path in sorted(paths):
        for case in ET.parse(path).iter("testcase"):
            found[case.get("classname"), case.get("name")] = case
    yield from found.values()


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print in Markdown."""
    header = list(header)
    for row in (header, ["---"] * len(header), *rows):
        print("|", " | ".join(str(cell) for cell in row), "|")
    print()


def report_kills(cases: Iterable[ET.Element]) -> int:
    """Print what became of the killed runs; returns how many were not as the others."""
    rows: dict[tuple[str, str, int], Tally] = collections.defaultdict(Tally)
    total = Tally()
    for case in cases:
        told = {p.get("name"): json.loads(p.get("value") or "") for p in case.iter("property")}
        row = rows[told.get("method", "?"), told.get("phase", "?"), told.get("processes", 0)]
        for tally in (row, total):
            tally.add(case)
            tally.kills.update(kill.split()[0].rstrip(",") for kill in told.get("kills", ()))
    moments = ("starting", "training", "saving", "evaluating")
    head = ("method", "phase", "processes", *(f"killed {moment}" for moment in moments), "equal final states")
    lines = [(*key, *(row.kills[moment] for moment in moments), row.told()) for key, row in sorted(rows.items())]
    table(head, [*lines, ("all", "", "", *(total.kills[moment] for moment in moments), total.told())])
    print(f"{sum(total.kills.values())} kills in {total.passed + total.failed} runs, {total.failed} not as expected\n")
    return total.failed


def report_faults(cases: list[ET.Element]) -> int:
    """Print what became of the injected faults; returns how many were not as expected."""
    rows, wrong = [], 0
    for kind, outcome, *nodes in FAULTS:
        tally = Tally()
        for case in cases:
            if node_of(case) in nodes:
                tally.add(case)
        wrong += tally.failed
        rows.append((kind, tally.passed + tally.failed, outcome, tally.told()))
    table(("fault", "count", "expected outcome", "passed"), rows)
    print(f"{len(rows)} kinds of fault, {sum(row[1] for row in rows)} injected, {wrong} not as expected")
    return wrong


def main() -> int:
    """Print the tests to run, or the tables of their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", action="store_true", help="print the tests and end")
    parser.add_argument("results", nargs="*", type=Path, help="pytest's XML")
    arguments = parser.parse_args()
    if arguments.tests:
        print("\n".join([CAMPAIGN, *(node for _, _, *nodes in FAULTS for node in nodes)]))
        return 0
    cases = list(read(arguments.results))
    campaign = [case for case in cases if node_of(case).startswith(f"{CAMPAIGN}::")]
    return 1 if report_kills(campaign) + report_faults(cases) else 0


if __name__ == "__main__":
    sys.exit(main())
