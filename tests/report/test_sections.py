"""Sections of the report that have no test of the whole page."""

from __future__ import annotations

import dataclasses
import json
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from plsc_mae.analysis.class_counts import count_classes
from plsc_mae.report.page import STYLE
from plsc_mae.report.run_folder import RunFolder, read_run
from plsc_mae.report.sections import MAX_CLASSES, charts, classes, evaluations, representation, starts
from plsc_mae.report.sections import warnings as section_of_warnings
from plsc_mae.report.verdict import judge
from plsc_mae.train.class_results import ClassResults, EpochCounts


def folder(*epochs: dict[str, float]) -> RunFolder:
    return RunFolder(Path("run"), "", {}, (), epochs, (), {}, {})


def test_a_sweep_has_a_best_rate_in_place_of_a_loss():
    accuracies = {"epoch": 1, "test_acc1_lr0.1": 40.0, "test_acc1_lr10": 43.25}
    for loss, higher in ((1.2, "so higher ones may be better"), (1.4, "so higher ones will not help")):
        losses = {"test_loss_lr0.1": 1.3, "test_loss_lr10": loss}
        text = judge(folder({"epoch": 0, "train_loss_lr10": 1.1}, accuracies | losses)).text
        assert "the best rate is 10, with test_acc1 43.25 %" in text
        assert higher in text
    assert judge(folder({"epoch": 0})).text == "Unknown: the logs have no finite value of loss."


def test_a_classifier_lacks_an_evaluation_and_not_trivial_predictors():
    run = folder({"epoch": 0, "step": 2, "train_loss": 1.1})
    assert (
        "no epoch has ended with an evaluation yet"
        in judge(dataclasses.replace(run, options={"phase": "finetune"})).text
    )
    assert "no losses of trivial predictors" in judge(run).text


@pytest.mark.parametrize(("last", "epochs", "told"), [(0.97, 10, True), (0.999, 10, False), (0.97, 20, False)])
def test_a_finished_run_whose_loss_still_falls_needs_more_epochs(last, epochs, told):
    """The last tenth of the epochs may be flat, because the learning rate ends at 0."""
    losses = [2.0, 1.4, 1.2, 1.1, 1.05, 1.0, 1.0, 1.0, last, last]
    run = folder(*({"epoch": i, "step": i + 1, "train_loss": loss} for i, loss in enumerate(losses)))
    levels = {"loss": "loss", "losses": {"mean_color": 1.02}}
    text = judge(dataclasses.replace(run, trivial=levels, options={"epochs": epochs})).text
    assert text.startswith("Barely: ")
    assert ("It fell by 3.0% in the last fifth of the epochs: train for more epochs." in text) == told


def test_a_loss_above_its_start_needs_a_lower_rate():
    """It may have fallen in the last fifth of the epochs from even higher values."""
    updates = [{"epoch": i, "step": i + 1, "loss": loss} for i, loss in enumerate((19.0, 80000.0, 9000.0))]
    run = folder(*updates, *({"epoch": i, "step": i + 1, "train_loss": u["loss"]} for i, u in enumerate(updates)))
    levels = {"loss": "loss", "losses": {"mean_color": 1.02}}
    text = judge(dataclasses.replace(run, trivial=levels, options={"epochs": 3})).text
    assert text.startswith("Not yet: the loss is 9000, ")
    assert text.endswith("It started at 19, so lower the learning rate.")


def test_statistics_of_the_features_have_their_first_and_newest_values():
    run = folder({"step": 5}, {"step": 10, "feature_rank": 3.5}, {"step": 20, "feature_rank": 4.25})
    html = representation(run)
    assert "update 10" in html
    assert "update 20" in html
    assert 'value="3.5"' in html
    assert 'value="4.25"' in html
    assert "feature_alignment" not in html
    assert representation(folder({"step": 5})) == ""


def test_messages_keep_their_lines():
    """Control characters of names in them are escaped."""
    history = [
        {"event": "start", "step": 0},
        {"event": "warning", "step": 1, "message": "two\nlines <b>\x1b"},
        {"event": "end", "reason": "error: a\nb", "step": 2},
    ]
    run = RunFolder(Path("run"), "", {}, (), (), history, {}, {})
    assert "<td>error: a<br />b</td>" in starts(run)
    assert r"two<br />lines &lt;b&gt;\x1b" in section_of_warnings(run)


def test_columns_fit_the_page():
    """Long heads can break after "_"; the first column, such as times, cannot."""
    assert "train_<wbr />weight_<wbr />decay</th>" in evaluations(
        folder({"epoch": 0, "step": 1, "train_weight_decay": 0.05})
    )
    assert "td:first-child{white-space:nowrap}" in STYLE


def test_the_fixed_loss_is_drawn():
    html = charts(folder({"step": 10, "fixed_loss_to_trivial": 1.2}, {"step": 20, "fixed_loss_to_trivial": 0.9}))
    assert "best trivial predictor" in html


