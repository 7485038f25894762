"""Tiny networks of every method in files, as `plsc-mae export` reads them."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

from plsc_mae import weights
from plsc_mae.cli import main
from plsc_mae.models.cae import ContextAutoencoder
from plsc_mae.models.classifier import ImageClassifier
from plsc_mae.models.mae import MaskedAutoencoder
from plsc_mae.models.simmim import SimMIM

SIZES = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
DECODER = {"decoder_embed_dim": 24, "decoder_num_heads": 2}
RELATIVE = {"k_bias": False, "layer_scale": 0.1, "positions": "row first", "relative_positions": "per block"}
CAE_SIZES = {"regressor_depth": 1, "num_decoder_self_attention": 1, "decoder_num_classes": 7}

NETWORKS = {
    "mae": (lambda: MaskedAutoencoder(decoder_depth=1, **SIZES, **DECODER), "facebook"),
    "cae": (lambda: ContextAutoencoder(**CAE_SIZES, **SIZES, **DECODER), "cae"),
    "simmim": (lambda: SimMIM(**{**SIZES, "depth": 2}), "simmim"),
    "mae_classifier": (lambda: ImageClassifier(5, **SIZES), "facebook"),
    "mae_token_classifier": (lambda: ImageClassifier(5, global_pool=False, **SIZES), "facebook"),
    "mae_probe": (lambda: ImageClassifier(5, probe="standard", **SIZES), "facebook"),
    "mae_raw_probe": (lambda: ImageClassifier(5, probe="raw", **SIZES), "facebook"),
    "cae_classifier": (lambda: ImageClassifier(5, **SIZES, **RELATIVE), "beit"),
    "cae_attentive": (lambda: ImageClassifier(5, probe="attentive", **SIZES, **RELATIVE), "beit"),
    "simmim_classifier": (lambda: ImageClassifier(5, **SIZES, **{**RELATIVE, "positions": "none"}), "beit"),
}


def write_network(name, folder):
    """Write a network with weights that are all different; return the file."""
    build, dialect = NETWORKS[name]
    network = build()
    rng = np.random.default_rng(0)
    for tensor in network.state_dict().values():
        if tensor.dtype == paddle.float32 and not tensor.stop_gradient:
            tensor.set_value(tensor + 0.05 * paddle.to_tensor(rng.standard_normal(tensor.shape).astype("float32")))
    for key, tensor in network.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            tensor.set_value(paddle.to_tensor(rng.uniform(0.5, 2.0, tensor.shape).astype("float32")))
    weights.save(network, folder / f"{name}.pth", dialect)
    return folder / f"{name}.pth"


@pytest.fixture(scope="session")
def file_of(tmp_path_factory):
    """Return a function that gives the file of a network of NETWORKS."""
    folder, written = tmp_path_factory.mktemp("networks"), {}

    def give(name):
        if name not in written:
            written[name] = write_network(name, folder)
        return written[name]

    return give


@pytest.fixture
def export(file_of, tmp_path):
    """Export a network; return the folder and its description."""

    def run(name, target, *words):
        out = tmp_path / f"{name}-{target}"
        line = ["export", "--target", target, "--model_path", str(file_of(name)), "--save_path", str(out)]
        assert main([*line, "--num_heads", "3", "--decoder_num_heads", "2", *words]) == 0
        return out, json.loads((out / "export.json").read_text())

    return run
