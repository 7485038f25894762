"""Files of the first commits still work: runs go on from their checkpoints, and their recipes mean the same.

tests/golden/earlier has the files of four tiny runs that had stopped after update 5, the records of the same runs
without the stop, and the recipes of that version (tests/golden/README.md).
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plsc_mae.cli import main
from plsc_mae.config.resolve import load_config
from plsc_mae.config.schema import plain_values
from plsc_mae.train.checkpoint.file import load

EARLIER = Path(__file__).parent / "golden" / "earlier"
RECIPES = zipfile.ZipFile(EARLIER / "recipes.zip")
MEANINGS = json.loads(RECIPES.read("options.json"))  # {recipe: all options as that version resolved them}
MONITORING = {"vis_freq", "knn_k"}  # their defaults now follow from the data; training does not depend on them


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Write the images of the recorded runs: noise of a dark and a bright class."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name, lowest in (("dark", 0), ("bright", 192)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(lowest, lowest + 64, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return root


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.compat
@pytest.mark.parametrize(
    ("name", "command"), [("mae", "pretrain"), ("cae", "pretrain"), ("finetune", "finetune"), ("linprobe", "linprobe")]
)
def test_a_run_goes_on(name, command, images, tmp_path):
    run = tmp_path / name
    shutil.copytree(EARLIER / name, run, ignore=shutil.ignore_patterns("*.jsonl"))
    (run / "config.yaml").chmod(0o644)
    words = f"--config {run}/config.yaml --resume {run}/checkpoint-latest.pd --output_dir {run} --data_path {images}"
    assert main([command, *words.split(), "--max_train_step", "9"]) == 0
    found = records(run / "train.jsonl")
    wanted = [record for record in records(EARLIER / name / "train.jsonl") if record["step"] > 5]
    assert [record["step"] for record in found] == [record["step"] for record in wanted] == [6, 7, 8, 9]
    for key, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4), ("lr", 1e-12), ("weight_decay", 1e-12)):
        expected = pytest.approx([record[key] for record in wanted], rel=tolerance)
        assert [record[key] for record in found] == expected, key
    last = load(run / "checkpoint-latest.pd")
    assert set(load(EARLIER / name / "checkpoint-latest.pd").tensors) == set(last.tensors)


@pytest.mark.parametrize("name", sorted(MEANINGS))
def test_a_recipe_keeps_its_meaning(name, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(RECIPES.read(name))
    options = plain_values(load_config(str(path)))
    wanted = {key: value for key, value in MEANINGS[name].items() if key not in MONITORING}
    assert {key: options.get(key, "missing") for key in wanted} == wanted