@pytest.mark.parametrize(
    ("metric", "title", "rises"), [("test_mAP", "mAP", True), ("test_r2", "R2", True), ("test_rmse", "error", False)]
)
def test_metrics_of_several_labels_and_of_numbers(metric, title, rises):
    epochs = [
        {"epoch": i, "step": 5 * (i + 1), "train_loss": 0.5, metric: value} for i, value in enumerate((0.5, 0.25))
    ]
    run = folder(*epochs)
    html = charts(run)
    assert f">{metric}<" in html
    assert title in html
    assert ("in epoch" in evaluations(run)) == rises
    assert (f"{metric} is 0.25" in judge(run).text) == rises


@pytest.mark.parametrize(("best", "answer"), [(-0.2, "not yet"), (0.03, "barely"), (0.4, "yes")])
def test_a_regression_is_compared_with_the_mean_of_the_labels(best, answer):
    epochs = [{"epoch": i, "step": i + 1, "train_loss": 1.0, "test_r2": value} for i, value in enumerate((best, -0.5))]
    verdict = judge(folder(*epochs))
    assert verdict.answer == answer
    assert "the mean of the labels" in verdict.text
    assert ("Try a higher learning rate" in verdict.text) == (answer != "yes")


@pytest.mark.parametrize(("best", "answer"), [(41.0, "not yet"), (43.0, "yes")])
def test_several_labels_are_compared_with_random_rankings(best, answer):
    epochs = [{"epoch": i, "step": i + 1, "train_loss": 0.5, "test_mAP": value} for i, value in enumerate((best, 9.0))]
    run = folder(*epochs)
    starts = [{"event": "start", "chance": 80.0}, {"event": "start", "chance": 42.5}, {"event": "end"}]
    verdict = judge(dataclasses.replace(run, history=starts))
    assert verdict.answer == answer
    assert verdict.text.startswith(f"{answer.capitalize()}: test_mAP is 9 %, at best {best:g} %.")
    assert "random rankings of the validation images reach up to 42.5 %" in verdict.text
    assert ("Try a higher learning rate" in verdict.text) == (answer != "yes")
    for history in ([], [{"event": "start", "chance": 100.0}]):
        assert judge(dataclasses.replace(run, history=history)).answer == "unknown"


def classified(
    labels: list[int], predicted: list[int], names: list[str], *accuracies: float, trained: list[int] | None = None
) -> RunFolder:
    """A classifier's run with these accuracies, whose best epoch ended with these predictions.

    `trained` is the number of training images of each class.
    """
    counts = count_classes(np.array(labels), np.array(predicted), len(names))
    last = counts._replace(correct=np.zeros_like(counts.correct))
    epochs = [{"epoch": i, "step": i + 1, "train_loss": 1.0, "test_acc1": x} for i, x in enumerate(accuracies)]
    results = ClassResults(names, EpochCounts(4, 5, last), EpochCounts(3, 4, counts), trained and np.array(trained))
    return dataclasses.replace(folder(*epochs), classes=results)


def test_the_worst_classes_come_first():
    run = classified([0] * 4 + [1] * 4 + [2], [0] * 4 + [2, 2, 0, 1, 2], ["cat", "d<o>g", "cow", "owl"], 77.0)
    html = classes(run)
    assert html.index("d&lt;o&gt;g") < html.index(">cat<")
    assert "2 images as 'cow'" in unescape(html)
    assert "after epoch 3" in html
    assert "1 class without" in html
    assert "No image is classified as" not in html
    assert classes(folder()) == ""


def test_classes_that_are_never_predicted_are_named_in_the_report():
    html = unescape(classes(classified([0, 0, 0, 1, 1, 1, 1], [0] * 7, ["cat", "dog"], 43.0)))
    assert "No image is classified as 'dog' (4 images)." in html


def test_many_classes_are_cut():
    numbers = list(range(MAX_CLASSES + 3))
    html = classes(classified(numbers, [(number + 1) % 40 for number in numbers][:-3] + numbers[-3:], ["c"] * 40, 9.0))
    assert html.count("<tr>") == MAX_CLASSES + 1
    assert "3 more classes with an accuracy of 100 %" in html


@pytest.mark.parametrize(("best", "answer"), [(52.0, "not yet"), (69.0, "yes")])
def test_a_classifier_is_compared_with_its_most_frequent_class(best, answer):
    """16 of 32 images are of class dog, so chance reaches 50 + 2 * 8.8 %."""
    verdict = judge(classified([0] * 16 + [1] * 16, [0] * 3 + [1] * 29, ["cat", "dog"], 40.0, best, 45.0))
    assert verdict.answer == answer
    assert verdict.text.startswith(f"{answer.capitalize()}: test_acc1 is 45 %, at best {best:g} %.")
    assert "50.0 % of the 32 validation images" in verdict.text
    assert ("docs/few-images.md" in verdict.text) == (answer == "not yet")
    assert verdict.advice == ""


