"""The same seed gives the same run, whatever decodes the images and however many processes share the batch."""

from __future__ import annotations

import pytest

from plsc_mae.train import setup

pytestmark = pytest.mark.compat


def losses(records: list[dict]) -> list[float]:
    return [record["loss"] for record in records]


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize(
    "run", ["mae", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cae", "simmim"))], indirect=True
)
def test_losses_do_not_depend_on_the_number_of_workers(run):
    flags = "--batch_size 6 --max_train_step 20"
    alone = losses(run.here("w0", flags))
    assert len(alone) == 20
    assert losses(run.here("w3", f"{flags} --num_workers 3")) == alone  # 3 workers do not divide 20 batches


@pytest.mark.long
@pytest.mark.parametrize(
    ("run", "strided_views"),
    [
        pytest.param("mae", "0", marks=pytest.mark.slow),
        ("mae", "1"),
        pytest.param("cae", "0", marks=pytest.mark.once),
        pytest.param("cae", "1", marks=pytest.mark.slow),
    ],
    indirect=["run"],
)
def test_two_processes_follow_one(run, strided_views):
    """With strided views on, as on GPU, a strided gradient would be averaged wrongly by Paddle 3.3.1."""
    flags = "--max_train_step 12 --drop_path 0 --vis_freq 1"
    one = run.here("one", f"--batch_size 16 {flags}")
    two = run.elsewhere("two", f"--batch_size 8 {flags}", 2, FLAGS_use_stride_kernel=strided_views)
    assert len(one) == 12
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    norms = [record["grad_norm"] for record in one]
    assert [record["grad_norm"] for record in two] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize(
    "run", ["mae", *(pytest.param(m, marks=pytest.mark.once) for m in ("cae", "simmim"))], indirect=True
)
def test_accumulation_follows_the_large_batch(run):
    large = run.here("large", "--batch_size 12 --max_train_step 10 --drop_path 0")
    small = run.here("small", "--batch_size 6 --accum_iter 2 --max_train_step 10 --print_freq 2 --drop_path 0")
    assert losses(small) == pytest.approx(losses(large), rel=1e-5)
    assert [record["lr"] for record in small] == [record["lr"] for record in large]


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_deterministic_kernels_are_chosen_before_the_run_and_change_nothing_on_cpu(run, monkeypatch):
    flags, choices = "--batch_size 6 --max_train_step 3", []
    usual = losses(run.here("usual", flags))
    choose = setup.choose_kernels
    monkeypatch.setattr(setup, "choose_kernels", lambda **wanted: (choices.append(wanted), choose(**wanted)))
    assert losses(run.here("deterministic", f"{flags} --deterministic")) == usual
    run.here("after", "--batch_size 6 --max_train_step 1")
    assert choices == [{"deterministic": True}, {"deterministic": False}]


@pytest.mark.once
@pytest.mark.long
def test_the_loss_falls(run):
    records = run.here("learn", "--batch_size 12 --blr 1e-1 --drop_path 0")
    first, last = losses(records)[:5], losses(records)[-5:]
    assert sum(last) < 0.92 * sum(first)  # 0.66 to 0.87 measured
