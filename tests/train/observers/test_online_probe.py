"""The online probe learns, says so, and leaves no trace in the network."""

from __future__ import annotations

import json
import math

import numpy as np
import paddle
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.data.classes import ClassOrder
from plsc_mae.errors import CheckpointError
from plsc_mae.parallel.world import World
from plsc_mae.train.checkpoint.file import find_newest, load
from plsc_mae.train.observers.online_probe import OnlineProbe
from plsc_mae.weights.reader import Checkpoint

pytestmark = pytest.mark.compat
LOGGED = ("online_loss", "online_acc1")


def batches(count: int, size: int = 32, classes: int = 4, dim: int = 12, seed: int = 0):
    """Features of classes around centers of their own, in dimensions of very different places and scales."""
    rng = np.random.default_rng(seed)
    centers, scale, place = rng.standard_normal((classes, dim)), 10.0 ** rng.uniform(-3, 1, dim), 5 * rng.random(dim)
    for _ in range(count):
        labels = rng.integers(0, classes, size)
        features = place + scale * (centers[labels] + 0.3 * rng.standard_normal((size, dim)))
        yield paddle.to_tensor(features.astype(np.float32)), paddle.to_tensor(labels)


def learn(probe: OnlineProbe, data) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in probe(*batch).items()} for batch in data]


def stored(state) -> Checkpoint:
    """The state as a checkpoint gives it back."""
    arrays = dict(state["online_probe"])
    for name, accumulators in arrays.pop("optimizer").items():
        arrays |= {f"optimizer/{name}/{key}": value for key, value in accumulators.items()}
    return Checkpoint("file", {f"online_probe/{name}": value for name, value in arrays.items()}, {}, {})


@pytest.fixture
def black_and_white(tmp_path):
    """Black and white images, 12 each."""
    for name, shade in (("black", 0), ("white", 255)):
        (tmp_path / "shades" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / "shades" / name / f"{i}.png")
    return tmp_path / "shades"


def test_it_learns_features_of_any_scale():
    told = learn(OnlineProbe(12, 4, 0.01, World("cpu")), batches(60))
    assert told[0]["online_loss"] == pytest.approx(math.log(4), rel=1e-5)  # from zero: nothing is known
    assert np.mean([record["online_acc1"] for record in told[-10:]]) > 95
    assert told[-1]["online_loss"] < 0.3


