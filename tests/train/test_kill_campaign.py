"""A campaign of kills: whatever a run does when SIGKILL comes, it goes on to the bits of one that was left alone.

Every kind of run is killed in each of four moments, of which chance chooses the exact time, the process and what the
rest does. CAMPAIGN_SEED=N gives another campaign; the same seed gives the same one, but for the machine's own timing.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from plsc_mae.data.demo import make_demo_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SEED = os.environ.get("CAMPAIGN_SEED", "0")
UPDATES = 10  # in an epoch
FLAGS = "--epochs 2 --save_ckpt_steps 3"
LOOKING = "--knn_freq 1 --knn_k 3 --feature_freq 1"
# On a real disk a flush takes its time; a tiny checkpoint would be saved before it is seen.
SLOW_DISK = "import os, time\nflush = os.fsync\nos.fsync = lambda file: (time.sleep(0.2), flush(file))[1]\n"


MOMENTS = ("starting", "training", "saving", "evaluating")


@dataclass(frozen=True)
class Scenario:
    """A kind of run."""

    method: str
    phase: str
    kind: str  # whose tiny network and options it has
    flags: str
    processes: int = 1
    moments: tuple[str, ...] = MOMENTS


SUCCESSOR = f"{LOOKING} --batch_size 12 --model pretrain_mae"
SCENARIOS = {
    "mae": Scenario("mae", "pretrain", "mae", f"{LOOKING} --batch_size 12"),
    "mae-accumulation": Scenario(
        "mae", "pretrain", "mae", f"{LOOKING} --batch_size 6 --accum_iter 2 --online_probe --clip_grad 0.5"
    ),
    "mae-2": Scenario("mae", "pretrain", "mae", f"{LOOKING} --batch_size 6", 2),
    "mae-tensor-2": Scenario(
        "mae", "pretrain", "mae", f"{LOOKING} --batch_size 12 --tensor_parallel 2", 2, MOMENTS[1:3]
    ),
    "cae": Scenario("cae", "pretrain", "cae", f"{LOOKING} --batch_size 12"),
    "cae-averaged": Scenario("cae", "pretrain", "cae", f"{LOOKING} --batch_size 12 --dual_path_ema 0.9"),
    "cae-2": Scenario("cae", "pretrain", "cae", f"{LOOKING} --batch_size 6", 2, MOMENTS[:2]),
    "mae_priv": Scenario("mae_priv", "pretrain", "mae", f"{SUCCESSOR}_tiny_patch16_224 --method mae_priv"),
    "mae_priv-accumulation": Scenario(
        "mae_priv", "pretrain", "mae", f"{SUCCESSOR}_tiny_patch16_224 --method mae_priv --batch_size 6 --accum_iter 2"
    ),
    "mae_pytorch": Scenario("mae_pytorch", "pretrain", "mae", f"{SUCCESSOR}_small_patch16_224 --method mae_pytorch"),
    "finetune": Scenario("mae", "finetune", "finetune", "--batch_size 12"),
    "finetune-accumulation": Scenario("mae", "finetune", "finetune", "--batch_size 6 --accum_iter 2"),
    "finetune-2": Scenario("mae", "finetune", "finetune", "--batch_size 6", 2),
    "finetune-pipeline-2": Scenario(
        "mae", "finetune", "finetune", "--batch_size 12 --pipeline_parallel 2", 2, MOMENTS[2:]
    ),
    "linprobe": Scenario("mae", "linprobe", "linprobe", "--batch_size 12"),
    "linprobe-sweep": Scenario("mae", "linprobe", "linprobe", "--batch_size 12 --lr_sweep 0.3 1 3"),
    "linprobe-attentive": Scenario("mae", "linprobe", "linprobe", "--batch_size 12 --linear_type attentive"),
    "linprobe-2": Scenario("mae", "linprobe", "linprobe", "--batch_size 6", 2, MOMENTS[::3]),
}


@pytest.fixture(scope="module")
def campaign_images(tmp_path_factory) -> Path:
    """120 training images, and enough others for an evaluation to last."""
    root = tmp_path_factory.mktemp("campaign") / "demo"
    make_demo_data(root, image_size=32, train_per_class=12, val_per_class=10)
    return root


@pytest.fixture(scope="module")
def whole(new_runs, campaign_images, tmp_path_factory):
    """Runs of a scenario, with the one that nothing happens to in the folder `whole`; made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "campaign-runs"
    shared.mkdir(exist_ok=True)

    def make(name: str):
        scenario, folder = SCENARIOS[name], shared / name
        runs = new_runs(scenario.kind, scenario.flags, campaign_images, folder)
        try:
            folder.mkdir()
        except FileExistsError:  # it is made, or another worker is about it
            deadline = time.monotonic() + 300
            while not (folder / "done").exists():
                assert time.monotonic() < deadline, f"no reference run of {name}"
                time.sleep(0.1)
        else:
            runs.elsewhere("whole", FLAGS, scenario.processes)
            (folder / "done").touch()
        return runs

    return make


