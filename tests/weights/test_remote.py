"""Addresses in place of paths are answered with the command that fetches them."""

from __future__ import annotations

from pathlib import Path

import pytest

from plsc_mae.weights.remote import fetch_advice

BASE = "https://huggingface.co/facebook/vit-mae-base"


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("facebook/vit-mae-base", "weights fetch hf_vit_mae_base`"),
        ("hf://facebook/vit-mae-large", "weights fetch hf_vit_mae_large`"),
        ("hf-hub:facebook/vit-mae-huge", "weights fetch hf_vit_mae_huge`"),
        (BASE, "weights fetch hf_vit_mae_base`"),
        (Path(f"{BASE}/resolve/main/pytorch_model.bin"), "weights fetch hf_vit_mae_base`"),
        (f"{BASE}/resolve/main/pytorch_model.bin?download=true", "weights fetch hf_vit_mae_base`"),
        ("https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth", "fetch mae_pretrain_vit_base`"),
        (Path("https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth"), "fetch mae_pretrain_vit_base`"),
        ("mae_pretrain_vit_large", "weights fetch mae_pretrain_vit_large`"),
        ("https://example.org/a/w.pth", "weights fetch https://example.org/a/w.pth`"),
        (
            "https://huggingface.co/me/net/blob/main/model.safetensors",
            "weights fetch https://huggingface.co/me/net/resolve/main/model.safetensors`",
        ),
        ("me/my-net", "weights fetch https://huggingface.co/me/my-net/resolve/main/model.safetensors`"),
        ("s3://bucket/w.pth", "download the file"),
    ],
)
def test_an_address_is_answered_with_a_command(path, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command in fetch_advice(path)


@pytest.mark.parametrize("path", ["w.pth", "runs/w.pth", "/absent/w", "a/b/c", "here/typo", "checkpoint"])
def test_ordinary_paths_have_no_advice(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert fetch_advice(path) == ""


def test_a_fetched_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vit-mae-base.bin").touch()
    assert "weights/vit-mae-base.bin is already here" in fetch_advice("facebook/vit-mae-base")
