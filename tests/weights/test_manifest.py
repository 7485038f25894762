"""The manifest of published files: the shipped one is valid, and an invalid one is rejected in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import yaml

from plsc_mae.errors import ConfigError
from plsc_mae.weights.manifest import DIGITS, Checksum, Entry, file_name, find_entry, matching, read_manifest

RIGHT = {
    "sources": {"somebody": {"licence": "not stated", "page": "https://example.org"}},
    "files": {
        "small": {
            "source": "somebody",
            "network": "ViT-S/16",
            "dialect": "facebook",
            "good_for": "fine-tune",
            "url": "https://example.org/a/small.pth",
        }
    },
}


@pytest.fixture
def manifest(tmp_path):
    """Read RIGHT with some values of its entry changed; None removes a value."""

    def read(**changes):
        content = json.loads(json.dumps(RIGHT))
        values = content["files"]["small"]
        values.update(changes)
        for key in [key for key, value in values.items() if value is None]:
            del values[key]
        path = tmp_path / "manifest.yaml"
        path.write_text(yaml.safe_dump(content))
        return read_manifest(path)["small"]

    return read


def test_the_shipped_manifest_is_sound():
    entries = read_manifest()
    assert len(entries) > 30
    for entry in entries.values():
        assert entry.licence
        assert urlsplit(entry.page).scheme == "https", entry.name
        if entry.checksum is not None:
            assert len(entry.checksum.digits) <= DIGITS[entry.checksum.algorithm]
    files = [entry.file for entry in entries.values()]
    assert len(set(files)) == len(files), "two files would overwrite each other"
    urls = [entry.url for entry in entries.values() if entry.url]
    assert len(set(urls)) == len(urls)


def test_what_facebook_publishes_is_there_with_the_digits_it_publishes():
    entries = read_manifest()
    expected = {
        "mae_pretrain_vit_base": "md5:8cad7c",
        "mae_pretrain_vit_large": "md5:b8b06e",
        "mae_pretrain_vit_huge": "md5:9bdbb0",
        "mae_finetuned_vit_base": "md5:1b25e9",
        "mae_finetuned_vit_large": "md5:51f550",
        "mae_finetuned_vit_huge": "md5:2541f2",
        "mae_visualize_vit_large": "None",
        "mae_visualize_vit_large_ganloss": "None",
    }
    found = {name: str(e.checksum) for name, e in entries.items() if e.source == "facebookresearch/mae"}
    assert found == expected
    assert {entries[name].licence for name in expected} == {"CC BY-NC 4.0"}
    assert entries["mae_finetuned_vit_huge"].url.endswith("/mae/finetune/mae_finetuned_vit_huge.pth")


def test_what_no_program_can_fetch_says_why():
    by_hand = [entry for entry in read_manifest().values() if not entry.url]
    assert {entry.source for entry in by_hand} >= {"BUPT-PRIV/MAE-priv", "Atten4Vis/CAE"}
    assert all(entry.by_hand for entry in by_hand)
    drive = [entry for entry in by_hand if "Google Drive requires a click" in entry.by_hand]
    assert len(drive) == 12
    assert all(entry.page.startswith("https://drive.google.com/file/d/") for entry in drive)


def test_an_entry_is_completed(manifest):
    entry = manifest(checksum="sha256:ABC", bytes=7)
    assert entry == Entry(
        name="small",
        source="somebody",
        licence="not stated",
        network="ViT-S/16",
        dialect="facebook",
        good_for="fine-tune",
        page="https://example.org",
        file="small.pth",
        url="https://example.org/a/small.pth",
        checksum=Checksum("sha256", "abc"),
        bytes=7,
    )
    assert str(entry.path("there")) == "there/small.pth"
    assert manifest(file="other.bin").file == "other.bin"
    assert manifest(url=None, by_hand="why", page="https://example.org/b").page == "https://example.org/b"


@pytest.mark.parametrize(
    ("changes", "excerpt"),
    [
        ({"ulr": "x"}, "unknown key 'ulr'"),
        ({"licence": "MIT"}, "unknown key 'licence'"),
        ({"source": None}, "source is missing"),
        ({"source": "nobody"}, "source 'nobody'"),
        ({"good_for": ""}, "good_for: expected text, got ''"),
        ({"bytes": "7"}, "bytes: expected a whole number, got '7'"),
        ({"network": 7}, "network: expected text, got 7"),
        ({"url": None}, "expected either url or by_hand"),
        ({"by_hand": "why"}, "expected either url or by_hand"),
        ({"url": "ftp://example.org/a"}, "url: expected https://"),
        ({"url": "https://example.org/"}, "does not end with a file name"),
        ({"checksum": "md5:xyz"}, "checksum 'md5:xyz'"),
        ({"file": "../a.pth"}, "file: expected a name without folders, got '../a.pth'"),
    ],
)
def test_a_wrong_entry_is_refused(manifest, changes, excerpt):
    with pytest.raises(ConfigError) as caught:
        manifest(**changes)
    message = str(caught.value)
    assert excerpt in message
    assert "manifest.yaml: small" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "excerpt"),
    [
        ("files: [", "is not valid YAML"),
        ("files: {}", "`sources` and `files`"),
        ("- a", "`sources` and `files`"),
        ("{sources: {}, files: {a: 1}}", "files: expected a table of tables"),
        ("{sources: [], files: {}}", "sources: expected a table of tables"),
    ],
)
def test_no_manifest_at_all_is_refused(tmp_path, text, excerpt):
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"manifest\.yaml") as caught:
        read_manifest(path)
    assert excerpt in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read the manifest"):
        read_manifest(tmp_path / "none.yaml")


def test_names_are_found_and_suggested():
    entries = read_manifest()
    assert find_entry(entries, "dalle_encoder").file == "encoder.pkl"
    with pytest.raises(ConfigError, match="did you mean 'mae_pretrain_vit_base'"):
        find_entry(entries, "mae_pretrain_vit_bas")
    with pytest.raises(ConfigError, match="weights list"):
        find_entry(entries, "zzz")


def test_patterns_filter_by_name_source_or_dialect():
    entries = read_manifest()
    assert [e.name for e in matching(entries, "mae_pretrain_*")] == [
        f"mae_pretrain_vit_{size}" for size in ("base", "large", "huge")
    ]
    assert {e.source for e in matching(entries, "VIMER")} == {"VIMER"}
    assert {e.dialect for e in matching(entries, "plsc_*")} >= {"plsc_cae", "plsc_beit"}
    assert matching(entries, "*") == list(entries.values())
    with pytest.raises(ConfigError, match="no published file matches 'nothing_"):
        matching(entries, "nothing_*")


@pytest.mark.parametrize(
    ("text", "expected", "whole"),
    [
        ("md5:8cad7c", Checksum("md5", "8cad7c"), False),
        ("a" * 32, Checksum("md5", "a" * 32), True),
        ("B" * 64, Checksum("sha256", "b" * 64), True),
        ("SHA256: ".strip() + "0" * 8, Checksum("sha256", "0" * 8), False),
    ],
)
def test_checksums_are_read(text, expected, whole):
    assert Checksum.parse(text) == expected
    assert expected.is_whole == whole


@pytest.mark.parametrize("text", ["", "8cad7c", "md5:", "crc32:00", "md5:" + "a" * 33, "md5:é"])
def test_other_checksums_are_refused(text):
    with pytest.raises(ConfigError, match="expected md5: or sha256:"):
        Checksum.parse(text)


def test_the_name_of_a_file_is_the_end_of_its_address():
    assert file_name("https://example.org/a/b%20c.pth?x=/y#z") == "b c.pth"
    for url in (
        "https://example.org",
        "https://example.org/a/",
        "https://example.org/a/..",
        "https://example.org/a%2F..%2F..",
        "https://[1/a.pth",
    ):
        with pytest.raises(ConfigError, match="does not end with a file name"):
            file_name(url)


def test_a_built_package_has_the_manifest(root, tmp_path):
    """An installed package contains the manifest, and the file at the top of the repository is identical."""
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    built = (tmp_path / "plsc_mae" / "weights" / "manifest.yaml").read_bytes()
    assert built == (root / "weights" / "manifest.yaml").read_bytes()