@pytest.fixture
def slow_disk(tmp_path) -> str:
    """PYTHONPATH with which processes take 0.2 s to flush a file."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK)
    return f"{tmp_path}{os.pathsep}{ROOT}"


class Victim:
    """A run that is going to be killed."""

    def __init__(self, runs, name: str, process: subprocess.Popen[str], processes: int, chance: random.Random) -> None:
        self.runs, self.folder, self.process, self.processes = runs, runs.folder / name, process, processes
        self.name, self.chance = name, chance
        self.rank = chance.randrange(processes)
        self.pid = process.pid if processes == 1 else 0

    def wait_for(self, condition) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL the process; its launcher must end soon, and tell of it."""
        self.wait_for(self.find)
        os.kill(self.pid, 9)
        started = time.monotonic()
        self.process.communicate(timeout=60)
        assert time.monotonic() - started < 30
        assert self.process.returncode == -9 if self.processes == 1 else self.process.returncode not in (0, None)

    def find(self) -> bool:
        """Whether the process to be killed is known by now."""
        for entry in Path("/proc").glob("[0-9]*") if not self.pid else ():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                environ = (entry / "environ").read_bytes().split(b"\0") if parent == self.process.pid else []
            except OSError:
                continue  # it has ended meanwhile
            if b"PADDLE_TRAINER_ID=%d" % self.rank in environ:
                self.pid = int(entry.name)
        return self.pid > 0

    def last_step(self) -> int:
        """The last that is in the log."""
        return max((record["step"] for record in self.runs.complete_records(self.name)), default=0)

    def epochs(self) -> int:
        """How many epochs' ends are in the log."""
        path = self.folder / "log.txt"
        return path.read_text().count("\n") if path.exists() else 0

    def config_time(self) -> int:
        """When a start wrote the options."""
        path = self.folder / "config.yaml"
        return path.stat().st_mtime_ns if path.exists() else 0

    # ------------------------------------------------------------------ moments: kill, and tell where

    def starting(self) -> str:
        """From its first instruction to its first update."""
        before = self.config_time(), self.last_step()
        self.wait_for(self.find)
        if self.chance.random() < 0.4:
            seconds = self.chance.uniform(0, 3)
            time.sleep(seconds)
            told = f"{seconds:.2f} s after its start"
        else:
            self.wait_for(lambda: self.config_time() != before[0])
            seconds = self.chance.uniform(0, 0.4)
            time.sleep(seconds)
            told = f"{seconds:.2f} s after writing its options"
        self.kill()
        return f"starting, {told}"

    def training(self) -> str:
        """At a random update and fraction of it."""
        before, old = self.config_time(), self.last_step()
        wanted = self.chance.randint(old + 1, max(old + 1, min(old + 12, 17)))
        seconds = self.chance.uniform(0, 0.06)
        self.wait_for(lambda: self.config_time() != before and self.last_step() >= wanted)
        time.sleep(seconds)
        self.kill()
        return f"training, {seconds * 1000:.0f} ms after step {self.last_step()}"

    def saving(self) -> str:
        """While a file is half written, or has its name and the folder is being flushed."""
        wanted = self.chance.randint(1, 17)
        seconds = self.chance.uniform(0, 0.35)
        self.wait_for(lambda: self.last_step() >= wanted and any(self.folder.glob("*.pd.tmp")))
        time.sleep(seconds)
        step = self.last_step()
        self.kill()
        return f"saving at step {step}, {seconds * 1000:.0f} ms after it began"

    def evaluating(self) -> str:
        """After the last update of an epoch, before its end is in the log."""
        wanted = self.chance.randint(1, 2)
        seconds = self.chance.uniform(0, 0.06)
        self.wait_for(lambda: self.epochs() >= wanted - 1 and self.last_step() == (self.epochs() + 1) * UPDATES)
        time.sleep(seconds)
        self.kill()
        assert self.last_step() == (self.epochs() + 1) * UPDATES
        return f"evaluating epoch {self.epochs()}, {seconds * 1000:.0f} ms after its last update"


def cases():
    """Every scenario in every moment, and what chance adds: other kills before, so that there is something to lose."""
    for name, scenario in SCENARIOS.items():
        for moment in scenario.moments:
            chance = random.Random(f"{SEED} {name} {moment}")
            before = ["training"] if chance.random() < (0.75 if moment == "starting" else 0.25) else []
            yield pytest.param(name, [*before, moment], chance, id=f"{name}-{moment}")


@pytest.mark.parametrize(("scenario", "moments", "chance"), list(cases()))
def test_a_killed_run_goes_on(whole, slow_disk, record_property, scenario, moments, chance):
    runs, of = whole(scenario), SCENARIOS[scenario]
    name = f"cut-{moments[-1]}"
    kills = []
    for number, moment in enumerate(moments):
        path = slow_disk if moment in ("starting", "saving") else str(ROOT)
        flags = f"{FLAGS} --auto_resume --num_workers {chance.choice((0, 0, 2))}"
        process = runs.start(name, flags, of.processes, workers=f"workers{number}", PYTHONPATH=path)
        kills.append(getattr(Victim(runs, name, process, of.processes, chance), moment)())
    for key, value in (("method", of.method), ("phase", of.phase), ("processes", of.processes), ("kills", kills)):
        record_property(key, json.dumps(value))
    if of.processes == 1:
        runs.here(name, f"{FLAGS} --auto_resume")
    else:
        runs.elsewhere(name, f"{FLAGS} --auto_resume", of.processes, workers="rest")
    files = [file for file in ("checkpoint-best.pd", "checkpoint-1.pd") if (runs.folder / "whole" / file).exists()]
    runs.assert_same("whole", name, *files)