@pytest.mark.parametrize(("best", "answer"), [(45.0, "not yet"), (70.0, "yes")])
def test_a_balanced_run_is_compared_with_guesses(best, answer):
    """Although its accuracy is below the share of class cat, 80 %; chance reaches 47.8 %."""
    labels = [0] * 80 + [1] * 10 + [2] * 10
    run = classified(labels, labels, ["cat", "dog", "owl"], 60.0, 70.0)
    epochs = [{**record, "test_balanced_acc": best} for record in run.epochs]
    verdict = judge(dataclasses.replace(run, epochs=epochs))
    assert verdict.answer == answer
    assert verdict.text.startswith(f"{verdict.answer.capitalize()}: test_balanced_acc is {best:g} %")
    assert "33.3 %" in verdict.text
    assert judge(run).answer == "not yet"


@pytest.mark.parametrize(("best", "answer"), [(40.0, "not yet"), (80.0, "in part")])
def test_a_classifier_that_misses_classes_has_learned_in_part(best, answer):
    run = classified(
        [0] * 16 + [1] * 16 + [2] * 4, [0] * 16 + [1] * 20, ["cat", "dog", "owl"], 40.0, best, trained=[9, 9, 3]
    )
    verdict = judge(run)
    assert verdict.answer == answer
    assert verdict.text.startswith(f"{answer.capitalize()}: test_acc1 is {best:g} %")
    assert ("as 'owl' (4 images); the classes are unbalanced" in verdict.text) == (answer == "in part")


def test_missed_classes_of_an_unbalanced_training_set_have_advice():
    labels, missed = [0] * 10 + [1] * 10, ([0] * 20, ["cat", "dog"], 50.0)
    run = classified(labels, *missed, trained=[80, 10])
    assert "unbalanced, 10 to 80 images: `plsc-mae finetune --balance_classes" in unescape(classes(run))
    assert "--balance_classes" not in classes(dataclasses.replace(run, options={"balance_classes": True}))
    for even in (classified(labels, *missed, trained=[12, 10]), classified([0] * 80 + [1] * 10, [0] * 90, *missed[1:])):
        assert "--balance_classes" not in classes(even)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ("phase: finetune\nepochs: 2\nblr: 0.001", "Try a higher --blr, for example 0.01 instead of 0.001"),
        (
            "phase: finetune\nepochs: 2\nblr: 0.1",
            "Try more epochs or a larger input, since --blr 0.1 is near the highest useful one, 0.1",
        ),
        ("phase: finetune\nblr: high", "Try a higher learning rate or more epochs, or check the classes with plsc-mae"),
    ],
)
def test_the_remedy_at_chance_follows_the_options_of_the_run(tmp_path, options, remedy):
    (tmp_path / "config.yaml").write_text(options)
    run = classified([0] * 16 + [1] * 16, [1] * 32, ["cat", "dog"], 40.0, 45.0)
    assert remedy in judge(dataclasses.replace(run, path=tmp_path)).text


@pytest.mark.parametrize(
    ("options", "early"),
    [
        ("warmup_epochs: 0\nepochs: 7", True),  # judged after a third, but three epochs at the peak of the rate
        ("warmup_epochs: 0\nepochs: 2", False),
        ("warmup_epochs: 3\nepochs: 5", True),
    ],
)
def test_an_unfinished_run_is_not_judged_early(tmp_path, options, early):
    (tmp_path / "config.yaml").write_text(f"phase: finetune\n{options}")
    run = classified([0] * 16 + [1] * 16, [1] * 32, ["cat", "dog"], 40.0, 45.0)
    verdict = judge(dataclasses.replace(run, path=tmp_path))
    assert verdict.answer == "not yet"
    assert ("2 of " in verdict.text) == ("config.yaml --auto_resume" in verdict.text) == early
    assert ("Try " in verdict.text) == (not early)


def test_the_most_frequent_class_is_named_without_control_characters():
    text = judge(classified([0] + [1] * 9, [1] * 10, ["cat", "dog{}\x1b"], 90.0)).text
    assert r"'dog{}\x1b', the most frequent class, is right for 90.0 %" in text
    assert "within chance" not in text  # 90 + 19 %: luck explains any accuracy
    assert "says little" in text


def test_a_top5_accuracy_that_is_always_100_is_left_out(tmp_path):
    def read(*values: float) -> str:
        lines = [{"epoch": i, "step": i, "test_acc1": 9.0, "test_acc5": value} for i, value in enumerate(values)]
        (tmp_path / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
        run = read_run(tmp_path)
        return charts(run) + evaluations(run)

    assert "acc5" not in read(100, 100)
    assert "test_acc5" in read(99, 100)