def test_statistics_of_the_first_batches_are_those_of_all_their_images():
    """In float64; 1e-4 for the variance of dimensions whose mean is thousands of times their deviation."""
    probe, seen = OnlineProbe(12, 4, 0.01, World("cpu")), list(batches(10))
    learn(probe, seen)
    together = np.concatenate([features.numpy() for features, _ in seen]).astype(np.float64)
    np.testing.assert_allclose(probe.mean.numpy(), together.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(probe.variance.numpy(), together.var(axis=0), rtol=1e-4)
    before = probe.mean.numpy().copy()
    ((features, labels),) = batches(1, seed=1)
    probe(features, labels)
    np.testing.assert_allclose(probe.mean.numpy(), 0.9 * before + 0.1 * features.numpy().mean(axis=0), rtol=1e-5)


def test_it_goes_on_where_it_was_and_fits_its_own_data_only():
    world, data = World("cpu"), list(batches(8))
    whole = learn(OnlineProbe(12, 4, 0.01, world), data)
    first, second = OnlineProbe(12, 4, 0.01, world), OnlineProbe(12, 4, 0.01, world)
    learn(first, data[:4])
    state = stored(first.extra_state())
    assert second.load(state)
    assert learn(second, data[4:]) == whole[4:]
    assert not second.load(Checkpoint("file", {}, {}, {}))
    with pytest.raises(
        Exception, match="is for 4 classes and 12 features, this run has 5 and 12; resume with the data"
    ):
        OnlineProbe(12, 5, 0.01, world).load(state)


def test_it_keeps_the_outputs_of_its_classes():
    """Classes 9 and 10, sorted 10, 9 as text, become 09 and 10: the labels change and the learned outputs do not."""
    world, data = World("cpu"), list(batches(8, classes=2))
    whole = learn(OnlineProbe(12, 2, 0.01, world, ClassOrder(["10", "9"])), data)
    first, second = (OnlineProbe(12, 2, 0.01, world, ClassOrder(names)) for names in (["10", "9"], ["09", "10"]))
    learn(first, data[:4])
    state = first.extra_state()
    saved = Checkpoint("file", stored(state).tensors, {}, {"online_probe_classes": state["online_probe_classes"]})
    assert second.load(saved)
    assert learn(second, [(features, 1 - labels) for features, labels in data[4:]]) == whole[4:]
    assert second.extra_state()["online_probe_classes"] == ["10", "9"]
    with pytest.raises(CheckpointError, match="'8' in the data only, '9' in the checkpoint only; resume with the data"):
        OnlineProbe(12, 2, 0.01, world, ClassOrder(["10", "8"])).load(saved)


@pytest.mark.once
@pytest.mark.parametrize(
    "run", ["cae", *(pytest.param(m, marks=pytest.mark.slow) for m in ("mae", "simmim"))], indirect=True
)
def test_the_network_does_not_notice(run):
    """Bit for bit the same losses, gradients and weights, also under accumulation and drop path."""
    flags = "--batch_size 6 --accum_iter 2 --max_train_step 6 --print_freq 2"
    alone, probed = run.here("alone", flags), run.here("probed", f"{flags} --online_probe")
    assert not set(alone[0]) & set(LOGGED)
    assert set(probed[0]) == {*alone[0], *LOGGED}
    for name in ("loss", "grad_norm"):
        assert [record[name] for record in probed] == [record[name] for record in alone]
    ours, theirs = (load(find_newest(str(run.folder / name), "")).tensors for name in ("probed", "alone"))
    assert {name.partition("/")[0] for name in set(ours) - set(theirs)} == {"online_probe"}
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, name)


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize(
    "run", ["mae", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cae", "simmim"))], indirect=True
)
def test_it_learns_from_a_real_run_and_a_resume_changes_nothing(run, black_and_white):
    """Black and white can be told apart by a network that has learned nothing."""
    flags = f"--batch_size 6 --online_probe --online_probe_lr 0.01 --drop_path 0 --data_path {black_and_white}"
    whole = run.here("whole", f"{flags} --max_train_step 14")
    assert whole[0]["online_loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert {record["online_acc1"] for record in whole[-4:]} == {100.0}
    assert whole[-1]["online_loss"] < 0.5
    run.here("cut", f"{flags} --max_train_step 6")
    rest = run.here("cut", f"{flags} --max_train_step 14 --auto_resume")
    for name in ("loss", *LOGGED):
        assert [record[name] for record in rest] == [record[name] for record in whole]
    ours, theirs = (load(find_newest(str(run.folder / name), "")) for name in ("whole", "cut"))
    assert ours.meta["meters"] == theirs.meta["meters"]
    assert any(name.startswith("online_probe/optimizer/") for name in ours.tensors)
    for name, value in ours.tensors.items():
        np.testing.assert_array_equal(theirs.tensors[name], value, name)


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_a_run_may_take_it_up_later(run):
    run.here("late", "--batch_size 12 --max_train_step 3")
    rest = run.here("late", "--batch_size 12 --max_train_step 5 --auto_resume --online_probe")
    assert rest[3]["online_loss"] == pytest.approx(math.log(10), rel=1e-5)


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_two_processes_share_one_probe(run, shades):
    """Two processes follow one, and resuming both from the first one's checkpoint repeats them.

    If the two heads differed, the second process would not repeat its own losses.
    """
    flags = f"--epochs 2 --drop_path 0 --online_probe --knn_freq 1 --knn_k 5 --save_ckpt_freq 1 --data_path {shades}"
    one = run.here("one", f"--batch_size 12 {flags}")
    two = run.elsewhere("two", f"--batch_size 6 {flags}", 2, FLAGS_use_stride_kernel="1")
    for name in LOGGED:
        values = [record[name] for record in one]
        assert [record[name] for record in two] == pytest.approx(values, rel=1e-4, abs=1e-3)
    assert len({record["online_acc1"] for record in one}) > 1
    first = run.folder / "two/checkpoint-0.pd"
    rest = run.elsewhere("rest", f"--batch_size 6 {flags} --resume {first}", 2, FLAGS_use_stride_kernel="1")
    assert [record["online_loss"] for record in rest] == [record["online_loss"] for record in two[10:]]
    ours, theirs = (load(run.folder / name / "checkpoint-1.pd").tensors for name in ("two", "rest"))
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name], value, name)
    seen = [json.loads((run.folder / name / "log.txt").read_text().splitlines()[-1]) for name in ("one", "two")]
    for name in ("knn_acc1", "feature_rank", "feature_std", "feature_uniformity", "feature_cosine"):
        assert seen[1][name] == pytest.approx(seen[0][name], rel=1e-3), name


@pytest.mark.parametrize("run", ["mae"], indirect=True)
def test_images_without_labels_are_refused(run, capsys):
    words = run.arguments("none", f"--batch_size 2 --online_probe --data_path {run.images}/train/ring")
    assert main(["pretrain", *words]) == 2
    err = capsys.readouterr().err
    assert "ring have no classes, which are needed for --online_probe" in err
    assert err.count("\n") == 1
