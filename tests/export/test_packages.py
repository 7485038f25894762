"""Exports in the real libraries, which these tests install into environments of their own (they need the network).

The torch libraries take gigabytes; PLSC_MAE_TORCH_PYTHON names an interpreter that has them and Paddle already, and
PLSC_MAE_LIBRARIES_PYTHON one that has the Paddle libraries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.version_info >= (3, 13), reason="paddle2onnx has no package")]
ONNX = ["paddle2onnx==2.1.0", "onnx==1.17.0", "onnxruntime", "protobuf"]
# These libraries require versions of NumPy and OpenCV that do not exist for this Python, and run with newer ones.
LIBRARIES = ["paddleseg==2.8.0", "paddledet==2.6.0", "paddleclas==2.6.0", "faiss-cpu"]
THEIR_NEEDS = ["scikit-learn", "prettytable", "pycocotools", "typeguard", "terminaltables", "easydict", "filelock"]
THEIR_NEEDS += ["ujson", "pyclipper", "shapely"]
FEATURES = 2e-6  # largest difference in a Paddle library, which has the same operators
OUTPUTS = 1e-5  # largest difference in ONNX Runtime and in torch

CASES = [
    *(("onnx", name, "encoder", OUTPUTS) for name in ("mae", "cae", "simmim")),
    *(("onnx", name, "classifier", OUTPUTS) for name in ("mae_classifier", "cae_classifier", "simmim_classifier")),
    *(("onnx", name, "reconstruction", OUTPUTS) for name in ("mae", "cae", "simmim")),
    ("onnx", "cae_attentive", "classifier", OUTPUTS),
    *(("paddleseg", name, "encoder", FEATURES) for name in ("mae", "cae", "simmim", "cae_classifier")),
    *(("paddledet", name, "encoder", FEATURES) for name in ("mae", "cae", "simmim", "cae_classifier")),
    *(("paddleclas", name, "encoder", FEATURES) for name in ("mae", "cae", "simmim")),
    *(("paddleclas", name, "classifier", FEATURES) for name in ("mae_classifier", "mae_token_classifier", "mae_probe")),
    *(("paddleclas", name, "classifier", FEATURES) for name in ("cae_classifier", "simmim_classifier")),
]
IN_TORCH = [
    *(("timm", name, "encoder", OUTPUTS) for name in ("mae", "cae", "simmim")),
    *(("timm", name, "classifier", OUTPUTS) for name in ("mae_classifier", "mae_token_classifier", "mae_probe")),
    *(("timm", name, "classifier", OUTPUTS) for name in ("mae_raw_probe", "cae_classifier", "simmim_classifier")),
    *(("huggingface", name, "encoder", OUTPUTS) for name in ("mae", "cae", "simmim")),
    *(("huggingface", name, "classifier", OUTPUTS) for name in ("mae_classifier", "mae_token_classifier", "mae_probe")),
    *(("huggingface", name, "classifier", OUTPUTS) for name in ("cae_classifier", "simmim_classifier")),
    ("huggingface", "mae", "reconstruction", OUTPUTS),
]


def environment(folder: Path, *installs: list[str]) -> Path:
    """Create an environment that also sees the packages of this one; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    (Path(site) / "zz_outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for words in installs:
        subprocess.run([python, "-m", "pip", "install", "-q", *words], check=True, timeout=1800)
    return python


@pytest.fixture(scope="session")
def paddle_python(tmp_path_factory):
    """Return the interpreter of an environment with ONNX and the Paddle libraries."""
    if given := os.environ.get("PLSC_MAE_LIBRARIES_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("libraries") / "env"
    return environment(folder, ONNX, ["--no-deps", *LIBRARIES], THEIR_NEEDS)


@pytest.fixture(scope="session")
def torch_python(tmp_path_factory):
    """Return the interpreter of an environment with torch, timm and Transformers."""
    if given := os.environ.get("PLSC_MAE_TORCH_PYTHON"):
        return given
    return environment(tmp_path_factory.mktemp("torch") / "env", ["torch", "torchvision", "timm", "transformers"])


def exported(python, file, target, part, out):
    """Export a file in another environment and return the description."""
    words = ["--target", target, "--what", part, "--model_path", file, "--save_path", out, "--tolerance", "1"]
    done = subprocess.run(
        [python, "-m", "plsc_mae", "export", *words, "--num_heads", "3", "--decoder_num_heads", "2"],
        **{"capture_output": True, "text": True, "cwd": ROOT, "timeout": 600},
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "export.json").read_text())


def check(python, file, target, part, limit, out):
    """Export a file, require that the target has run it, and compare the largest difference with the limit."""
    verified = exported(python, file, target, part, out)["verified"]
    assert verified["obstacle"] == ""
    assert verified["relative"] <= limit, verified


@pytest.mark.parametrize(("target", "name", "part", "limit"), CASES)
def test_paddle_libraries_and_onnx(paddle_python, file_of, tmp_path, target, name, part, limit):
    check(paddle_python, file_of(name), target, part, limit, tmp_path / "out")


@pytest.mark.parametrize(("target", "name", "part", "limit"), IN_TORCH)
def test_torch_libraries(torch_python, file_of, tmp_path, target, name, part, limit):
    check(torch_python, file_of(name), target, part, limit, tmp_path / "out")


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_configuration_of_paddleseg_trains(paddle_python, export, name):
    """Three steps on two random images: the weights arrive bit by bit, and the loss falls from about ln 150 = 5.01."""
    folder = export(name, "paddleseg", "--no_verify", "--input_size", "32")[0]
    found = dense(paddle_python, folder, "paddleseg", "linear_segmenter_ade20k")
    assert found["loaded"] == 0
    assert len(found["losses"]) == 3
    assert 4.5 < found["losses"][0] < 6
    assert found["losses"][2] < found["losses"][0]


@pytest.mark.parametrize("name", ["mae", "cae"])
@pytest.mark.parametrize("recipe", ["mask_rcnn_coco", "cascade_rcnn_coco"])
def test_configurations_of_paddledet_build_a_pyramid(paddle_python, export, recipe, name):
    folder = export(name, "paddledet", "--no_verify", "--input_size", "64")[0]
    found = dense(paddle_python, folder, "paddledet", recipe)
    assert found["loaded"] == 0
    assert found["shapes"] == [[1, 256, side, side] for side in (16, 8, 4, 2, 1)]


def dense(python, folder, library, recipe):
    """Return what train_dense.py prints about a configuration of docs/dense and an export."""
    script, config = Path(__file__).parent / "train_dense.py", ROOT / f"docs/dense/{library}_{recipe}.yml"
    done = subprocess.run([python, script, library, config, folder], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
